"""IPv4, IPv6 and UDP headers, against scapy."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from wire_samples import HOME_ADDRESS, HOME_AGENT, octet_sum

from dsmip_ipsec.wire import errors, ip

A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.200")
ip4: Any = IP
ip6: Any = IPv6


def test_build_udp4_equals_scapys() -> None:
    rng = random.Random(4)
    for _ in range(200):
        payload = rng.randbytes(rng.randrange(90))
        sport, dport, ttl, tos, ident = (rng.randrange(n) for n in (65536, 65536, 256, 256, 65536))
        df = rng.random() < 0.5
        ours = ip.build_udp4(
            A4, sport, B4, dport, payload, ttl=ttl, tos=tos, identification=ident, dont_fragment=df
        )
        theirs = ip4(
            src=str(A4), dst=str(B4), ttl=ttl, tos=tos, id=ident, flags="DF" if df else 0
        ) / UDP(sport=sport, dport=dport)
        assert ours == raw(theirs / Raw(payload))
        header, datagram = ip.parse_ipv4(ours + b"link padding")
        assert header == ip.IPv4Header(A4, B4, 17, ttl, tos, ident, df)
        udp, inner = ip.parse_udp(datagram, A4, B4)
        assert (udp.source_port, udp.destination_port, inner) == (sport, dport, payload)


def test_build_udp6_equals_scapys() -> None:
    rng = random.Random(6)
    for _ in range(100):
        payload = rng.randbytes(rng.randrange(90))
        label, tc, hops = rng.randrange(1 << 20), rng.randrange(256), rng.randrange(256)
        ours = ip.build_udp6(
            HOME_ADDRESS, 5, HOME_AGENT, 4191, payload,
            hop_limit=hops, traffic_class=tc, flow_label=label,
        )  # fmt: skip
        theirs = ip6(src=str(HOME_ADDRESS), dst=str(HOME_AGENT), hlim=hops, tc=tc, fl=label)
        assert ours == raw(theirs / UDP(sport=5, dport=4191) / Raw(payload))
        header, datagram = ip.parse_ipv6(ours + b"link padding")
        assert header == ip.IPv6Header(HOME_ADDRESS, HOME_AGENT, 17, hops, tc, label)
        assert ip.parse_udp(datagram, HOME_ADDRESS, HOME_AGENT)[1] == payload


def test_ipv4_options_and_fragments_as_scapy_builds_them() -> None:
    options = bytes.fromhex("0101 9404 0000 0000".replace(" ", ""))[:8]
    theirs = raw(
        ip4(src=str(A4), dst=str(B4), flags="MF", frag=3, proto=50, options=[]) / Raw(b"x" * 8)
    )
    header, payload = ip.parse_ipv4(theirs)
    assert header.is_fragment
    assert header.fragment_offset == 24
    assert header.more_fragments
    assert payload == b"x" * 8
    ours = ip.IPv4Header(A4, B4, 50, options=options)
    assert ip.parse_ipv4(ip.build_ipv4(ours, b"y")) == (ours, b"y")
    assert octet_sum(ip.build_ipv4(ours, b"y")[:28]) == 0xFFFF
    assert not ours.is_fragment


def test_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    """RFC 768; and a zero that was received means "none"."""
    for last in range(65536):
        datagram = ip.build_udp(A4, 0, B4, 0, last.to_bytes(2, "big"))
        assert datagram[6:8] != b"\0\0"
        if datagram[6:8] == b"\xff\xff":
            break
    else:
        pytest.fail("no payload gave the checksum in question")
    assert ip.parse_udp(datagram, A4, B4)[1] == last.to_bytes(2, "big")
    bare = ip.build_udp(A4, 7, B4, 8, b"data", checksum=False)
    assert ip.parse_udp(bare, A4, B4) == (ip.UdpHeader(7, 8, 0), b"data")


def test_every_flipped_bit_of_a_datagram_is_noticed() -> None:
    datagram = ip.build_udp(A4, 4191, B4, 4191, b"payload")
    for bit in range(len(datagram) * 8):
        broken = bytearray(datagram)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(errors.DecodeError):
            ip.parse_udp(bytes(broken), A4, B4)


def test_every_flipped_bit_of_an_ipv4_header_is_noticed() -> None:
    packet = ip.build_ipv4(ip.IPv4Header(A4, B4, 17), b"payload")
    for bit in range(160):
        broken = bytearray(packet)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(errors.DecodeError):
            ip.parse_ipv4(bytes(broken))


def test_every_cut_is_noticed() -> None:
    packet4 = ip.build_udp4(A4, 1, B4, 2, b"payload")
    packet6 = ip.build_udp6(HOME_ADDRESS, 1, HOME_AGENT, 2, b"payload")
    for length in range(len(packet4)):
        with pytest.raises(errors.TruncatedError):
            ip.parse_ipv4(packet4[:length])
    for length in range(len(packet6)):
        with pytest.raises(errors.TruncatedError):
            ip.parse_ipv6(packet6[:length])
    for length in range(15):
        with pytest.raises(errors.TruncatedError):
            ip.parse_udp(packet4[20 : 20 + length])


def test_version_decides_what_follows_udp() -> None:
    """RFC 5555 §4.1."""
    packet4 = ip.build_udp4(A4, 1, B4, 2, b"")
    packet6 = ip.build_udp6(HOME_ADDRESS, 1, HOME_AGENT, 2, b"")
    assert ip.ip_version(packet4) == 4
    assert ip.ip_version(packet6) == 6
    for data in (b"\x00", b"\x50\x00", b"\xff"):
        with pytest.raises(errors.VersionError):
            ip.ip_version(data)
    with pytest.raises(errors.TruncatedError):
        ip.ip_version(b"")
    with pytest.raises(errors.VersionError):
        ip.parse_ipv6(packet4 + bytes(40))
    with pytest.raises(errors.VersionError):
        ip.parse_ipv4(packet6)


def test_contradicting_lengths() -> None:
    packet = bytearray(ip.build_udp4(A4, 1, B4, 2, b""))
    packet[0] = 0x44
    with pytest.raises(errors.DecodeError):
        ip.parse_ipv4(bytes(packet))
    packet[0], packet[2:4] = 0x45, b"\0\x13"
    with pytest.raises(errors.DecodeError):
        ip.parse_ipv4(bytes(packet))
    with pytest.raises(errors.DecodeError):
        ip.parse_udp(bytes.fromhex("0001000200070000"))


def test_values_that_do_not_fit_are_typed_errors() -> None:
    with pytest.raises(errors.EncodeError):
        ip.build_udp4(A4, 65536, B4, 1, b"")
    with pytest.raises(errors.EncodeError):
        ip.build_udp4(A4, 1, B4, 1, bytes(65536))
    with pytest.raises(errors.EncodeError):
        ip.build_udp4(A4, 1, B4, 1, b"", ttl=256)
    with pytest.raises(errors.EncodeError):
        ip.build_ipv6(ip.IPv6Header(HOME_ADDRESS, HOME_AGENT, 17, flow_label=1 << 20), b"")
    with pytest.raises(errors.EncodeError):
        ip.build_ipv6(ip.IPv6Header(HOME_ADDRESS, HOME_AGENT, 17), bytes(65536))
    with pytest.raises(errors.EncodeError):
        ip.build_ipv4(ip.IPv4Header(A4, B4, 17, options=b"abc"), b"")
    with pytest.raises(errors.EncodeError):
        ip.build_ipv4(ip.IPv4Header(A4, B4, 17, fragment_offset=7), b"")
    with pytest.raises(errors.EncodeError):
        ip.build_udp(A4, 1, IPv6Address("::1"), 1, b"")
