"""Home Address option and type 2 routing header, against scapy and the RFCs' rules."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers.inet6 import HAO, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting
from scapy.packet import Raw
from wire_samples import CARE_OF_ADDRESS, HOME_ADDRESS, HOME_AGENT

from dsmip_ipsec.wire import errors, exthdr, ip
from dsmip_ipsec.wire.errors import ParameterProblem

ip6: Any = IPv6
HAO_HEADER = exthdr.encode_home_address(HOME_ADDRESS, 135)
RT2_HEADER = exthdr.encode_type2_routing(HOME_ADDRESS, 135)


def header(next_header: int, octets: str) -> bytes:
    """An extension header with these octets behind its length, filled up with Pad1."""
    body = bytes.fromhex(octets)
    body += bytes(-(len(body) + 2) % 8)
    return bytes((next_header, (len(body) + 2) // 8 - 1)) + body


@pytest.mark.rfc("6275-8.5-2")
def test_home_address_option_as_drawn_and_as_scapy_builds_it() -> None:
    """RFC 6275 §6.3: type 201, length 16, at 8n + 6."""
    assert HAO_HEADER.hex() == "87020102" + "0000" + "c910" + HOME_ADDRESS.packed.hex()
    theirs = ip6(src=str(CARE_OF_ADDRESS), dst=str(HOME_AGENT)) / IPv6ExtHdrDestOpt(
        nh=135, options=[HAO(hoa=str(HOME_ADDRESS))]
    )
    assert raw(theirs)[40:] == HAO_HEADER
    found, rest = exthdr.parse_extension_headers(60, HAO_HEADER + b"MH")
    assert found == exthdr.ExtensionHeaders(135, 24, HOME_ADDRESS, None)
    assert rest == b"MH"


@pytest.mark.rfc("6275-8.5-4")
def test_type2_routing_header_as_drawn_and_as_scapy_builds_it() -> None:
    """RFC 6275 §6.4.1."""
    assert RT2_HEADER.hex() == "8702020100000000" + HOME_ADDRESS.packed.hex()
    theirs = ip6(src=str(HOME_AGENT), dst=str(CARE_OF_ADDRESS)) / IPv6ExtHdrRouting(
        nh=135, type=2, addresses=[str(HOME_ADDRESS)]
    )
    assert raw(theirs / Raw(b""))[40:] == RT2_HEADER
    found, rest = exthdr.parse_extension_headers(43, RT2_HEADER + b"MH")
    assert found == exthdr.ExtensionHeaders(135, 24, None, HOME_ADDRESS)
    assert rest == b"MH"


@pytest.mark.rfc("6275-9.3.1-7", "6275-11.3.2-2")
def test_both_headers_and_the_addresses_upper_layers_see() -> None:
    other = IPv6Address("2001:db8:2::20")
    chain = (
        header(43, "0104 00000000")  # hop-by-hop: PadN
        + exthdr.encode_type2_routing(other, 60)
        + exthdr.encode_home_address(HOME_ADDRESS, 50)
    )
    found, rest = exthdr.parse_extension_headers(0, chain + b"ESP")
    assert found == exthdr.ExtensionHeaders(50, 56, HOME_ADDRESS, other)
    assert rest == b"ESP"
    outer = ip.IPv6Header(CARE_OF_ADDRESS, HOME_AGENT, 0)
    assert exthdr.final_addresses(outer, found) == (HOME_ADDRESS, other)
    nothing, _ = exthdr.parse_extension_headers(50, b"ESP")
    assert exthdr.final_addresses(outer, nothing) == (CARE_OF_ADDRESS, HOME_AGENT)


@pytest.mark.parametrize("protocol", [44, 50, 51, 58, 59, 135, 253])
def test_the_chain_ends_at_what_is_not_ours(protocol: int) -> None:
    found, rest = exthdr.parse_extension_headers(protocol, HAO_HEADER)
    assert (found.protocol, found.offset, rest) == (protocol, 0, HAO_HEADER)


SILENT = [
    (60, exthdr.encode_home_address(HOME_ADDRESS, 60) + HAO_HEADER, "two Home Address"),
    (43, exthdr.encode_type2_routing(HOME_ADDRESS, 43) + RT2_HEADER, "two type 2"),
    (60, exthdr.encode_home_address(HOME_ADDRESS, 43) + RT2_HEADER, "in front of"),
    (60, header(135, "0100 c9 0f" + "20" * 15), "option of 15"),
    (60, header(135, "01020000 c910" + "ff02" + "00" * 13 + "01"), "not unicast"),
    (43, header(135, "0200 00000000" + "20" * 16), "segments left"),
    (43, header(135, "0202 00000000" + "20" * 16), "segments left"),
    (43, header(135, "0201 00000000" + "20" * 24), "with length 3"),
    (43, header(135, "0201 00000000" + "fe80" + "00" * 14), "not unicast"),
    (60, header(135, "0105 00000000"), "past the end"),
    (60, header(135, "0103 000000 05"), "past the end"),
    (60, header(135, "4000"), "unknown"),
]


@pytest.mark.parametrize(("first", "chain", "words"), SILENT)
def test_silently_discarded(first: int, chain: bytes, words: str) -> None:
    """RFC 6275 §6.3, §9.3.1, §11.3.3; RFC 8200 §4.2."""
    with pytest.raises(errors.ExtensionHeaderError) as caught:
        exthdr.parse_extension_headers(first, chain)
    assert words in str(caught.value)
    assert caught.value.answer is None


@pytest.mark.parametrize(
    ("first", "chain", "to_multicast", "answer"),
    [
        (60, header(135, "0000 8000"), False, ParameterProblem(2, 4)),
        (60, header(135, "0000 8000"), True, ParameterProblem(2, 4)),
        (60, header(135, "0000 c000"), False, ParameterProblem(2, 4)),
        (60, header(135, "0000 c000"), True, None),
        # RFC 6275 §6.3 defines the option for destination options headers alone.
        (0, header(135, "0102 0000 c910" + "20" * 16), False, ParameterProblem(2, 6)),
        (43, header(135, "0001 00000000"), False, ParameterProblem(0, 2)),
        (60, header(0, "0104 00000000") + bytes(8), False, ParameterProblem(1, 0)),
        (43, exthdr.encode_type2_routing(HOME_ADDRESS, 0) + bytes(8), False,
         ParameterProblem(1, 0)),
    ],
)  # fmt: skip
def test_answered_by_a_parameter_problem(
    first: int, chain: bytes, to_multicast: bool, answer: ParameterProblem | None
) -> None:
    with pytest.raises(errors.ExtensionHeaderError) as caught:
        exthdr.parse_extension_headers(first, chain, to_multicast=to_multicast)
    assert caught.value.answer == answer


def test_what_is_skipped() -> None:
    """Unknown options of the kind 00; unknown routing headers with nothing left to do."""
    chain = header(43, "3e02 aabb") + header(60, "0400 00000000") + HAO_HEADER
    found, _ = exthdr.parse_extension_headers(60, chain)
    assert found == exthdr.ExtensionHeaders(135, 40, HOME_ADDRESS, None)


def test_every_cut_is_noticed() -> None:
    chain = exthdr.encode_type2_routing(HOME_ADDRESS, 60) + HAO_HEADER
    for length in range(len(chain)):
        with pytest.raises(errors.TruncatedError):
            exthdr.parse_extension_headers(43, chain[:length])


@pytest.mark.rfc("6275-9.3.1-1")
@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("2001:db8::1", True),
        ("fd00::1", True),
        ("fec0::1", True),
        ("::", False),
        ("::1", False),
        ("::192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("fe80::1", False),
        ("febf::1", False),
        ("ff02::1", False),
        ("64:ff9b::192.0.2.1", True),
    ],
)
def test_unicast_routable(address: str, good: bool) -> None:
    """RFC 6275 §3.1: global or unique local."""
    assert exthdr.is_unicast_routable(IPv6Address(address)) == good
    if not good:
        with pytest.raises(errors.EncodeError):
            exthdr.encode_home_address(IPv6Address(address), 135)
        with pytest.raises(errors.EncodeError):
            exthdr.encode_type2_routing(IPv6Address(address), 135)


def test_values_that_do_not_fit_are_typed_errors() -> None:
    with pytest.raises(errors.EncodeError):
        exthdr.encode_home_address(HOME_ADDRESS, 256)
    with pytest.raises(errors.EncodeError):
        exthdr.encode_type2_routing(IPv4Address("192.0.2.1"), 135)  # type: ignore[arg-type]
