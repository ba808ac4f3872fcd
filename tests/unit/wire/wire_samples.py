"""Messages and small tools for the tests of the codecs: nothing here uses the codecs' own idea
of a length, an alignment or a checksum."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire import options as opt

HOME_ADDRESS = IPv6Address("2001:db8:1::10")
CARE_OF_ADDRESS = IPv6Address("2001:db8:c::77")
HOME_AGENT = IPv6Address("2001:db8:1::1")
HOME_ADDRESS4 = IPv4Address("192.0.2.10")
CARE_OF_ADDRESS4 = IPv4Address("10.11.12.13")

ALTERNATE = opt.AlternateCareOfAddress(CARE_OF_ADDRESS)
NONCES = opt.NonceIndices(0x0102, 0xFFFE)
AUTHENTICATOR = opt.BindingAuthorizationData(bytes(range(0xA0, 0xAC)))
PREFIX = opt.MobileNetworkPrefix(56, IPv6Address("2001:db8:5:500::"))
HOME4 = opt.IPv4HomeAddress(28, True, HOME_ADDRESS4)
CARE_OF4 = opt.IPv4CareOfAddress(CARE_OF_ADDRESS4)
ADVICE = opt.BindingRefreshAdvice(0x1234)
ACK4 = opt.IPv4AddressAck(0, 24, HOME_ADDRESS4)
NAT = opt.NatDetection(True, 110)
UNKNOWN = opt.UnknownOption(200, b"\x01\x02\x03")

FULL_UPDATE = mh.BindingUpdate(
    0xBEEF,
    0x0384,
    acknowledge=True,
    home_registration=True,
    key_mobility=True,
    mobile_router=True,
    force_udp=True,
    options=(ALTERNATE, PREFIX, HOME4, CARE_OF4, UNKNOWN),
)
FULL_ACK = mh.BindingAck(
    mh.BindingStatus.ACCEPTED,
    0xBEEF,
    150,
    key_mobility=True,
    mobile_router=True,
    options=(ADVICE, ACK4, NAT),
)
EVERY_MESSAGE: tuple[mh.Message, ...] = (
    mh.BindingRefreshRequest(),
    mh.HomeTestInit(b"cookieHo"),
    mh.CareOfTestInit(b"cookieCo"),
    mh.HomeTest(0x0A0B, b"cookieHo", b"tokenHom"),
    mh.CareOfTest(0x0C0D, b"cookieCo", b"tokenCoA"),
    mh.BindingUpdate(1, 0),
    FULL_UPDATE,
    mh.BindingAck(mh.BindingStatus.SEQUENCE_NUMBER_OUT_OF_WINDOW, 2, 0),
    FULL_ACK,
    mh.BindingError(mh.BindingErrorStatus.UNKNOWN_BINDING, HOME_ADDRESS),
    mh.UnknownMessage(77, b"whatever_it_says__"),
)

# Where the options of each message start and how each is to be aligned, typed off the RFCs.
OPTIONS_START = {0: 8, 1: 16, 2: 16, 3: 24, 4: 24, 5: 12, 6: 12, 7: 24}
ALIGNMENT = {
    2: (2, 0),  # RFC 6275 §6.2.4
    3: (8, 6),  # RFC 6275 §6.2.5
    4: (2, 0),  # RFC 6275 §6.2.6
    6: (8, 4),  # RFC 3963 §4.3
    29: (4, 0),  # RFC 5555 §3.1.1
    30: (4, 0),  # RFC 5555 §3.2.1
    31: (4, 0),  # RFC 5555 §3.2.2
    32: (4, 0),  # RFC 5555 §3.1.2
}


UPDATE_FLAGS = (
    "acknowledge",
    "home_registration",
    "link_local",
    "key_mobility",
    "map_registration",
    "mobile_router",
    "proxy",
    "force_udp",
)
"""|A|H|L|K|M|R|P|F| of RFC 5555 §3.1.3."""
ACK_FLAGS = ("key_mobility", "mobile_router", "proxy")
"""|K|R|P| of RFC 3963 §4.2 and RFC 5213 §8.2."""

_Flagged = TypeVar("_Flagged", mh.BindingUpdate, mh.BindingAck)


def flagged(message: _Flagged, bits: Iterable[bool]) -> _Flagged:
    """The message with its flags set, in the order of their drawing."""
    names = UPDATE_FLAGS if isinstance(message, mh.BindingUpdate) else ACK_FLAGS
    changes: dict[str, Any] = dict(zip(names, bits, strict=False))
    return dataclasses.replace(message, **changes)


def octet_sum(data: bytes) -> int:
    """The ones' complement sum of RFC 1071 §1, word by word, carry by carry."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(source: IPv6Address, destination: IPv6Address, length: int, nxt: int) -> bytes:
    """RFC 8200 §8.1, as drawn there."""
    return source.packed + destination.packed + length.to_bytes(4, "big") + bytes((0, 0, 0, nxt))


def sealed(raw: bytes, source: IPv6Address = HOME_ADDRESS, dest: IPv6Address = HOME_AGENT) -> bytes:
    """A Mobility Header with the right checksum, over the length that its Header Len says."""
    length = min((raw[1] + 1) * 8, len(raw))
    blank = raw[:4] + b"\0\0" + raw[6:]
    total = octet_sum(pseudo_header(source, dest, length, 135) + blank[:length])
    return raw[:4] + (0xFFFF - total).to_bytes(2, "big") + raw[6:]


def walk(raw: bytes) -> list[tuple[int, int, bytes]]:
    """(offset, type, data) of each option of a Mobility Header, padding and all."""
    found = []
    offset = OPTIONS_START[raw[2]]
    while offset < len(raw):
        if raw[offset] == 0:
            found.append((offset, 0, b""))
            offset += 1
            continue
        end = offset + 2 + raw[offset + 1]
        assert end <= len(raw)
        found.append((offset, raw[offset], raw[offset + 2 : end]))
        offset = end
    return found
