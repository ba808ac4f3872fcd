"""A byte stream between the host and a program in a guest, besides that program's output.

On the host it is one end of a socket pair; each kind of guest pumps it to and from whatever leads
into the guest (for User-Mode Linux two FIFOs behind a serial line). In the guest the program finds
the device in ``$DSMIP_STREAM``. Octets arrive as they were sent, in order; there is no end of file
in the guest, since a guest ends with its host side.
"""

from __future__ import annotations

import asyncio
import os
import socket

STREAM_VARIABLE = "DSMIP_STREAM"

_CHUNK = 4096


async def pump(stream: socket.socket, from_guest: int, to_guest: int) -> None:
    """Copy until the other end of ``stream`` is closed, or this is cancelled.

    ``from_guest`` and ``to_guest``: non-blocking descriptors.
    """
    stream.setblocking(False)
    outward = asyncio.ensure_future(_copy_out(stream, from_guest))
    try:
        await _copy_in(stream, to_guest)
    except (ConnectionError, BrokenPipeError):
        pass  # whoever held the other end is gone
    finally:
        outward.cancel()
        await asyncio.gather(outward, return_exceptions=True)


async def _copy_in(stream: socket.socket, to_guest: int) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(stream, _CHUNK):
        await write_all(to_guest, data)


async def _copy_out(stream: socket.socket, from_guest: int) -> None:
    loop = asyncio.get_running_loop()
    while data := await read_some(from_guest):
        await loop.sock_sendall(stream, data)


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
