"""What a lab's server and its client say to each other: JSON objects, one a line.

A request is ``{"id": N, "op": NAME, ...}``. Its answer has the same ``id`` and either ``result``
or ``error`` (with ``hint``, and ``kind``, the class of the error). What comes without being asked
for has ``event`` instead of ``id``: ``ready`` when the lab stands, ``failed`` when it won't, and
``output`` for a terminal.
"""

from __future__ import annotations

import json
from typing import Any

from .. import errors
from ..errors import DsmipError, LabError

# An observation of fifty mobile nodes has some megabytes.
MAX_MESSAGE = 64 << 20


class Lines:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that ``data`` completes. Raises LabError for what isn't one."""
        *complete, rest = data.split(b"\n")
        found: list[dict[str, Any]] = []
        for line in complete:
            found.append(decode(b"".join([*self._parts, line])))
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > MAX_MESSAGE:
            raise _broken("a message without an end")
        return found


def encode(message: dict[str, Any]) -> bytes:
    """A message as it goes over the stream."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """A message from its line. Raises LabError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise _broken("a line that isn't JSON") from None
    if not isinstance(message, dict):
        raise _broken("a message that isn't an object")
    return message


def failure(error: DsmipError) -> dict[str, Any]:
    """The fields of an answer that tells of an error."""
    return {"error": error.message, "hint": error.hint, "kind": type(error).__name__}


def error_from(message: dict[str, Any]) -> DsmipError:
    """The error that an answer tells of; one of an unknown kind is a LabError."""
    found = getattr(errors, str(message.get("kind")), LabError)
    if not (isinstance(found, type) and issubclass(found, DsmipError)):
        found = LabError
    error = found.__new__(found)
    # Messages come complete with place and step: not to be put together again.
    DsmipError.__init__(error, str(message.get("error", "")), hint=str(message.get("hint", "")))
    for name in ("step", "path"):
        setattr(error, name, "")
    error.line = 0  # type: ignore[attr-defined]
    return error


def _broken(what: str) -> LabError:
    return LabError(
        f"the lab's stream carries {what}", hint="something else wrote to it; start the lab again"
    )
