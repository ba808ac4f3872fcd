"""Commands in the nodes of a standing lab whose octets travel over the lab's stream as they come:
on a pseudo-terminal, or on pipes, where output and errors stay apart and no octet is changed."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .guest_stream import read_some, write_all
from .standing import StandingLab

Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Window:
    """How much may be under way to a client that reads slower than a command prints. Without a
    limit (0) nothing is ever held back."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self.taken = 0
        self._more = asyncio.Event()

    async def take(self, octets: int) -> None:
        self._left -= octets
        self.taken += octets
        while self._size and self._left <= 0:
            self._more.clear()
            await self._more.wait()

    @property
    def waiting(self) -> bool:
        return bool(self._size) and self._left <= 0

    def give(self, octets: int) -> None:
        self._left += octets
        self._more.set()


@dataclass(slots=True)
class _Terminal:
    process: asyncio.subprocess.Process
    descriptor: int | None
    window: _Window
    copying: asyncio.Task[None] | None = None


class Terminals:
    """Starts commands; what they print goes out by ``send`` as ``output``."""

    def __init__(self, standing: StandingLab, send: Send) -> None:
        self._standing = standing
        self._send = send
        self._open: dict[int, _Terminal] = {}
        self._last = 0

    async def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start ``argv`` (a shell by default) in ``node``, on a terminal, or with ``pipes``;
        returns its number. ``window``: octets that may be unacknowledged (see :meth:`ack`)."""
        node = request["node"]
        if node not in self._standing.lab.nodes:
            raise ConfigError(
                f"there is no node '{node}'", hint=f"nodes: {', '.join(self._standing.lab.nodes)}"
            )
        argv = [str(word) for word in request.get("argv") or ["/bin/bash", "--norc", "-i"]]
        window = _Window(int(request.get("window", 0)))
        if request.get("pipes"):
            terminal = _Terminal(await self._standing.execute(node, argv), None, window)
        else:
            terminal = await self._on_terminal(node, argv, request, window)
        self._last += 1
        number = self._last
        terminal.copying = asyncio.ensure_future(self._copy(number, terminal))
        self._open[number] = terminal
        return {"terminal": number}

    async def _on_terminal(
        self, node: str, argv: list[str], request: Mapping[str, Any], window: _Window
    ) -> _Terminal:
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
        return _Terminal(process, ours, window)

    async def input(self, request: Mapping[str, Any]) -> None:
        """Type ``data`` (base64); without any, a command on pipes has read everything."""
        terminal = self._open.get(request["terminal"])
        if terminal is None:
            return
        data = base64.b64decode(request.get("data", ""))
        with suppress(OSError):
            if terminal.descriptor is not None:
                await write_all(terminal.descriptor, data)
            elif (stdin := terminal.process.stdin) is not None:
                stdin.write(data) if data else stdin.close()
                await stdin.drain()

    async def ack(self, request: Mapping[str, Any]) -> None:
        """The client has dealt with so many ``octets``: more of them may come."""
        terminal = self._open.get(request["terminal"])
        if terminal is not None:
            terminal.window.give(int(request["octets"]))

    async def resize(self, request: Mapping[str, Any]) -> None:
        """The terminal has ``rows`` and ``columns`` now."""
        terminal = self._open.get(request["terminal"])
        if terminal is not None and terminal.descriptor is not None:
            _set_size(terminal.descriptor, request)

    async def close(self, request: Mapping[str, Any]) -> None:
        """Hang up."""
        await self._hang_up(request["terminal"])

    async def close_all(self) -> None:
        for number in list(self._open):
            await self._hang_up(number)

    async def _hang_up(self, number: int) -> None:
        terminal = self._open.get(number)
        if terminal is None or terminal.copying is None:
            return
        terminal.window.give(1 << 40)  # nobody reads any more
        with suppress(ProcessLookupError):
            terminal.process.kill()
        await asyncio.gather(terminal.copying, return_exceptions=True)

    async def _copy(self, number: int, terminal: _Terminal) -> None:
        process, descriptor = terminal.process, terminal.descriptor
        if descriptor is not None:
            reading = [asyncio.ensure_future(self._read(number, descriptor, terminal.window))]
        else:
            reading = [
                asyncio.ensure_future(self._read_pipe(number, name, pipe, terminal.window))
                for name, pipe in (("out", process.stdout), ("err", process.stderr))
                if pipe is not None
            ]
        try:
            status = await process.wait()
            await self._rest(reading, terminal.window)
            await self._send({"event": "output", "terminal": number, "status": status})
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            self._open.pop(number, None)
            if descriptor is not None:
                os.close(descriptor)

    @staticmethod
    async def _rest(reading: Sequence[asyncio.Future[None]], window: _Window) -> None:
        """What a command printed last is there already, and a slow client gets it in its own time.
        But the end may never come: its children may hold the other end open."""
        while True:
            before = window.taken
            _, pending = await asyncio.wait(reading, timeout=0.2)
            if not pending or (window.taken == before and not window.waiting):
                return

    async def _read(self, number: int, descriptor: int, window: _Window) -> None:
        with suppress(OSError):  # EIO: nobody has the other end open
            while data := await read_some(descriptor, 4096):
                await self._print(number, data, "out", window)

    async def _read_pipe(
        self, number: int, name: str, pipe: asyncio.StreamReader, window: _Window
    ) -> None:
        while data := await pipe.read(4096):
            await self._print(number, data, name, window)

    async def _print(self, number: int, data: bytes, name: str, window: _Window) -> None:
        text = base64.b64encode(data).decode()
        await self._send({"event": "output", "terminal": number, "data": text, "stream": name})
        await window.take(len(data))


def _set_size(descriptor: int, request: Mapping[str, Any]) -> None:
    size = struct.pack("HHHH", int(request.get("rows", 24)), int(request.get("columns", 80)), 0, 0)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)
