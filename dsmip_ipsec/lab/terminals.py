"""Terminals in the nodes of a standing lab, whose octets travel over the lab's stream."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .guest_stream import read_some, write_all
from .standing import StandingLab

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class _Terminal:
    process: asyncio.subprocess.Process
    descriptor: int
    copying: asyncio.Task[None]


class Terminals:
    """Opens shells on pseudo-terminals; what they print goes out by ``send`` as ``output``."""

    def __init__(self, standing: StandingLab, send: Send) -> None:
        self._standing = standing
        self._send = send
        self._open: dict[int, _Terminal] = {}
        self._last = 0

    async def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start ``argv`` (a shell by default) on a terminal in ``node``; returns its number."""
        node = request["node"]
        if node not in self._standing.lab.nodes:
            raise ConfigError(
                f"there is no node '{node}'", hint=f"nodes: {', '.join(self._standing.lab.nodes)}"
            )
        argv = [str(word) for word in request.get("argv") or ["/bin/bash", "--norc", "-i"]]
        ours, theirs = pty.openpty()
        try:
            _set_size(ours, request)
            os.set_blocking(ours, False)
            environment = {**os.environ, "PS1": f"{node}# ", "TERM": str(request.get("term", ""))}
            process = await self._standing.execute(
                node, argv, terminal=theirs, environment=environment
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._last += 1
        number = self._last
        copying = asyncio.ensure_future(self._copy(number, ours, process))
        self._open[number] = _Terminal(process, ours, copying)
        return {"terminal": number}

    async def input(self, request: Mapping[str, Any]) -> None:
        """Type ``data`` (base64)."""
        terminal = self._open.get(request["terminal"])
        if terminal is not None:
            with suppress(OSError):
                await write_all(terminal.descriptor, base64.b64decode(request["data"]))

    async def resize(self, request: Mapping[str, Any]) -> None:
        """The terminal has ``rows`` and ``columns`` now."""
        terminal = self._open.get(request["terminal"])
        if terminal is not None:
            _set_size(terminal.descriptor, request)

    async def close(self, request: Mapping[str, Any]) -> None:
        """Hang up."""
        await self._hang_up(request["terminal"])

    async def close_all(self) -> None:
        for number in list(self._open):
            await self._hang_up(number)

    async def _hang_up(self, number: int) -> None:
        terminal = self._open.get(number)
        if terminal is None:
            return
        with suppress(ProcessLookupError):
            terminal.process.kill()
        await asyncio.gather(terminal.copying, return_exceptions=True)

    async def _copy(
        self, number: int, descriptor: int, process: asyncio.subprocess.Process
    ) -> None:
        reading = asyncio.ensure_future(self._read(number, descriptor))
        try:
            status = await process.wait()
            # What it printed last is there already; its children may hold the terminal open.
            await asyncio.wait({reading}, timeout=0.2)
            await self._send({"event": "output", "terminal": number, "status": status})
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._open.pop(number, None)
            os.close(descriptor)

    async def _read(self, number: int, descriptor: int) -> None:
        with suppress(OSError):  # EIO: nobody has the other end open
            while data := await read_some(descriptor, 4096):
                text = base64.b64encode(data).decode()
                await self._send({"event": "output", "terminal": number, "data": text})


def _set_size(descriptor: int, request: Mapping[str, Any]) -> None:
    size = struct.pack("HHHH", int(request.get("rows", 24)), int(request.get("columns", 80)), 0, 0)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)
