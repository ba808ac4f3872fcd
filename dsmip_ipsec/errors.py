"""Typed errors.

Every error that leaves the package is a :class:`DsmipError`: one sentence that says what is
wrong, and a ``hint`` that says what the user can do next. The CLI prints both and nothing else;
a traceback reaching a user is a bug.
"""

from __future__ import annotations

from pathlib import Path


class DsmipError(Exception):
    """Base of all errors of this package.

    ``hint`` is a sentence for the user ("" when there is nothing useful to say).
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class WireError(DsmipError):
    """Bytes that are not what a format says. ``offset`` counts octets from the start of the
    buffer that was handed to the decoder (-1: not tied to a place)."""

    def __init__(self, message: str, *, offset: int = -1, hint: str = "") -> None:
        super().__init__(message if offset < 0 else f"{message} (at octet {offset})", hint=hint)
        self.offset = offset


class ConfigError(DsmipError):
    """A configuration or lab file that can't be used. ``line`` is 1-based, 0 when unknown."""

    def __init__(
        self, message: str, *, path: Path | str = "", line: int = 0, hint: str = ""
    ) -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(where + message, hint=hint)
        self.path = str(path)
        self.line = line


class MobilityError(DsmipError):
    """A mobility engine was asked for something that its state doesn't allow."""


class KernelError(DsmipError):
    """The kernel refused an operation. ``errno`` as in :mod:`errno` (0: no errno)."""

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class IkeError(DsmipError):
    """charon, or the VICI conversation with it, failed."""


class LabError(DsmipError):
    """A lab can't be set up, run or taken down. ``step`` names the step ("" before the first)."""

    def __init__(self, message: str, *, step: str = "", hint: str = "") -> None:
        super().__init__(f"step '{step}': {message}" if step else message, hint=hint)
        self.step = step


class GuestError(LabError):
    """The guest kernel didn't start, died or hung. ``console_log`` is the file to read."""

    def __init__(self, message: str, *, console_log: Path | str, hint: str = "") -> None:
        super().__init__(message, hint=hint or f"read the guest's console: {console_log}")
        self.console_log = str(console_log)
