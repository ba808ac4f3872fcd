"""Where the files that come with the package stand: ``templates/`` and ``labs/``.

In a wheel they are package data; in a checkout they stand beside the package, at the top level,
where people look for them.
"""

from __future__ import annotations

from pathlib import Path

from dsmip_ipsec.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def resource_directory(name: str) -> Path:
    """Return the directory ``name`` ("templates" or "labs").

    Raises ConfigError when the installation lacks it.
    """
    for directory in (_PACKAGE / name, _PACKAGE.parent / name):
        if directory.is_dir():
            return directory
    raise ConfigError(
        f"this installation of dsmip-ipsec has no {name}/ directory",
        hint="install the package again, or run from a complete checkout",
    )
