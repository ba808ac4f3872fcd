"""Binding updates through kernel ESP into the home agent's engine, and what doesn't get there."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest
from figures import many_descriptors
from home_agent_bench import AGENT, home_agent
from scapy.layers.inet6 import MIP6MH_BA
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.kernel.mobility_socket import MobilitySocket
from dsmip_ipsec.wire.ip import IPPROTO_MH


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_netns():
        yield


def xfrm_stat(name: str) -> int:
    for line in Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines():
        if line.split()[0] == name:
            return int(line.split()[1])
    raise AssertionError(f"no counter {name}")


@pytest.mark.rfc("5555-2.3.2.2-3", "5555-2.3.2.2-5", "5555-4.2-2")
async def test_v4addr_and_z_reach_the_engine_and_the_answer_goes_back(tmp_path: Path) -> None:
    """RFC 5555 §5.2.1: V4ADDR and Z are passed along with the packet through IPsec, both ways."""
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        node.send(node.protected(node.update(7)))
        answer = await node.answer()
        assert (answer.src, answer.dst) == (str(AGENT), str(node.home_address))
        acknowledgement = answer[MIP6MH_BA]
        assert (acknowledgement.status, acknowledgement.seq) == (0, 7)
        (binding,) = (await bench.status())["bindings"]
        assert binding["outer_address"] == str(node.v4addr)
        assert binding["outer_port"] == node.port
        assert binding["nat_detected"] is True  # the care-of address option says 10.0.0.2


@pytest.mark.rfc("5555-5-2", "6275-10.3.1-2")
async def test_an_unprotected_binding_update_is_dropped_and_counted(tmp_path: Path) -> None:
    """RFC 5555 §5: the binding update MUST be protected using ESP transport mode."""
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        node.send(bytes(node.update(1)))
        await bench.until(lambda: _at_least(bench.counter("signalling.unprotected"), 1), "counted")
        assert (await bench.status())["bindings"] == []
        assert await bench.counter("received.binding_update") == 0
        # And the daemon goes on.
        node.send(node.protected(node.update(2)))
        assert (await node.answer())[MIP6MH_BA].status == 0


@pytest.mark.rfc("5555-5-2", "6275-10.3.1-2")
async def test_a_native_unprotected_binding_update_is_dropped(tmp_path: Path) -> None:
    """Straight to the raw socket, without UDP: the kernel's policy stops it."""
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        ip(f"addr add {node.home_address}/128 dev lo nodad")
        before = xfrm_stat("XfrmInTmplMismatch")
        sender = MobilitySocket()
        try:
            sender.inject(bytes(node.update(1)), node.home_address, AGENT, 0)
        finally:
            sender.close()
        await bench.until(lambda: xfrm_stat("XfrmInTmplMismatch") > before, "dropped by policy")
        assert (await bench.status())["bindings"] == []


@pytest.mark.rfc("6275-10.3.1-2")
async def test_a_binding_update_under_another_peers_sa_is_dropped(tmp_path: Path) -> None:
    """RFC 4877 §4.2: node 1 has good keys, but not for node 0's home address."""
    async with home_agent(tmp_path, 2) as bench:
        victim, attacker = bench.nodes
        before = xfrm_stat("XfrmInStateMismatch") + xfrm_stat("XfrmInTmplMismatch")
        forged = attacker.update(9, home_address=victim.home_address)
        attacker.send(attacker.protected(forged))
        await bench.until(
            lambda: xfrm_stat("XfrmInStateMismatch") + xfrm_stat("XfrmInTmplMismatch") > before,
            "dropped by the kernel",
        )
        await bench.until(
            lambda: _at_least(bench.counter("signalling.stopped_by_ipsec"), 1), "counted"
        )
        assert (await bench.status())["bindings"] == []


async def test_a_replayed_binding_update_is_dropped(tmp_path: Path) -> None:
    """Also one that comes from elsewhere, to draw the node's traffic there."""
    async with home_agent(tmp_path, 2) as bench:
        node, elsewhere = bench.nodes
        octets = node.protected(node.update(3))
        node.send(octets)
        await node.answer()
        before = xfrm_stat("XfrmInStateSeqError")
        elsewhere.send(octets)
        await bench.until(lambda: xfrm_stat("XfrmInStateSeqError") > before, "seen as a replay")
        (binding,) = (await bench.status())["bindings"]
        assert binding["outer_port"] == node.port


async def test_a_wrong_icv_is_dropped(tmp_path: Path) -> None:
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        octets = bytearray(node.protected(node.update(3)))
        octets[-1] ^= 1
        before = xfrm_stat("XfrmInStateProtoError")
        node.send(bytes(octets))
        await bench.until(lambda: xfrm_stat("XfrmInStateProtoError") > before, "seen")
        assert (await bench.status())["bindings"] == []


