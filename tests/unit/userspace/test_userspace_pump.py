"""The pump between two pairs of sockets, which carry a packet a read, as a TUN does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from userspace_samples import AGENT4, HOME6, NAT, PEER6, packet6, pair

from dsmip_ipsec.userspace.engine import Engine
from dsmip_ipsec.userspace.outcome import Drop, DropReason
from dsmip_ipsec.userspace.pump import Pump
from dsmip_ipsec.wire.ip import build_udp4

DEADLINE = 10


@dataclass
class Wire:
    """Two nodes' pumps, back to back: ``here`` and ``there`` are the clear sides."""

    node: Engine
    agent: Engine
    here: socket.socket
    there: socket.socket
    outside: socket.socket
    pumps: tuple[Pump, Pump]
    other: list[DropReason]


@pytest.fixture
def wire() -> Iterator[Wire]:
    def sockets() -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setblocking(False)
        return ends

    node, agent = pair(encapsulated=True)
    here, node_inner = sockets()
    there, agent_inner = sockets()
    node_outer, agent_outer = sockets()
    other: list[DropReason] = []

    def note(packet: bytes, drop: Drop) -> None:
        other.append(drop.reason)

    pumps = (
        Pump(node, node_inner.fileno(), node_outer.fileno()),
        Pump(agent, agent_inner.fileno(), agent_outer.fileno(), other=note),
    )
    yield Wire(node, agent, here, there, node_outer, pumps, other)
    for end in (here, there, node_inner, agent_inner, node_outer, agent_outer):
        end.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0)


async def test_packets_cross_both_ways(wire: Wire) -> None:
    loop = asyncio.get_running_loop()
    for pump in wire.pumps:
        pump.start()
    async with asyncio.timeout(DEADLINE):
        for _ in range(100):
            there, back = packet6(HOME6, PEER6), packet6(PEER6, HOME6)
            wire.here.send(there)
            assert await loop.sock_recv(wire.there, 65535) == there
            wire.there.send(back)
            assert await loop.sock_recv(wire.here, 65535) == back
    for pump in wire.pumps:
        pump.stop()
        assert pump.lost == 0
    wire.here.send(packet6(HOME6, PEER6))
    await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        wire.there.recv(65535)


async def test_what_is_not_esp_goes_to_whom_it_concerns(wire: Wire) -> None:
    for pump in wire.pumps:
        pump.start()
    wire.outside.send(build_udp4(NAT, 4500, AGENT4, 4500, b"\xff"))
    wire.outside.send(packet6(HOME6, PEER6))
    await until(lambda: len(wire.other) == 2)
    assert wire.other == [DropReason.KEEPALIVE, DropReason.UNPROTECTED]
    with pytest.raises(BlockingIOError):
        wire.there.recv(65535)
    for pump in wire.pumps:
        pump.stop()


async def test_a_closed_side_stops_that_side_only(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    for pump in wire.pumps:
        pump.start()
    wire.here.close()
    await until(lambda: wire.pumps[0].failed is not None)
    # The other direction runs on; what it can't deliver is counted.
    wire.there.send(packet6(PEER6, HOME6))
    await until(lambda: wire.pumps[0].lost == 1)
    # And the closed one isn't asked again and again.
    assert caplog.text.count("no more packets") == 1
    for pump in wire.pumps:
        pump.stop()


def test_descriptors_stay_the_callers(wire: Wire) -> None:
    async def short() -> None:
        wire.pumps[0].start()
        wire.pumps[0].stop()

    asyncio.run(short())
    os.fstat(wire.outside.fileno())
