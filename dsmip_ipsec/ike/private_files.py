"""Writing files that hold secrets, or that others may be reading at the same time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from dsmip_ipsec.errors import ConfigError


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Create a directory and its parents; one that is there keeps its mode.

    :raises ConfigError: it can't be made.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise _cant_write(path, error) from error


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write ``path`` so that nobody ever sees half of it, and nobody without ``mode`` any of it.

    A symbolic link of that name is replaced, not followed.

    :raises ConfigError: it can't be written; what was there is still there then.
    """
    temporary = ""
    try:
        # mkstemp's file has mode 0600 from its first octet on.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise _cant_write(path, error) from error
        raise


def remove_file(path: Path) -> None:
    """Remove ``path`` if it is there. :raises ConfigError: it can't be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _cant_write(path, error) from error


def read_file(path: Path, what: str, *, limit: int = 1 << 20) -> bytes:
    """The content of a file of at most ``limit`` octets.

    :raises ConfigError: it can't be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"can't read {what}: {error.strerror}", path=path) from error
    if len(content) > limit:
        raise ConfigError(f"{what} is larger than {limit} octets", path=path)
    return content


def _cant_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"can't write {path}: {error.strerror}", hint="check its permissions")