async def test_answers_of_many_nodes_are_never_swapped(tmp_path: Path) -> None:
    """Thirty nodes behind three NAT addresses, their updates interleaved at random."""
    async with home_agent(tmp_path, 30) as bench:
        rng = random.Random(5555)
        rounds = [(node, number) for number in range(1, 6) for node in bench.nodes]
        rng.shuffle(rounds)
        sent: dict[int, list[int]] = {}
        for node, number in rounds:
            node.send(node.protected(node.update(number)))
            sent.setdefault(node.index, []).append(number)
        for node in bench.nodes:
            for _ in sent[node.index]:
                answer = await node.answer()  # scapy decrypts it with this node's key
                assert answer.dst == str(node.home_address)
        bindings = {b["home_address"]: b for b in (await bench.status())["bindings"]}
        for node in bench.nodes:
            binding = bindings[str(node.home_address)]
            assert binding["outer_address"] == str(node.v4addr)
            assert binding["outer_port"] == node.port
            # What counts is the newest by sequence number, whenever it came.
            assert binding["sequence"] == _last_accepted(sent[node.index])


async def test_a_thousand_nodes_behind_three_addresses(tmp_path: Path) -> None:
    """All of them twice, a hundred under way at any time; each hears what is meant for it only."""
    many_descriptors()
    async with home_agent(tmp_path, 1000) as bench:
        rng = random.Random(4191)
        for number in (1, 2):
            order = rng.sample(bench.nodes, len(bench.nodes))
            for start in range(0, len(order), 100):
                under_way = order[start : start + 100]
                for node in under_way:
                    node.send(node.protected(node.update(number)))
                for node in rng.sample(under_way, len(under_way)):
                    answer = await node.answer()
                    assert (answer.dst, answer[MIP6MH_BA].seq) == (str(node.home_address), number)
        bindings = (await bench.status())["bindings"]
        assert {(b["home_address"], b["outer_address"], b["outer_port"]) for b in bindings} == {
            (str(node.home_address), str(node.v4addr), node.port) for node in bench.nodes
        }
        with pytest.raises(TimeoutError):
            await bench.nodes[500].answer(0.1)


async def test_garbage_on_port_4191_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        rng = random.Random(4191)
        good = node.protected(node.update(1))
        for _ in range(200):
            octets = bytearray(rng.choice([good, rng.randbytes(rng.randrange(120))]))
            for _ in range(rng.randrange(4)):
                if octets:
                    octets[rng.randrange(len(octets))] = rng.randrange(256)
            node.send(bytes(octets[: rng.randrange(len(octets) + 1)]))
        await bench.until(
            lambda: _at_least(bench.counter("signalling.udp_received"), 200), "all were read"
        )
        node.send(node.protected(node.update(2), sequence=500))
        assert (await node.answer())[MIP6MH_BA].status == 0


async def test_nothing_is_left_when_the_daemon_stops(tmp_path: Path) -> None:
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        node.send(node.protected(node.update(1)))
        await node.answer()
        assert "priority 5555" in ip("xfrm policy")
    assert "priority 5555" not in ip("xfrm policy")
    assert f"reqid {node.ids.mirror}" not in ip("xfrm state")
    assert f"reqid {node.ids.signalling}" in ip("xfrm state"), "charon's SAs are not ours to delete"
    assert "5550" not in ip("-6 rule")
    assert "dsmip0" not in ip("link")


async def test_mobility_header_types_in_inbound_selectors_still_dont_work(tmp_path: Path) -> None:
    """docs/kernel-notes.md: 6.1 reads the type behind the message. When this fails, the kernel
    has learnt it, and inbound policies can name the type as RFC 5555 §5.2.1 does."""
    async with home_agent(tmp_path) as bench:
        (node,) = bench.nodes
        template = f"tmpl proto esp reqid {node.ids.mirror} mode transport"
        selector = f"src {node.home_address} dst {AGENT} proto {IPPROTO_MH}"
        # Stronger than ours: whatever it matches, it lets through; the rest meets a block.
        ip(f"xfrm policy add dir in {selector} type 5 priority 10 {template}")
        wider = f"src {node.home_address} dst {AGENT}/127"
        ip(f"xfrm policy add dir in {wider} priority 20 action block")
        before = xfrm_stat("XfrmInPolBlock")
        node.send(node.protected(node.update(1)))
        await bench.until(lambda: xfrm_stat("XfrmInPolBlock") > before, "the type wasn't seen")


async def _at_least(count: Awaitable[int], wanted: int) -> bool:
    return await count >= wanted


def _last_accepted(numbers: list[int]) -> int:
    """RFC 6275 §9.5.1: a sequence number must be greater than the last accepted one."""
    last = numbers[0]
    for number in numbers[1:]:
        last = max(last, number)
    return last
