"""Where a lab's output goes: looked at before anything starts, so that no run is in vain."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from dsmip_ipsec.errors import ConfigError

# What a run leaves in DIR. A new run into the same DIR removes these, and nothing else.
OUTPUT = ("record.json", "report.html", "captures", "logs", "wireshark", "guest-console.log")


def prepare_output(directory: Path | None, stack: ExitStack) -> Path:
    """Make a run's output directory, or take old output out of it. Without one, a temporary
    directory that goes with ``stack``. Raises ConfigError, also for a directory whose ``logs`` or
    ``captures`` no run has made."""
    if directory is None:
        temporary = tempfile.TemporaryDirectory(prefix="dsmip-lab-")
        return Path(stack.enter_context(temporary))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        _refuse_others_files(directory)
        for name in OUTPUT:
            old = directory / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"can't use {directory} for output: {error.strerror}",
            hint="name a directory that you may write to",
        ) from error
    return directory


def _refuse_others_files(directory: Path) -> None:
    """Somebody's own ``logs`` aren't deleted: a run leaves more than that."""
    if any((directory / name).is_file() for name in ("record.json", "guest-console.log")):
        return
    if next(directory.glob("captures/*.pcapng"), None) is not None:
        return  # of a run that was killed
    for name in OUTPUT:
        old = directory / name
        if old.is_dir() and next(old.iterdir(), None) is not None:
            raise ConfigError(
                f"{old} is in the way, and doesn't look like a lab's output",
                hint="name a directory for the lab's output alone, or remove it yourself",
            )


def check_file(path: Path | None) -> None:
    """Whether a file that is asked for can be written when the run is over. Raises ConfigError."""
    if path is None:
        return
    if path.is_dir():
        reason = "Is a directory"
    elif not path.parent.is_dir():
        reason = f"there is no directory {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "Permission denied"
    else:
        return
    raise ConfigError(
        f"{path} can't be written: {reason}",
        hint="name a file in a directory that exists and is yours",
    )
