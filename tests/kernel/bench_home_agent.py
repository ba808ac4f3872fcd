"""A home agent's daemon with a thousand mobile nodes: binding updates answered, and SAs moved, per
second. Run by `make bench`, in the guest kernel.

Mobile nodes send only while the clock stands: what is measured is the daemon and the kernel's ESP.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from figures import judge, many_descriptors
from home_agent_bench import AGENT, AGENT4, PORT, Bench, MobileNode, home_agent
from scapy.layers.inet6 import MIP6MH_BA
from xfrm_netns import fresh_netns

from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ipsec.esp import EspSender
from dsmip_ipsec.ipsec.model import Algorithm, Mode, SecretKey, SecurityAssociation
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.wire.ip import IPPROTO_ESP, IPPROTO_MH
from dsmip_ipsec.wire.mobility import BindingUpdate, encode
from dsmip_ipsec.wire.options import IPv4CareOfAddress
from dsmip_ipsec.xfrm.socket import XfrmSocket

NODES = int(os.environ.get("DSMIP_NODES", "1000"))
UPDATES_A_SECOND = 1000
MOVES_A_SECOND = 300
# What the default receive buffer of the daemon's UDP socket holds.
BURST = 100


@pytest.fixture
def namespace() -> Iterator[None]:
    many_descriptors()
    with fresh_netns():
        yield


@pytest.fixture
async def bench(
    namespace: None, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    async with home_agent(
        tmp_path, NODES, mode=MobilityMode.RENEGOTIATE, data=request.param
    ) as made:
        yield made


def packed(nodes: Sequence[MobileNode], number: int) -> list[bytes]:
    """By our own ESP: scapy, who judges the answers, needs minutes for so many."""
    return [_packed(node, number) for node in nodes]


def _packed(node: MobileNode, number: int) -> bytes:
    home = node.home_address
    care_of = IPv4CareOfAddress(IPv4Address("10.0.0.2"))
    update = BindingUpdate(number, 100, True, True, options=(care_of,))
    association = SecurityAssociation(
        node.spi_up,
        home,
        AGENT,
        Mode.TRANSPORT,
        node.ids.mirror,
        aead=Algorithm("rfc4106(gcm(aes))", SecretKey(node.key_up), 128),
    )
    sender = EspSender(association, sequence=number)
    sealed = sender.seal(encode(update, home, AGENT), IPPROTO_MH)
    header = struct.pack("!IHBB", 6 << 28, len(sealed), IPPROTO_ESP, 64)
    return header + home.packed + AGENT.packed + sealed


async def answered(bench: Bench, count: int, started: float) -> float:
    """Seconds from ``started`` until the daemon has sent ``count`` answers in all."""
    counters = bench.daemon._path._counters
    try:
        async with asyncio.timeout(10):
            while counters["signalling.sent"] < count:
                await asyncio.sleep(0)
    except TimeoutError:
        status = await bench.status()
        raise AssertionError(f"not {count} answers: {status['counters']}") from None
    return time.perf_counter() - started


async def settled(bench: Bench) -> None:
    """Nothing is left to reconcile."""
    reconciler = bench.daemon._reconciler
    assert isinstance(reconciler, Reconciler)
    async with asyncio.timeout(60):
        while reconciler._scheduled or reconciler._live.dirty:
            await asyncio.sleep(0)


async def bursts(
    bench: Bench, number: int, sockets: Sequence[socket.socket], *, moves: bool
) -> float:
    """One update of each node, number ``number``; returns the seconds of work."""
    octets = packed(bench.nodes, number)
    spent = 0.0
    profile = cProfile.Profile() if os.environ.get("DSMIP_PROFILE") and number > 1 else None
    for at in range(0, NODES, BURST):
        sent = bench.daemon._path._counters["signalling.sent"]
        for packet, sender in zip(octets[at : at + BURST], sockets[at : at + BURST], strict=True):
            sender.sendto(packet, (str(AGENT4), PORT))
        if profile is not None:
            profile.enable()
        started = time.perf_counter()
        took = await answered(bench, sent + BURST, started)
        if moves:
            await settled(bench)
            took = time.perf_counter() - started
        spent += took
        if profile is not None:
            profile.disable()
        await settled(bench)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
    return spent


@pytest.mark.parametrize("bench", [False], indirect=True)
async def test_protected_binding_updates_a_second(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    sockets = [node.socket for node in bench.nodes]
    await bursts(bench, 1, sockets, moves=True)  # the registrations
    spent = await bursts(bench, 2, sockets, moves=False)
    for node in bench.nodes[::97]:  # scapy can read them, and they accept
        for number in (1, 2):
            acknowledgement = (await node.answer())[MIP6MH_BA]
            assert (acknowledgement.status, acknowledgement.seq) == (0, number)
    judge(
        capsys, f"protected BUs, {NODES} mobile nodes", NODES / spent, UPDATES_A_SECOND, "a second"
    )


@pytest.mark.parametrize("bench", [True], indirect=True)
async def test_mobile_nodes_moved_a_second(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each node's update comes from another NAT: its two data SAs and the policies follow."""
    await bursts(bench, 1, [node.socket for node in bench.nodes], moves=True)
    elsewhere: list[socket.socket] = []
    places: list[IPv4Address] = []
    try:
        for node in bench.nodes:
            places.append(IPv4Address("192.0.2.10") + (node.index + 1) % 3)
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sender.bind((str(places[-1]), 0))
            elsewhere.append(sender)
        spent = await bursts(bench, 2, elsewhere, moves=True)
    finally:
        for sender in elsewhere:
            sender.close()
    with XfrmSocket() as xfrm:
        states = {state.reqid: [] for state in xfrm.dump_states()}  # type: ignore[var-annotated]
        for state in xfrm.dump_states():
            states[state.reqid].append({state.source, state.destination})
    for node, place in zip(bench.nodes, places, strict=True):
        assert states[node.ids.data] == [{AGENT4, place}] * 2
    reconciler = bench.daemon._reconciler
    assert isinstance(reconciler, Reconciler)
    assert await reconciler.reconcile(verify=True) == ()
    judge(capsys, f"mobile nodes moved, of {NODES}", NODES / spent, MOVES_A_SECOND, "a second")
