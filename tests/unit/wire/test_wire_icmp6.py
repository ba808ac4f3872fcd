"""ICMPv6 of Mobile IPv6, against scapy and the RFCs' drawings."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers import inet6
from scapy.packet import Raw
from wire_samples import HOME_ADDRESS, HOME_AGENT, octet_sum, pseudo_header

from dsmip_ipsec.wire import errors, icmp6

scapy6: Any = inet6
PREFIX = icmp6.PrefixInformation(
    64, IPv6Address("2001:db8:1::1"), 86400, 0xFFFFFFFF, True, True, True
)
UNKNOWN = icmp6.UnknownNeighborOption(99, b"abcdef" + bytes(8))
MESSAGES: tuple[icmp6.IcmpMessage, ...] = (
    icmp6.HomeAgentAddressDiscoveryRequest(0x0102),
    icmp6.HomeAgentAddressDiscoveryRequest(0x0102, True),
    icmp6.HomeAgentAddressDiscoveryReply(0x0102, ()),
    icmp6.HomeAgentAddressDiscoveryReply(0x0102, (HOME_AGENT, HOME_ADDRESS), True),
    icmp6.MobilePrefixSolicitation(0x0304),
    icmp6.MobilePrefixSolicitation(0x0304, (UNKNOWN,)),
    icmp6.MobilePrefixAdvertisement(0x0304, True, False, (PREFIX, UNKNOWN)),
    icmp6.MobilePrefixAdvertisement(0x0304, False, True, (PREFIX,)),
    icmp6.IcmpParameterProblem(0, 41, b"the packet"),
    icmp6.UnknownIcmp(128, 7, b"echo"),
    icmp6.UnknownIcmp(144, 1, b"code"),
)


def encode(message: icmp6.IcmpMessage) -> bytes:
    return icmp6.encode(message, HOME_ADDRESS, HOME_AGENT)


def decode(data: bytes) -> icmp6.IcmpMessage:
    return icmp6.decode(data, HOME_ADDRESS, HOME_AGENT)


def sealed(octets: str) -> bytes:
    data = bytes.fromhex(octets)
    total = octet_sum(pseudo_header(HOME_ADDRESS, HOME_AGENT, len(data), 58) + data)
    return data[:2] + (0xFFFF - total).to_bytes(2, "big") + data[4:]


def by_scapy(layer: Any) -> bytes:
    packet = scapy6.IPv6(src=str(HOME_ADDRESS), dst=str(HOME_AGENT)) / layer
    return raw(packet)[40:]


@pytest.mark.parametrize("message", MESSAGES)
def test_round_trip_checksum_and_flipped_bits(message: icmp6.IcmpMessage) -> None:
    data = encode(message)
    assert decode(data) == message
    assert encode(decode(data)) == data
    assert octet_sum(pseudo_header(HOME_ADDRESS, HOME_AGENT, len(data), 58) + data) == 0xFFFF
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(errors.ChecksumError):
            decode(bytes(broken))


@pytest.mark.parametrize(
    ("message", "layer"),
    [
        (MESSAGES[0], scapy6.ICMPv6HAADRequest(id=0x0102, R=0)),
        (MESSAGES[1], scapy6.ICMPv6HAADRequest(id=0x0102, R=1)),
        (
            MESSAGES[3],
            scapy6.ICMPv6HAADReply(id=0x0102, R=1, addresses=[str(HOME_AGENT), str(HOME_ADDRESS)]),
        ),
        (MESSAGES[4], scapy6.ICMPv6MPSol(id=0x0304)),
        (
            MESSAGES[7],
            scapy6.ICMPv6MPAdv(id=0x0304, flags="O")
            / scapy6.ICMPv6NDOptPrefixInfo(
                prefixlen=64, L=1, A=1, R=1, validlifetime=86400,
                preferredlifetime=0xFFFFFFFF, prefix="2001:db8:1::1",
            ),
        ),
        (MESSAGES[8], scapy6.ICMPv6ParamProblem(code=0, ptr=41) / Raw(b"the packet")),
    ],
)  # fmt: skip
def test_same_octets_as_scapy(message: icmp6.IcmpMessage, layer: Any) -> None:
    theirs = by_scapy(layer)
    assert encode(message).hex(" ") == theirs.hex(" ")
    assert decode(theirs) == message


def test_advertisement_as_drawn() -> None:
    """RFC 6275 §6.8: |M|O| in front; §7.2: |L|A|R|."""
    data = encode(icmp6.MobilePrefixAdvertisement(1, True, True, (PREFIX,)))
    assert data[4:8].hex() == "0001c000"
    assert data[8:12].hex() == "030440e0"


def test_a_parameter_problem_fits_the_minimum_mtu() -> None:
    """RFC 4443 §2.4 (c)."""
    data = encode(icmp6.IcmpParameterProblem(0, 40, bytes(4000)))
    assert len(data) + 40 == 1280
    assert data[8:] == bytes(1232)


@pytest.mark.parametrize(
    "octets",
    [
        "9100 0000 0001 0000" + "20" * 15,  # addresses cut
        "9300 0000 0001 0000 0300" + "00" * 30,  # an option of length zero (RFC 4861 §4.6)
        "9300 0000 0001 0000 0304" + "00" * 22,  # past the end
        "9300 0000 0001 0000 03",  # no length
        "9300 0000 0001 0000 0303" + "00" * 22,  # a short prefix information
        "9300 0000 0001 0000 0304 81" + "00" * 29,  # a prefix length of 129
        "9200 0000 0001 0000 6300" + "00" * 6,
    ],
)
def test_malformed(octets: str) -> None:
    with pytest.raises(errors.DecodeError) as caught:
        decode(sealed(octets))
    assert not isinstance(caught.value, errors.ChecksumError)


@pytest.mark.parametrize("octets", ["", "90", "900000"])
def test_shorter_than_any_message(octets: str) -> None:
    with pytest.raises(errors.TruncatedError):
        decode(bytes.fromhex(octets))


@pytest.mark.parametrize("octets", ["9000 0000 0001", "9300 0000", "0400 0000 0000 00"])
def test_shorter_than_the_type(octets: str) -> None:
    with pytest.raises(errors.TruncatedError):
        decode(sealed(octets))


@pytest.mark.parametrize(
    "message",
    [
        icmp6.MobilePrefixSolicitation(0x10000),
        icmp6.MobilePrefixSolicitation(1, (icmp6.UnknownNeighborOption(9, b"odd"),)),
        icmp6.MobilePrefixSolicitation(1, (icmp6.UnknownNeighborOption(256, bytes(6)),)),
        icmp6.MobilePrefixAdvertisement(
            1, options=(icmp6.PrefixInformation(129, HOME_AGENT, 1, 1),)
        ),
        icmp6.MobilePrefixAdvertisement(
            1, options=(icmp6.PrefixInformation(64, HOME_AGENT, -1, 1),)
        ),
        icmp6.IcmpParameterProblem(256, 0, b""),
        icmp6.HomeAgentAddressDiscoveryReply(1, (IPv4Address("192.0.2.1"),)),  # type: ignore[arg-type]
    ],
)
def test_values_that_do_not_fit_are_typed_errors(message: icmp6.IcmpMessage) -> None:
    with pytest.raises(errors.EncodeError):
        encode(message)
