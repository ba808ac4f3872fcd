"""The stream into a guest: no more is on its way than a serial line's terminal can hold."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from dsmip_ipsec.lab.guest_stream import ACK, WINDOW, Acknowledged, pump, read_some

SENT = bytes(range(7, 256)) * 100  # ACK isn't in it


@pytest.fixture
async def ends() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """The client's end, and the guest's, which is a socket here; the pump runs between them."""
    client, ours = socket.socketpair()
    theirs, guest = socket.socketpair()
    for end in (client, theirs, guest):
        end.setblocking(False)
    pumping = asyncio.ensure_future(pump(ours, theirs.fileno(), theirs.fileno()))
    yield client, guest
    pumping.cancel()
    await asyncio.gather(pumping, return_exceptions=True)
    for end in (client, ours, theirs, guest):
        end.close()


async def _in_flight(guest: socket.socket) -> int:
    """How much waits at the guest's end once nothing more comes."""
    seen = -1
    while True:
        await asyncio.sleep(0.05)
        now = len(guest.recv(1 << 20, socket.MSG_PEEK))
        if now == seen:
            return now
        seen = now


async def test_only_what_was_read_makes_room(ends: tuple[socket.socket, socket.socket]) -> None:
    client, guest = ends
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(client, SENT))
    assert await _in_flight(guest) == WINDOW  # the guest hasn't read anything yet
    reader = Acknowledged(guest.fileno(), pumped=True)
    got = b""
    async with asyncio.timeout(10):
        while len(got) < len(SENT):
            data = await reader.read()
            assert len(data) <= WINDOW
            got += data
        await sending
    assert got == SENT


async def test_acknowledgements_stay_between_pump_and_guest(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    client, guest = ends
    os.write(guest.fileno(), b"an" + ACK + b"swer" + ACK * 3)
    # Nor does a guest that acknowledges what it never got open the window further.
    loop = asyncio.get_running_loop()
    got = b""
    async with asyncio.timeout(10):
        while len(got) < 6:
            got += await read_some(client.fileno())
    assert got == b"answer"
    sending = asyncio.ensure_future(loop.sock_sendall(client, SENT))
    assert await _in_flight(guest) == WINDOW
    sending.cancel()


async def test_without_a_pump_nothing_is_acknowledged() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        os.write(other.fileno(), SENT[:4000])
        assert await Acknowledged(one.fileno(), pumped=False).read() == SENT[:4000]
        with pytest.raises(BlockingIOError):
            other.recv(1)
