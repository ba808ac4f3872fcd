"""The lab files that come along."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..resources import resource_directory


def lab_files() -> list[Path]:
    """The lab files that come along, by name."""
    return sorted(resource_directory("labs").glob("*.toml"))


def find_lab(name: str) -> Path:
    """The lab file ``name`` stands for: a path, or a name in ``labs/``. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path
    shipped = {file.stem: file for file in lab_files()}
    if name not in shipped:
        raise ConfigError(
            f"there is no lab '{name}'",
            hint=f"name a TOML file, or one of: {', '.join(shipped)}",
        )
    return shipped[name]
