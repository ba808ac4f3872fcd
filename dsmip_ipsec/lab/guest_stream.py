"""A byte stream between the host and a program in a guest, besides that program's output.

On the host it is one end of a socket pair; each kind of guest pumps it to and from whatever leads
into the guest (for User-Mode Linux two FIFOs behind a serial line). In the guest the program finds
the device in ``$DSMIP_STREAM`` and reads it by :class:`Acknowledged`. Octets arrive as they
were sent, in order; there is no end of file in the guest, since a guest ends with its host side.

A serial line's terminal has a buffer of 4096 octets. Once that is full the kernel throttles the
line, and User-Mode Linux (6.1) never listens to it again: no request arrives any more. So no more
than ``WINDOW`` octets are on their way into a guest; it says what it has read by octets ``ACK``,
which the pump takes out again. What a guest writes must have none of its own (JSON has none).
"""

from __future__ import annotations

import asyncio
import os
import socket

STREAM_VARIABLE = "DSMIP_STREAM"

WINDOW = 2048
ACK = b"\x06"
ACK_OCTETS = 256  # what one of them stands for


class _Credit:
    """Octets that may be sent into the guest. There is one at least when :meth:`wait` returns."""

    def __init__(self) -> None:
        self.octets = WINDOW
        self._more = asyncio.Event()

    async def wait(self) -> None:
        while self.octets <= 0:
            self._more.clear()
            await self._more.wait()

    def add(self, octets: int) -> None:
        # Not above the window, whatever the guest claims.
        self.octets = min(WINDOW, self.octets + octets)
        self._more.set()


async def pump(stream: socket.socket, from_guest: int, to_guest: int) -> None:
    """Copy until the other end of ``stream`` is closed, or this is cancelled.

    ``from_guest`` and ``to_guest``: non-blocking descriptors.
    """
    stream.setblocking(False)
    credit = _Credit()
    outward = asyncio.ensure_future(_copy_out(stream, from_guest, credit))
    try:
        await _copy_in(stream, to_guest, credit)
    except (ConnectionError, BrokenPipeError):
        pass  # whoever held the other end is gone
    finally:
        outward.cancel()
        await asyncio.gather(outward, return_exceptions=True)


async def _copy_in(stream: socket.socket, to_guest: int, credit: _Credit) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await credit.wait()
        data = await loop.sock_recv(stream, credit.octets)
        if not data:
            return
        credit.octets -= len(data)
        await write_all(to_guest, data)


async def _copy_out(stream: socket.socket, from_guest: int, credit: _Credit) -> None:
    loop = asyncio.get_running_loop()
    while data := await read_some(from_guest):
        credit.add(ACK_OCTETS * data.count(ACK))
        await loop.sock_sendall(stream, data.replace(ACK, b""))


class Acknowledged:
    """The guest's end of the stream ``descriptor``, to be read by one task only. ``pumped``: there
    is a pump at the other end; a stream within one kernel needs none, and no acknowledgements."""

    def __init__(self, descriptor: int, *, pumped: bool) -> None:
        self._descriptor = descriptor
        self._pumped = pumped
        self._owed = 0

    async def read(self) -> bytes:
        """What there is to read, waiting for it; b"" at the stream's end."""
        data = await read_some(self._descriptor)
        if self._pumped:
            count, self._owed = divmod(self._owed + len(data), ACK_OCTETS)
            await write_all(self._descriptor, ACK * count)
        return data


async def read_some(descriptor: int, size: int = 65536) -> bytes:
    """What there is to read from a non-blocking descriptor; b"" at its end."""
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            await _ready(descriptor, write=False)


async def write_all(descriptor: int, data: bytes) -> None:
    """Write everything to a non-blocking descriptor."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            await _ready(descriptor, write=True)


async def _ready(descriptor: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if write else loop.add_reader)(descriptor, note)
    try:
        await ready
    finally:
        (loop.remove_writer if write else loop.remove_reader)(descriptor)
