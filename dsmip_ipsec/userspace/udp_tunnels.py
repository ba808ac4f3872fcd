"""Payload without IPsec in UDP, by this process (RFC 5555 §4.2): bare IP packets of either family
behind a UDP header of port 4191; the first four bits tell the family.

The kernel routes payload into a TUN; here it gets its UDP header, from the same socket that
signalling uses, so that a NAT sees one flow. Why not the kernel's FOU: docs/decisions.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import UDP_TUNNELS, Address, Network, Tunnel
from dsmip_ipsec.kernel.tun import MAX_PACKET, open_tun
from dsmip_ipsec.mobility.tunnel_rules import inner_traffic_class, outer_traffic_class
from dsmip_ipsec.mobility.types import OuterAddress
from dsmip_ipsec.wire.ip import traffic_class_of, with_ecn

log = logging.getLogger(__name__)

# Packets read from the TUN before signalling gets its turn.
_BURST = 64


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A packet, the local address whose socket sends it, where to, and with which TOS or traffic
    class outside."""

    packet: bytes
    local: Address
    remote: OuterAddress
    traffic_class: int


class UdpTunnelTable:
    """Which tunnel a packet belongs to; no input or output. Raises nothing: what doesn't belong
    is None."""

    def __init__(self) -> None:
        self._by_network: dict[Network, Tunnel] = {}
        self._lengths: dict[int, list[int]] = {4: [], 6: []}
        self._by_remote: dict[OuterAddress, list[Tunnel]] = {}
        self._networks: dict[IPv6Address, list[Network]] = {}

    def replace(self, wanted: DesiredState) -> None:
        """Take over the tunnels in UDP, and the routes into them, of ``wanted``."""
        self._by_network, self._by_remote, self._networks = {}, {}, {}
        tunnels = {t.key: t for t in wanted.tunnels if t.encapsulation is not None}
        for tunnel in tunnels.values():
            remote = _remote(tunnel)
            self._by_remote.setdefault(remote, []).append(tunnel)
        for route in wanted.routes:
            tunnel_ = tunnels.get(route.tunnel)
            if tunnel_ is not None:
                self._by_network[route.destination] = tunnel_
                self._networks.setdefault(tunnel_.home_address, []).append(route.destination)
        for version, lengths in self._lengths.items():
            found = {n.prefixlen for n in self._by_network if n.version == version}
            lengths[:] = sorted(found, reverse=True)

    def outgoing(self, packet: bytes) -> Outgoing | None:
        """By the longest prefix of the inner destination."""
        ends = _ends(packet)
        if ends is None:
            return None
        destination = ends[1]
        for length in self._lengths[destination.version]:
            network = ip_network((destination, length), strict=False)
            tunnel = self._by_network.get(network)
            if tunnel is not None:
                outer = outer_traffic_class(traffic_class_of(packet))
                return Outgoing(packet, tunnel.local, _remote(tunnel), outer)
        return None

    def accepts(self, packet: bytes, outer: OuterAddress) -> bool:
        """Whether ``packet`` may come out of the tunnel whose other end is ``outer``.

        RFC 6275 §10.4.5: the home agent takes from a tunnel only what comes from its mobile node's
        addresses; the mobile node takes anything from its home agent.
        """
        ends = _ends(packet)
        if ends is None:
            return False
        return any(
            ends[0] in network
            for tunnel in self._by_remote.get(outer, ())
            for network in self._networks.get(tunnel.home_address, ())
            if network.version == ends[0].version
        )


def decapsulated(packet: bytes, outer: int) -> bytes | None:
    """An IP packet as it goes on behind the tunnel, where its outer TOS or traffic class was
    ``outer``: marked if a router has marked that, None if it is lost by it (RFC 5555 §4.1.1,
    RFC 3168 §9.1.1)."""
    inner = traffic_class_of(packet)
    made = inner_traffic_class(inner, outer)
    if made is None:
        return None
    return packet if made == inner else with_ecn(packet, made & 3)


def _remote(tunnel: Tunnel) -> OuterAddress:
    assert tunnel.encapsulation is not None, "only tunnels in UDP are here"
    return OuterAddress(tunnel.remote, tunnel.encapsulation.destination_port)


def _ends(packet: bytes) -> tuple[Address, Address] | None:
    """(source, destination) of an IP packet; None of what isn't one."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    if version == 6 and len(packet) >= 40:
        return IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    return None


class UdpTunnels:
    """The TUN and the table. ``send`` puts a packet into UDP, and raises OSError if it can't."""

    def __init__(self, send: Callable[[Outgoing], None]) -> None:
        self._send = send
        self._table = UdpTunnelTable()
        self._tun = -1
        self._counters: Counter[str] = Counter()

    @property
    def counters(self) -> dict[str, int]:
        """Counts by name, ``tunnel.<what>``."""
        return dict(self._counters)

    def open(self) -> None:
        """Create the TUN interface; who routes into it has to bring it up. Raises KernelError."""
        self._tun = open_tun(UDP_TUNNELS)
        asyncio.get_running_loop().add_reader(self._tun, self._read)

    def close(self) -> None:
        """Idempotent."""
        if self._tun >= 0:
            asyncio.get_running_loop().remove_reader(self._tun)
            os.close(self._tun)
            self._tun = -1

    def replace(self, wanted: DesiredState) -> None:
        """Follow the desired state; packets from then on go by it."""
        self._table.replace(wanted)

    def receive(self, packet: bytes, outer: OuterAddress, traffic_class: int) -> None:
        """Hand a packet that came in UDP from ``outer`` to the kernel, or drop and count it."""
        if not self._table.accepts(packet, outer):
            self._counters["tunnel.foreign"] += 1
            return
        inner = decapsulated(packet, traffic_class)
        if inner is None:
            self._counters["tunnel.congested"] += 1
            return
        try:
            os.write(self._tun, inner)
        except OSError as error:
            self._counters["tunnel.malformed"] += 1
            log.info("the kernel refuses a packet from %s: %s", outer, error.strerror)
        else:
            self._counters["tunnel.received"] += 1

    def _read(self) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(self._tun, MAX_PACKET)
            except BlockingIOError:
                return
            found = self._table.outgoing(packet)
            if found is None:
                self._counters["tunnel.stray"] += 1
                continue
            try:
                self._send(found)
            except (OSError, KernelError) as error:
                self._counters["tunnel.send_failed"] += 1
                log.info("can't send to %s: %s", found.remote, error)
            else:
                self._counters["tunnel.sent"] += 1
