"""What must never travel in clear is blocked, in every case of desired state, by the kernel.

For each policy that is wanted, a packet that it selects is sent or received while IKE has no SA for
it: the kernel must count it as stopped by policy, and nothing may reach the wire or a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.cli.situation_file import SituationFile
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import Action, Address, Direction, Network, Policy, Selector
from dsmip_ipsec.ipsec.situation import Situation, state_of
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.lab.netns import enter_descriptor
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH

FAR: dict[int, Address] = {
    6: ip_network("2001:db8:ffff::1")[0], 4: ip_network("198.51.100.1")[0],
}  # fmt: skip
MACS = {"here0": "02:00:00:00:00:01", "wire0": "02:00:00:00:00:02"}
ROLES = ("mobile_node", "home_agent")
VARIANTS: dict[str, dict[str, Any]] = {
    "protected": {},
    "mobile router": {"mobile_network_prefixes": ["2001:db8:100:1::/64"]},
    "unprotected": {"protect_data": False, "prefix_discovery": True, "return_routability": True},
    "signalling only": {"protect_data": False},
}
BINDINGS: dict[str, dict[str, Any] | None] = {
    "unbound": None,
    "ipv6": {"care_of_address": "2001:db8:2::2"},
    "public": {"care_of_address": "192.0.2.10"},
    "nat": {"care_of_address": "10.0.0.2", "nat_detected": True, "outer": "192.0.2.10:40191"},
}


def situation(role: str, variant: str, place: str) -> Situation:
    binding = BINDINGS[place]
    made = SituationFile.model_validate(
        {
            "role": role, "home_address": "2001:db8:100::100",
            "ipv4_home_address": "203.0.113.200", "home_agent": "2001:db8:100::1",
            "home_agent_ipv4": "203.0.113.2", **VARIANTS[variant],
            **({} if binding is None else {"binding": binding}),
        }
    ).situation()  # fmt: skip
    return Situation(made.peering, made.binding, made.esp_care_of, away=True)


@dataclass
class Bench:
    here: int
    wire: socket.socket

    def enter(self) -> None:
        enter_descriptor(self.here)

    def stopped(self) -> int:
        """Packets that policies have stopped, whatever the reason."""
        self.enter()
        text = Path("/proc/thread-self/net/xfrm_stat").read_text()
        return sum(
            int(value)
            for name, value in re.findall(r"^(\w+)\s+(\d+)$", text, re.MULTILINE)
            if name in ("XfrmOutPolBlock", "XfrmInPolBlock", "XfrmInTmplMismatch")
        )

    def on_the_wire(self) -> list[bytes]:
        found = []
        while select.select([self.wire], [], [], 0)[0]:
            frame = self.wire.recv(4096)
            if frame[12:14] in (b"\x08\x00", b"\x86\xdd") and not _neighbour_discovery(frame):
                found.append(frame)
        return found


def _neighbour_discovery(frame: bytes) -> bool:
    """Also group management: both begin with a hop-by-hop header or are ICMPv6 133 to 137."""
    if frame[12:14] != b"\x86\xdd":
        return False
    return frame[20] == 0 or (frame[20] == IPPROTO_ICMPV6 and 130 <= frame[54] <= 143)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, before)
        stack.enter_context(fresh_netns())
        outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        stack.callback(os.close, outside)
        stack.enter_context(fresh_netns())
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        stack.callback(os.close, here)
        ip(f"link add here0 type veth peer name wire0 netns /proc/{os.getpid()}/fd/{outside}")
        ip(f"link set here0 address {MACS['here0']} up")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for name in ("all", "here0"):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
        ip("addr add 2001:db8:2::1/64 dev here0 nodad")
        ip("addr add 192.0.2.1/24 dev here0")
        for family, gateway in (("-6", "2001:db8:2::9"), ("-4", "192.0.2.9")):
            ip(f"{family} route add default via {gateway}")
            ip(f"{family} neigh add {gateway} lladdr {MACS['wire0']} dev here0")
        enter_descriptor(outside)
        ip(f"link set wire0 address {MACS['wire0']} up")
        wire = stack.enter_context(
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        )
        wire.bind(("wire0", 0))
        bench = Bench(here, wire)
        bench.enter()
        try:
            yield bench
        finally:
            enter_descriptor(before)


def _one_of(network: Network) -> Address:
    return FAR[network.version] if network.prefixlen == 0 else network[network.num_addresses > 1]


def _payload(selector: Selector) -> tuple[int, bytes]:
    """A protocol number and octets that the selector takes."""
    if selector.protocol == IPPROTO_MH:
        message = selector.mobility_header_type
        kind = 1 if message is None else message.value
        return IPPROTO_MH, bytes((59, 1, kind, 0, 0, 0)) + bytes(10)
    if selector.protocol == IPPROTO_ICMPV6:
        assert selector.icmpv6_type is not None
        return IPPROTO_ICMPV6, bytes((selector.icmpv6_type, 0, 0, 0)) + bytes(12)
    return 17, struct.pack("!HHHH", 9, 9, 16, 0) + bytes(8)


def _send(bench: Bench, selector: Selector) -> None:
    """From a local address of this namespace; only policies may stop it."""
    bench.enter()
    source, destination = _one_of(selector.source), _one_of(selector.destination)
    protocol, octets = _payload(selector)
    family = socket.AF_INET6 if source.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, protocol) as sender:
        sender.bind((str(source), 0))
        with contextlib.suppress(PermissionError):  # EPERM is how a block shows
            sender.sendto(octets, (str(destination), 0))


def _arrive(bench: Bench, selector: Selector) -> None:
    """As a packet from outside."""
    source, destination = _one_of(selector.source), _one_of(selector.destination)
    protocol, octets = _payload(selector)
    header: IP | IPv6
    if source.version == 6:
        header, kind = IPv6(src=str(source), dst=str(destination), nh=protocol), b"\x86\xdd"
    else:
        header, kind = IP(src=str(source), dst=str(destination), proto=protocol), b"\x08\x00"
    # scapy fills UDP's checksum in: without one the packet would be dropped before the policy.
    packet = bytes(header / (UDP(sport=9, dport=9) if protocol == 17 else octets))
    macs = bytes.fromhex((MACS["here0"] + MACS["wire0"]).replace(":", ""))
    bench.wire.send(macs + kind + packet)


def _local(policies: tuple[Policy, ...]) -> set[str]:
    """Addresses that have to be local for every policy to be met."""
    found = set()
    for policy in policies:
        selector = policy.selector
        if policy.direction is Direction.OUT:
            found.add(str(_one_of(selector.source)))
        if policy.direction is Direction.IN:
            found.add(str(_one_of(selector.destination)))
    return found


@pytest.mark.rfc("5555-5-2")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("variant", VARIANTS)
async def test_without_sas_no_wanted_policy_lets_anything_through(
    bench: Bench, role: str, variant: str
) -> None:
    tried: set[Policy] = set()
    for place in BINDINGS:
        here = situation(role, variant, place)
        wanted = state_of(here, [])
        reconciler = Reconciler(_always(wanted), (here.peering.reqids,))
        await reconciler.open()
        try:
            for policy in wanted.policies:
                if policy.action is Action.BYPASS:
                    continue  # what stays in a mobile network: test_daemon_mobile_router.py
                if policy not in tried:  # without SAs most are the same everywhere
                    await _stops(bench, policy, f"{place}: {policy}")
            tried.update(wanted.policies)
        finally:
            await reconciler.close()


def _always(wanted: DesiredState) -> Callable[[object, object], DesiredState]:
    return lambda peering, negotiated: wanted


async def _stops(bench: Bench, policy: Policy, what: str) -> None:
    local = _local((policy,))
    for address in local:
        bench.enter()
        ip(f"addr add {address} dev lo" + (" nodad" if ":" in address else ""))
    bench.on_the_wire()
    before = bench.stopped()
    (_send if policy.direction is Direction.OUT else _arrive)(bench, policy.selector)
    try:
        async with asyncio.timeout(2):
            while bench.stopped() == before:
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not stopped: {what}") from None
    assert bench.on_the_wire() == [], what
    assert bench.stopped() == before + 1, what
    for address in local:
        bench.enter()
        ip(f"addr del {address}{'/128' if ':' in address else '/32'} dev lo")


async def test_the_same_packets_pass_without_policies(bench: Bench) -> None:
    """What the test above sends would otherwise be on the wire: it can fail."""
    for role in ROLES:
        wanted = state_of(situation(role, "mobile router", "public"), [])
        for policy in wanted.policies:
            if policy.direction is not Direction.OUT or policy.action is Action.BYPASS:
                continue
            for address in _local((policy,)):
                bench.enter()
                ip(f"addr add {address} dev lo" + (" nodad" if ":" in address else ""))
            bench.on_the_wire()
            _send(bench, policy.selector)
            async with asyncio.timeout(2):
                while not bench.on_the_wire():
                    await asyncio.sleep(0.002)
            for address in _local((policy,)):
                ip(f"addr del {address}{'/128' if ':' in address else '/32'} dev lo")
