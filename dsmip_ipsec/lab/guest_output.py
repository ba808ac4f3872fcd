"""The guest's serial line as lines of text, ended by the command's status."""

from __future__ import annotations

import re
from collections.abc import Callable

# A program that never ends a line must not fill our memory.
MAX_LINE = 65536


class OutputLines:
    """Cut bytes into lines; ``status`` is None until the line ``NONCE STATUS`` has come.

    The nonce is random for each guest, so no output of the command ends the run by chance. A
    last line without its line break is delivered too.
    """

    def __init__(self, nonce: str, on_line: Callable[[str], None]) -> None:
        self._end = re.compile(rb"(.*)" + re.escape(nonce.encode()) + rb" ([0-9]{1,3})", re.DOTALL)
        self._on_line = on_line
        self._rest = b""
        self.status: int | None = None

    def feed(self, data: bytes) -> None:
        """Take what was read. Raises what ``on_line`` raises."""
        if self.status is not None:
            return
        *complete, self._rest = (self._rest + data).split(b"\n")
        for line in complete:
            if end := self._end.fullmatch(line):
                self.status = int(end[2])
                if end[1]:
                    self._deliver(end[1])
                self._rest = b""
                return
            self._deliver(line)
        while len(self._rest) > MAX_LINE:
            self._deliver(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]

    def flush(self) -> None:
        """Deliver a last, unfinished line: the guest died while it was written."""
        rest, self._rest = self._rest, b""
        if rest:
            self._deliver(rest)

    def _deliver(self, line: bytes) -> None:
        self._on_line(line.decode("utf-8", errors="replace").removesuffix("\r"))
