"""DSCP and ECN of payload in UDP without IPsec, judged by scapy (RFC 5555 §4.1.1)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6

from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import Encapsulation, Tunnel, TunnelRoute
from dsmip_ipsec.userspace.udp_tunnels import UdpTunnelTable, decapsulated

TUNNEL = Tunnel(
    IPv6Address("2001:db8:100::100"),
    IPv4Address("10.0.0.100"),
    IPv4Address("203.0.113.2"),
    Encapsulation(4191, 4191),
)
EF = 46 << 2
NOT_ECT, ECT1, ECT0, CE = range(4)


def packet(version: int, traffic_class: int) -> bytes:
    if version == 4:
        header = IP(src="203.0.113.200", dst="192.0.2.200", tos=traffic_class)
        return bytes(header / ICMP() / b"payload")
    header6 = IPv6(src="2001:db8:100::100", dst="2001:db8::200", tc=traffic_class, fl=0xABCDE)
    return bytes(header6 / ICMPv6EchoRequest() / b"payload")


def table() -> UdpTunnelTable:
    made = UdpTunnelTable()
    routes = tuple(
        TunnelRoute(ip_network(destination), TUNNEL.key) for destination in ("0.0.0.0/0", "::/0")
    )
    made.replace(DesiredState(tunnels=(TUNNEL,), routes=routes))
    return made


@pytest.mark.rfc("5555-4.1.1-1", "5555-4.1.1-2")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("inner", "outer"),
    [(0, 0), (EF, EF), (EF | ECT0, EF | ECT0), (EF | ECT1, EF | ECT1), (CE, ECT0)],
)
def test_outwards(version: int, inner: int, outer: int) -> None:
    outgoing = table().outgoing(packet(version, inner))
    assert outgoing is not None
    assert outgoing.traffic_class == outer
    assert outgoing.packet == packet(version, inner), "the inner packet goes as it is"


@pytest.mark.rfc("5555-4.1.1-1", "5555-4.1.1-2")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("inner", "outer", "delivered"),
    [
        (EF | ECT0, EF | ECT0, EF | ECT0),
        (EF | ECT0, EF | CE, EF | CE),
        (ECT1, CE, CE),
        (EF | CE, ECT0, EF | CE),
        (EF | ECT0, 0x28 | ECT0, EF | ECT0),  # another domain's DSCP outside: RFC 2983, pipe
        (EF | NOT_ECT, EF | CE, None),
    ],
)
def test_inwards(version: int, inner: int, outer: int, delivered: int | None) -> None:
    made = decapsulated(packet(version, inner), outer)
    if delivered is None:
        assert made is None
        return
    assert made == packet(version, delivered), "with scapy's checksum, and nothing else changed"
