"""MTU, TTL, DSCP and ECN of each tunnel format (RFC 5555 §4.1.1)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.packet import Raw

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.tunnel_rules import (
    EspSizes,
    TunnelMtu,
    inner_hop_limit,
    inner_traffic_class,
    outer_traffic_class,
    tunnel_mtu,
)
from dsmip_ipsec.mobility.tunnelling import Header, TunnelFormat
from dsmip_ipsec.mobility.types import IPAddress

V4, V6 = Header.IPV4, Header.IPV6
ENDS: dict[Header, tuple[IPAddress, IPAddress]] = {
    V4: (IPv4Address("198.51.100.1"), IPv4Address("203.0.113.7")),
    V6: (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")),
}
GCM = ("AES-GCM", b"k" * 20, "NULL", None, EspSizes())
CBC = ("AES-CBC", b"k" * 16, "SHA2-256-128", b"a" * 32, EspSizes(16, 16, 16))


def made_of(*headers: Header) -> TunnelFormat:
    return TunnelFormat(headers, *ENDS[headers[0]])


def inner_packet(version: Header, length: int) -> Any:
    head: Any = (
        IP(src="192.0.2.1", dst="192.0.2.2") if version is V4 else IPv6(src="::1", dst="::2")
    )
    return head / UDP() / Raw(bytes(length - len(head) - 8))


def encapsulated(made: TunnelFormat, length: int, algorithms: Any = None) -> int:
    """How long scapy makes an inner packet of ``length``."""
    source, destination = map(str, ENDS[made.headers[0]])
    outer: Any = IP if made.headers[0] is V4 else IPv6
    inner = inner_packet(made.headers[-1], length)
    if algorithms is None:
        packet = outer(src=source, dst=destination)
        packet = packet / UDP() / Raw(bytes(inner)) if made.udp else packet / Raw(bytes(inner))
        return len(packet)
    crypt, key, auth, auth_key, _ = algorithms
    association: Any = SecurityAssociation
    sa = association(
        ESP,
        spi=1,
        crypt_algo=crypt,
        crypt_key=key,
        auth_algo=auth,
        auth_key=auth_key,
        tunnel_header=outer(src=source, dst=destination),
        nat_t_header=UDP(sport=4500, dport=4500) if made.udp else None,
    )
    return len(sa.encrypt(inner))


@pytest.mark.parametrize("inner", [V4, V6])
@pytest.mark.parametrize("path_mtu", [1500, 1492, 1401])
@pytest.mark.parametrize(
    ("outer", "udp", "algorithms"),
    [
        (outer, udp, algorithms)
        for outer in (V4, V6)
        for udp in (False, True)
        for algorithms in (None, GCM, CBC)
        if not (outer is V6 and udp and algorithms)  # scapy builds no ESP in UDP over IPv6
    ],
)
def test_longest_inner_packet_just_fits_the_path(
    inner: Header, path_mtu: int, outer: Header, udp: bool, algorithms: Any
) -> None:
    headers: tuple[Header, ...] = (outer, *((Header.UDP,) if udp else ()))
    esp = None
    if algorithms is not None:
        headers += (Header.ESP,)
        esp = algorithms[-1]
    made = made_of(*headers, inner)
    limit = tunnel_mtu(made, path_mtu, esp)
    assert not limit.fragments_outer
    assert encapsulated(made, limit.inner, algorithms) <= path_mtu
    assert encapsulated(made, limit.inner + 1, algorithms) > path_mtu


@pytest.mark.parametrize(
    ("headers", "path_mtu", "expected"),
    [
        ((V4, Header.UDP, V6), 1500, TunnelMtu(1472, False)),
        ((V6, V6), 1320, TunnelMtu(1280, False)),
        ((V6, V6), 1319, TunnelMtu(1280, True)),  # RFC 2473 §7.1
        ((V4, V6), 1280, TunnelMtu(1280, True)),
        ((V4, V4), 576, TunnelMtu(556, False)),
        ((V4, V4), 68, TunnelMtu(68, True)),
    ],
)
def test_no_inner_mtu_below_the_minimum_of_its_family(
    headers: tuple[Header, ...], path_mtu: int, expected: TunnelMtu
) -> None:
    assert tunnel_mtu(made_of(*headers), path_mtu) == expected


def test_sizes_of_esp_go_with_esp() -> None:
    with pytest.raises(MobilityError, match="missing"):
        tunnel_mtu(made_of(V4, Header.ESP, V6), 1500)
    with pytest.raises(MobilityError, match="given"):
        tunnel_mtu(made_of(V4, V6), 1500, EspSizes())


@pytest.mark.parametrize(
    ("hop_limit", "forwarded", "expected"),
    [(64, True, 63), (2, True, 1), (1, True, None), (0, True, None), (1, False, 1)],
)
def test_hop_limit_counts_the_tunnel_as_one_hop(
    hop_limit: int, forwarded: bool, expected: int | None
) -> None:
    assert inner_hop_limit(hop_limit, forwarded=forwarded) == expected


NOT, ECT0, ECT1, CE = 0, 2, 1, 3


@pytest.mark.rfc("5555-4.1.1-1", "5555-4.1.1-2")
@pytest.mark.parametrize(("inner", "outer"), [(NOT, NOT), (ECT0, ECT0), (ECT1, ECT1), (CE, ECT0)])
@pytest.mark.parametrize("dscp", [0, 46 << 2, 0xFC])
def test_rfc3168_9_1_1_outwards(inner: int, outer: int, dscp: int) -> None:
    """The column "RFC 3168 full functionality" of RFC 6040's figures; DSCP goes along."""
    assert outer_traffic_class(dscp | inner) == dscp | outer


@pytest.mark.rfc("5555-4.1.1-1", "5555-4.1.1-2")
@pytest.mark.parametrize(
    ("inner", "by_outer"),
    [
        #      outer: Not-ECT ECT(0) ECT(1) CE
        (NOT, (NOT, NOT, NOT, None)),
        (ECT0, (ECT0, ECT0, ECT0, CE)),
        (ECT1, (ECT1, ECT1, ECT1, CE)),
        (CE, (CE, CE, CE, CE)),
    ],
)
def test_rfc3168_9_1_1_inwards(inner: int, by_outer: tuple[int | None, ...]) -> None:
    for outer, expected in zip((NOT, ECT0, ECT1, CE), by_outer, strict=True):
        made = inner_traffic_class(0xB8 | inner, 0x28 | outer)
        assert made == (None if expected is None else 0xB8 | expected), "the inner DSCP stays"
