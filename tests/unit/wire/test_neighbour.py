"""Neighbor Discovery and ARP, with scapy as the other side."""

from __future__ import annotations

import contextlib
import random
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptAdvInterval,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP

from dsmip_ipsec.errors import WireError
from dsmip_ipsec.mobility.home_link import proxy_advertisement
from dsmip_ipsec.mobility.home_link_types import ProxyNeighbour
from dsmip_ipsec.wire import neighbour

TARGET = IPv6Address("2001:db8:100::100")
ROUTER = IPv6Address("fe80::1")
LINK = bytes.fromhex("020000000001")


def checked(packet: bytes) -> IPv6:
    """As scapy reads it, hop limit and checksum as they must be."""
    read = IPv6(packet)
    assert read.hlim == 255
    carried = read.payload.cksum
    again = IPv6(packet)
    del again.payload.cksum
    assert IPv6(bytes(again)).payload.cksum == carried
    return read


def test_the_probe_of_duplicate_address_detection() -> None:
    """RFC 4862 §5.4.2."""
    packet = checked(neighbour.duplicate_address_probe(TARGET))
    assert (packet.src, packet.dst) == ("::", "ff02::1:ff00:100")
    assert packet[ICMPv6ND_NS].tgt == str(TARGET)
    assert not packet[ICMPv6ND_NS].payload
    group = neighbour.multicast_link_address(IPv6Address(packet.dst))
    assert group.hex(":") == "33:33:ff:00:01:00"


def test_solicitations() -> None:
    packet = checked(neighbour.neighbor_solicitation(TARGET, ROUTER, LINK))
    assert (packet.dst, packet[ICMPv6ND_NS].tgt) == (str(ROUTER), str(ROUTER))
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == LINK.hex(":")
    packet = checked(neighbour.router_solicitation(IPv6Address("fe80::2"), LINK))
    assert packet.dst == "ff02::2"
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == LINK.hex(":")
    # RFC 4861 §4.1: "MUST NOT be included if the Source Address is the unspecified address."
    packet = checked(neighbour.router_solicitation(neighbour.UNSPECIFIED, LINK))
    assert not packet[ICMPv6ND_RS].payload


@pytest.mark.rfc("6275-10.4.1-5")
def test_the_advertisement_for_a_node_that_is_away() -> None:
    message = proxy_advertisement(ProxyNeighbour(TARGET), LINK)
    packet = checked(neighbour.unsolicited_advertisement(ROUTER, message))
    advertisement = packet[ICMPv6ND_NA]
    assert packet.dst == "ff02::1"
    assert (advertisement.tgt, advertisement.S, advertisement.O) == (str(TARGET), 0, 1)


def test_advertisements_are_read() -> None:
    router = IPv6Address("2001:db8:6::1")
    built = (
        IPv6(src=str(ROUTER), dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptPrefixInfo(
            prefix="2001:db8:6::1", prefixlen=64, L=1, A=0, R=1, validlifetime=9
        )
        / ICMPv6NDOptAdvInterval(advint=4000)
    )
    heard = neighbour.read(bytes(built))
    assert isinstance(heard, neighbour.RouterAdvertisementHeard)
    assert (heard.source, heard.lifetime, heard.interval) == (ROUTER, 1800, 4.0)
    assert heard.prefixes == (
        neighbour.PrefixHeard(IPv6Network("2001:db8:6::/64"), True, False, 9, router),
    )
    built = IPv6(src=str(TARGET), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(TARGET), S=1, O=0)
    heard = neighbour.read(bytes(built))
    assert heard == neighbour.NeighborAdvertisement(TARGET, TARGET, True, False)


@pytest.mark.parametrize(
    "built",
    [
        IPv6(src="fe80::1", dst="ff02::1", hlim=64) / ICMPv6ND_RA(),  # forwarded
        IPv6(src="2001:db8::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(),
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(code=1),
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA() / b"\1\0\0\0\0\0\0\0",
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt="ff02::1"),
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(cksum=1),
    ],
    ids=["forwarded", "not link-local", "code", "option of length 0", "multicast", "checksum"],
)
def test_what_must_be_ignored(built: IPv6) -> None:
    """RFC 4861 §6.1.2, §7.1.1."""
    with pytest.raises(WireError):
        neighbour.read(bytes(built))


def test_arp() -> None:
    home = IPv4Address("203.0.113.200")
    packet = ARP(neighbour.arp_request(LINK, home, home))
    assert (packet.op, packet.psrc, packet.pdst) == (1, str(home), str(home))
    assert packet.hwsrc == LINK.hex(":")
    reply = ARP(op=2, psrc="192.0.2.1", pdst="192.0.2.2", hwsrc=LINK.hex(":"), hwdst=LINK.hex(":"))
    read = neighbour.read_arp(bytes(reply))
    assert (read.is_reply, read.sender, read.sender_link_address) == (
        True,
        IPv4Address("192.0.2.1"),
        LINK,
    )
    with pytest.raises(WireError):
        neighbour.read_arp(bytes(ARP(hwtype=6)))


def test_no_input_raises_anything_else() -> None:
    rng = random.Random(4861)
    good = bytes(
        IPv6(src="fe80::1", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA()
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8::")
    )
    for _ in range(20_000):
        octets = bytearray(good[: rng.randrange(len(good) + 1)])
        for _ in range(rng.randrange(3)):
            if octets:
                octets[rng.randrange(len(octets))] = rng.randrange(256)
        for read in (neighbour.read, neighbour.read_arp):
            with contextlib.suppress(WireError):
                read(bytes(octets))
