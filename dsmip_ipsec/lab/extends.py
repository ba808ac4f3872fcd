"""``extends = "LAB"`` at the top of a lab file: that lab, and what this file changes in it.

Tables are merged key by key, and what isn't a table replaces what was there. A step with the name
of one in LAB changes that one; the others come after LAB's. LAB is a file beside this one
(``"nat-handover.toml"`` or ``"nat-handover"``), or a lab that comes along.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..toml_lines import TomlLines
from .library import find_lab

KEY = "extends"
# Variants of variants of variants: beyond that nobody follows.
MAX_DEPTH = 4


class Merged(TomlLines):
    """Lines of a file that changes another lab. What stands only there has no line here."""

    def __init__(self, text: str, steps: Sequence[int]) -> None:
        """``steps``: for each step of the text, its index in the whole lab."""
        super().__init__(text)
        self._steps = {whole: own for own, whole in enumerate(steps)}

    def line_of(self, path: Sequence[str | int]) -> int:
        """See :class:`TomlLines`; ``path`` is one in the whole lab."""
        if len(path) > 1 and path[0] == "steps":
            if path[1] not in self._steps:
                return 0
            path = ("steps", self._steps[int(path[1])], *path[2:])
        return super().line_of(path)


def base_path(name: object, path: Path | str, lines: TomlLines) -> Path:
    """The file that ``extends = name`` in the file ``path`` means. Raises ConfigError."""
    line = lines.line_of((KEY,))
    if not isinstance(name, str):
        raise ConfigError(f"'{KEY}' should be the name of a lab", path=path, line=line)
    for beside in (Path(path).parent / name, Path(path).parent / f"{name}.toml"):
        if beside.is_file() and beside.resolve() != Path(path).resolve():
            return beside
    try:
        found = find_lab(name)
    except ConfigError as error:
        raise ConfigError(error.message, path=path, line=line, hint=error.hint) from None
    if not found.is_file():
        raise ConfigError(f"there is no lab file '{name}' beside this one", path=path, line=line)
    return found


def merged(
    base: dict[str, Any], own: dict[str, Any], path: Path | str, lines: TomlLines
) -> tuple[dict[str, Any], list[int]]:
    """``base`` as ``own`` changes it, and where each of the steps of ``own`` is in the whole.

    ``base`` is a lab that was checked, ``own`` anything that is TOML. Raises ConfigError.
    """
    changes = {key: value for key, value in own.items() if key not in (KEY, "steps")}
    whole = _merge(base, changes)
    steps = [dict(step) for step in base.get("steps", [])]
    given = own.get("steps", [])
    places: list[int] = []
    if not isinstance(given, list) or not all(isinstance(step, dict) for step in given):
        raise ConfigError(
            "'steps' should be an array of tables",
            path=path, line=lines.line_of(("steps",)), hint="write [[steps]]",
        )  # fmt: skip
    inherited = {step["name"]: index for index, step in enumerate(steps)}
    for step in given:
        name = step.get("name")
        # Each one once: the second of a name is a step of its own, and refused as such.
        index = inherited.pop(name, None) if isinstance(name, str) else None
        places.append(len(steps) if index is None else index)
        if index is None:
            steps.append(step)
        else:
            steps[index] = _merge(steps[index], step)
    return {**whole, "steps": steps} if steps else whole, places


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = dict(old)
    for key, value in new.items():
        there = both.get(key)
        both[key] = (
            _merge(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
        )
    return both
