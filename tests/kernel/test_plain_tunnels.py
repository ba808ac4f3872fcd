"""Tunnels without IPsec on a real kernel: payload of both families, at each handover."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.cli.situation_file import SituationFile
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import UDP_TUNNELS
from dsmip_ipsec.ipsec.plan import Verb
from dsmip_ipsec.ipsec.situation import state_of
from dsmip_ipsec.kernel.tunnels import PlainTunnels
from dsmip_ipsec.lab.netns import enter_descriptor
from dsmip_ipsec.mobility.types import OuterAddress
from dsmip_ipsec.userspace.udp_tunnels import Outgoing, UdpTunnels

HOME, HOME4 = IPv6Address("2001:db8:100::100"), IPv4Address("203.0.113.200")
AGENT, AGENT4 = "2001:db8:100::1", "203.0.113.2"
FAR, FAR4 = "2001:db8:ffff::1", "198.51.100.1"  # correspondent nodes, addresses of the agent's lo
PREFIX = IPv6Network("2001:db8:100:1::/64")
PLACES: dict[str, dict[str, Any]] = {
    "ipv6": {"care_of_address": "2001:db8:2::2"},
    "ipv6 2": {"care_of_address": "2001:db8:2::3"},
    "public": {"care_of_address": "192.0.2.10"},
    "public 2": {"care_of_address": "192.0.2.11"},
    "udp": {"care_of_address": "192.0.2.10", "force_udp": True},
}


def state(role: str, place: str | None) -> DesiredState:
    file = SituationFile.model_validate(
        {
            "role": role, "protect_data": False, "home_address": str(HOME),
            "ipv4_home_address": str(HOME4), "home_agent": AGENT, "home_agent_ipv4": AGENT4,
            "mobile_network_prefixes": [str(PREFIX)],
            **({"binding": PLACES[place]} if place is not None else {}),
        }
    )  # fmt: skip
    return state_of(file.situation(), [])


@dataclass
class End:
    role: str
    namespace: int
    tunnels: PlainTunnels
    udp: UdpTunnels
    sockets: dict[str, socket.socket]

    def enter(self) -> None:
        enter_descriptor(self.namespace)

    def ip(self, arguments: str) -> str:
        self.enter()
        return ip(arguments)

    async def at(self, place: str | None) -> list[Verb]:
        wanted = state(self.role, place)
        self.udp.replace(wanted)
        return [operation.verb for operation in await self.tunnels.reconcile(wanted)]

    def bind(self, address: str) -> None:
        self.enter()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.bind((address, 4191))
        self.sockets[address] = udp
        asyncio.get_running_loop().add_reader(udp.fileno(), self._readable, udp)

    def _readable(self, udp: socket.socket) -> None:
        packet, (address, port) = udp.recvfrom(65535)
        self.udp.receive(packet, OuterAddress(IPv4Address(address), port), 0)

    def send(self, outgoing: Outgoing) -> None:
        remote = outgoing.remote
        self.sockets[str(outgoing.local)].sendto(
            outgoing.packet, (str(remote.address), remote.port)
        )


@dataclass
class Bench:
    mobile_node: End
    home_agent: End
    wire: socket.socket

    async def at(self, place: str) -> None:
        for end in (self.home_agent, self.mobile_node):
            await end.at(place)

    async def reaches(self, source: str, destination: str, *, backwards: bool = False) -> None:
        """A datagram from the mobile node's namespace arrives at the agent's, and one back."""
        ends = (self.mobile_node, self.home_agent)
        here, there = reversed(ends) if backwards else ends
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        with contextlib.ExitStack() as stack:
            there.enter()
            server = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            server.bind((destination, 7))
            here.enter()
            client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            client.bind((source, 0))
            for each in (server, client):
                each.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(client, b"there", (destination, 7))
            async with asyncio.timeout(3):
                data, sender = await loop.sock_recvfrom(server, 100)
                assert (data, sender[0]) == (b"there", source)
                await loop.sock_sendto(server, b"back", sender)
                assert await loop.sock_recv(client, 100) == b"back"

    def seen(self) -> list[bytes]:
        """IP packets on the link, both directions, since the last call."""
        frames = []
        while select.select([self.wire], [], [], 0.1)[0]:
            frame = self.wire.recv(4096)
            if frame[12:14] in (b"\x08\x00", b"\x86\xdd"):
                frames.append(frame[14:])
        return frames


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, before)
        ends: list[End] = []
        for role in ("home_agent", "mobile_node"):
            stack.enter_context(fresh_netns())
            namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
            stack.callback(os.close, namespace)
            end = End(role, namespace, PlainTunnels(), UdpTunnels(lambda _: None), {})
            end.udp = UdpTunnels(end.send)
            ends.append(end)
        agent, mobile = ends
        ip(f"link add mn0 type veth peer name ha0 netns /proc/{os.getpid()}/fd/{agent.namespace}")
        for command in (
            "link set mn0 up", "addr add 2001:db8:2::2/64 dev mn0 nodad",
            "addr add 2001:db8:2::3/64 dev mn0 nodad", "addr add 192.0.2.10/24 dev mn0",
            "addr add 192.0.2.11/24 dev mn0", f"addr add {HOME}/128 dev lo nodad home",
            f"addr add {PREFIX[1]}/128 dev lo nodad", f"addr add {HOME4}/32 dev lo",
            f"-6 route add {AGENT} via 2001:db8:2::1", f"route add {AGENT4} via 192.0.2.1",
        ):  # fmt: skip
            mobile.ip(command)
        for command in (
            "link set ha0 up", "addr add 2001:db8:2::1/64 dev ha0 nodad",
            "addr add 192.0.2.1/24 dev ha0", f"addr add {AGENT}/128 dev lo nodad",
            f"addr add {AGENT4}/32 dev lo", f"addr add {FAR}/128 dev lo nodad",
            f"addr add {FAR4}/32 dev lo",
        ):  # fmt: skip
            agent.ip(command)
        agent.enter()
        wire = stack.enter_context(
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        )
        wire.bind(("ha0", 0))
        for end in ends:
            end.enter()
            await end.tunnels.open()
            end.udp.open()
            end.ip(f"link set {UDP_TUNNELS} up")
            end.bind(AGENT4 if end is agent else "192.0.2.10")
        try:
            yield Bench(mobile, agent, wire)
        finally:
            for end in ends:
                end.enter()
                await end.tunnels.close()
                end.udp.close()
                for udp in end.sockets.values():
                    asyncio.get_running_loop().remove_reader(udp.fileno())
                    udp.close()
            enter_descriptor(before)


OUTER = {"ipv6": (6, {4, 41}), "public": (4, {4, 41}), "udp": (4, {17})}


@pytest.mark.parametrize("place", OUTER)
async def test_payload_of_both_families_goes_through(bench: Bench, place: str) -> None:
    await bench.at(place)
    bench.seen()
    await bench.reaches(str(HOME), FAR)
    await bench.reaches(str(HOME4), FAR4)
    await bench.reaches(FAR, str(HOME), backwards=True)
    await bench.reaches(str(PREFIX[1]), FAR)
    version, protocols = OUTER[place]
    packets = [p for p in bench.seen() if p[0] >> 4 == version or p[6] != 58]
    outer = [p for p in packets if p[0] >> 4 == version]
    outer = [p for p in outer if (p[9] if version == 4 else p[6]) not in (1, 58, 0)]
    assert len(outer) == 8, "four datagrams there and back"
    assert {p[9] if version == 4 else p[6] for p in outer} <= protocols
    if place == "udp":
        for octets in outer:
            udp = IP(octets)[UDP]
            assert (udp.sport, udp.dport) == (4191, 4191)
            inner = bytes(udp.payload)
            # RFC 5555 §4.2: nothing between the UDP header and the inner IP header.
            assert (IPv6(inner).plen if inner[0] >> 4 == 6 else IP(inner).len) > 0


async def test_handovers_between_all_places(bench: Bench) -> None:
    await bench.at("public")
    for place in ("public 2", "ipv6", "ipv6 2", "public", "udp", "ipv6", "udp", "public 2"):
        for end in (bench.home_agent, bench.mobile_node):
            verbs = await end.at(place)
            assert verbs, place
            changes = [v for v in verbs if v in (Verb.DELETE_TUNNEL, Verb.UPDATE_ROUTE)]
            assert changes == sorted(changes, key=[Verb.UPDATE_ROUTE, Verb.DELETE_TUNNEL].index)
            assert await end.at(place) == [], "idempotent"
        await bench.reaches(str(HOME), FAR)
        await bench.reaches(str(HOME4), FAR4)
    for end in (bench.home_agent, bench.mobile_node):
        assert len([link for link in _links(end) if link.startswith("dsmip")]) == 2


async def test_only_ours_is_touched_and_all_of_ours_goes(bench: Bench) -> None:
    agent = bench.home_agent
    agent.ip("link add foreign type sit local 192.0.2.1 remote 192.0.2.99")
    agent.ip("link add dsmip4-00000000 type sit local 192.0.2.1 remote 192.0.2.98")
    agent.ip('link set dsmip4-00000000 alias "dsmip-ipsec tunnel of 2001:db8::1"')
    agent.ip("link set foreign up")
    agent.ip("route add 10.0.0.0/8 dev foreign metric 55549")
    before = set(_links(agent))
    await bench.at("public")
    agent.enter()
    await agent.tunnels.close()
    assert set(_links(agent)) == before
    assert "10.0.0.0/8" in agent.ip("route")
    await agent.tunnels.open()


async def test_after_a_crash_the_next_run_converges(bench: Bench) -> None:
    """A route and an address that someone else changed, a tunnel that lost its remote end."""
    agent = bench.home_agent
    await agent.at("public")
    name = next(link for link in _links(agent) if link.startswith("dsmip4"))
    agent.ip(f"route del {HOME4} dev {name}")
    agent.ip(f"link change {name} type sit mode any local {AGENT4} remote 192.0.2.77 ttl 64")
    agent.ip(f"-6 route add 2001:db8:dead::/48 dev {name} metric 55549")
    successor = PlainTunnels()
    await successor.open()
    verbs = [operation.verb for operation in await successor.reconcile(state(agent.role, "public"))]
    assert verbs == [Verb.UPDATE_TUNNEL, Verb.ADD_ROUTE, Verb.DELETE_ROUTE]
    await bench.mobile_node.at("public")
    await bench.reaches(str(HOME4), FAR4)
    await successor.close()
    assert not any(link.startswith(("dsmip4", "dsmip6")) for link in _links(agent))


async def test_the_home_agent_takes_from_a_udp_tunnel_only_its_own_addresses(
    bench: Bench,
) -> None:
    """RFC 6275 §10.4.5, and from the bound outer address only."""
    await bench.at("udp")
    agent = bench.home_agent
    good = bytes(IPv6(src=str(HOME), dst=FAR) / UDP(sport=9, dport=9))
    forged = bytes(IPv6(src="2001:db8:100::200", dst=FAR) / UDP(sport=9, dport=9))
    bench.mobile_node.enter()
    bench.mobile_node.sockets["192.0.2.10"].sendto(forged, (AGENT4, 4191))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.bind(("192.0.2.11", 4191))
        elsewhere.sendto(good, (AGENT4, 4191))
        elsewhere.sendto(b"", (AGENT4, 4191))
    async with asyncio.timeout(3):
        while agent.udp.counters.get("tunnel.foreign", 0) < 3:
            await asyncio.sleep(0.01)
    assert agent.udp.counters.get("tunnel.received", 0) == 0


def _links(end: End) -> list[str]:
    end.enter()
    return [str(link["ifname"]) for link in json.loads(ip("-j link show"))]
