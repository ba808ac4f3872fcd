"""ICMPv6 of Mobile IPv6: home agent address discovery (RFC 6275 §6.5, §6.6; R flag: RFC 3963
§7.1), mobile prefix discovery (RFC 6275 §6.7, §6.8), and Parameter Problem (RFC 4443 §3.4).

Checksums take the home address in place of the care-of address where a Home Address option or
a type 2 routing header goes along, as in :mod:`dsmip_ipsec.wire.mobility`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import ClassVar, Final, TypeAlias

from dsmip_ipsec.wire.checksum import complement, is_valid, pseudo_header6, words
from dsmip_ipsec.wire.errors import ChecksumError, DecodeError, EncodeError, TruncatedError
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6
from dsmip_ipsec.wire.options import octets6

PARAMETER_PROBLEM: Final = 4
HOME_AGENT_ADDRESS_DISCOVERY_REQUEST: Final = 144
HOME_AGENT_ADDRESS_DISCOVERY_REPLY: Final = 145
MOBILE_PREFIX_SOLICITATION: Final = 146
MOBILE_PREFIX_ADVERTISEMENT: Final = 147

PREFIX_INFORMATION: Final = 3

INVOKING_PACKET_MAX: Final = 1280 - 40 - 8
"""Octets of an invoking packet that fit the minimum IPv6 MTU (RFC 4443 §2.4 (c))."""

_HEAD = struct.Struct("!BBH")
_HEAD_AND_WORD = struct.Struct("!BBHI")
_HEAD_AND_IDENTIFIER = struct.Struct("!BBHHH")
_PREFIX = struct.Struct("!BBBBIII16s")


@dataclass(frozen=True, slots=True)
class PrefixInformation:
    """RFC 4861 §4.6.2 with the R flag of RFC 6275 §7.2. Lifetimes in seconds (all ones:
    infinite). With ``router_address``, ``prefix`` is a whole address of the router."""

    prefix_len: int
    prefix: IPv6Address
    valid_lifetime: int
    preferred_lifetime: int
    on_link: bool = False
    autonomous: bool = False
    router_address: bool = False

    def encode(self) -> bytes:
        """32 octets."""
        if not 0 <= self.prefix_len <= 128:
            raise EncodeError(f"an IPv6 prefix length of {self.prefix_len}")
        flags = (
            (0x80 if self.on_link else 0)
            | (0x40 if self.autonomous else 0)
            | (0x20 if self.router_address else 0)
        )
        return _PREFIX.pack(
            PREFIX_INFORMATION,
            4,
            self.prefix_len,
            flags,
            self.valid_lifetime,
            self.preferred_lifetime,
            0,
            octets6(self.prefix),
        )


@dataclass(frozen=True, slots=True)
class UnknownNeighborOption:
    """A Neighbor Discovery option that we don't know, kept as it came; ``data`` is all behind
    its type and length, 8n + 6 octets."""

    type: int
    data: bytes

    def encode(self) -> bytes:
        """A multiple of 8 octets."""
        length = len(self.data) + 2
        if length % 8 or length > 255 * 8:
            raise EncodeError(f"a Neighbor Discovery option of {length} octets")
        return bytes((self.type, length >> 3)) + self.data


NeighborOption: TypeAlias = PrefixInformation | UnknownNeighborOption


@dataclass(frozen=True, slots=True)
class HomeAgentAddressDiscoveryRequest:
    """RFC 6275 §6.5. ``mobile_router`` asks for home agents that serve mobile routers."""

    type: ClassVar[int] = HOME_AGENT_ADDRESS_DISCOVERY_REQUEST
    identifier: int
    mobile_router: bool = False

    def encode(self) -> bytes:
        """The message with a checksum of zero."""
        return _HEAD_AND_IDENTIFIER.pack(
            self.type, 0, 0, self.identifier, 0x8000 if self.mobile_router else 0
        )


@dataclass(frozen=True, slots=True)
class HomeAgentAddressDiscoveryReply:
    """RFC 6275 §6.6. ``addresses`` of home agents in the order of their preference."""

    type: ClassVar[int] = HOME_AGENT_ADDRESS_DISCOVERY_REPLY
    identifier: int
    addresses: tuple[IPv6Address, ...]
    mobile_router: bool = False

    def encode(self) -> bytes:
        """The message with a checksum of zero."""
        head = _HEAD_AND_IDENTIFIER.pack(
            self.type, 0, 0, self.identifier, 0x8000 if self.mobile_router else 0
        )
        return head + b"".join(octets6(address) for address in self.addresses)


@dataclass(frozen=True, slots=True)
class MobilePrefixSolicitation:
    """RFC 6275 §6.7."""

    type: ClassVar[int] = MOBILE_PREFIX_SOLICITATION
    identifier: int
    options: tuple[NeighborOption, ...] = ()

    def encode(self) -> bytes:
        """The message with a checksum of zero."""
        head = _HEAD_AND_IDENTIFIER.pack(self.type, 0, 0, self.identifier, 0)
        return head + b"".join(option.encode() for option in self.options)


@dataclass(frozen=True, slots=True)
class MobilePrefixAdvertisement:
    """RFC 6275 §6.8. M and O: stateful configuration of addresses, and of the rest."""

    type: ClassVar[int] = MOBILE_PREFIX_ADVERTISEMENT
    identifier: int
    managed: bool = False
    other: bool = False
    options: tuple[NeighborOption, ...] = ()

    def encode(self) -> bytes:
        """The message with a checksum of zero."""
        flags = (0x8000 if self.managed else 0) | (0x4000 if self.other else 0)
        head = _HEAD_AND_IDENTIFIER.pack(self.type, 0, 0, self.identifier, flags)
        return head + b"".join(option.encode() for option in self.options)


@dataclass(frozen=True, slots=True)
class IcmpParameterProblem:
    """RFC 4443 §3.4. ``pointer`` counts from the start of ``invoking_packet``, of which as much
    is sent as fits the minimum MTU."""

    type: ClassVar[int] = PARAMETER_PROBLEM
    code: int
    pointer: int
    invoking_packet: bytes

    def encode(self) -> bytes:
        """The message with a checksum of zero."""
        head = _HEAD_AND_WORD.pack(self.type, self.code, 0, self.pointer)
        return head + self.invoking_packet[:INVOKING_PACKET_MAX]


@dataclass(frozen=True, slots=True)
class UnknownIcmp:
    """Another type, kept as it came: ``body`` is all behind the checksum."""

    type: int
    code: int
    body: bytes

    def encode(self) -> bytes:
        """The message with a checksum of zero."""
        return _HEAD.pack(self.type, self.code, 0) + self.body


IcmpMessage: TypeAlias = (
    HomeAgentAddressDiscoveryRequest
    | HomeAgentAddressDiscoveryReply
    | MobilePrefixSolicitation
    | MobilePrefixAdvertisement
    | IcmpParameterProblem
    | UnknownIcmp
)


def encode(message: IcmpMessage, src: IPv6Address, dst: IPv6Address) -> bytes:
    """The ICMPv6 message with its checksum. Raises :class:`EncodeError`."""
    try:
        raw = message.encode()
    except (struct.error, ValueError) as error:
        raise EncodeError(f"{type(message).__name__}: {error}") from error
    total = pseudo_header6(src, dst, len(raw), IPPROTO_ICMPV6) + words(raw)
    return raw[:2] + complement(total).to_bytes(2, "big") + raw[4:]


def decode(data: bytes, src: IPv6Address, dst: IPv6Address) -> IcmpMessage:
    """A received ICMPv6 message. Raises :class:`TruncatedError`, :class:`ChecksumError` and
    :class:`DecodeError`; all of them mean silence."""
    if len(data) < 4:
        raise TruncatedError(f"an ICMPv6 message has 4 octets or more, not {len(data)}", offset=0)
    data = bytes(data)
    if not is_valid(pseudo_header6(src, dst, len(data), IPPROTO_ICMPV6) + words(data)):
        raise ChecksumError("ICMPv6 checksum", offset=2)
    kind, code = data[0], data[1]
    known = (
        PARAMETER_PROBLEM,
        *range(HOME_AGENT_ADDRESS_DISCOVERY_REQUEST, MOBILE_PREFIX_ADVERTISEMENT + 1),
    )
    if kind not in known:
        return UnknownIcmp(kind, code, data[4:])
    if len(data) < 8:
        raise TruncatedError(f"ICMPv6 type {kind} has 8 octets or more, not {len(data)}", offset=0)
    if kind == PARAMETER_PROBLEM:
        return IcmpParameterProblem(code, int.from_bytes(data[4:8], "big"), data[8:])
    if code:
        # RFC 6275 defines code 0 alone; what another would mean nobody says.
        return UnknownIcmp(kind, code, data[4:])
    _, _, _, identifier, flags = _HEAD_AND_IDENTIFIER.unpack_from(data)
    if kind == HOME_AGENT_ADDRESS_DISCOVERY_REQUEST:
        return HomeAgentAddressDiscoveryRequest(identifier, flags & 0x8000 != 0)
    if kind == HOME_AGENT_ADDRESS_DISCOVERY_REPLY:
        if (len(data) - 8) % 16:
            raise DecodeError("the home agent addresses aren't a multiple of 16 octets", offset=8)
        addresses = tuple(
            IPv6Address(data[offset : offset + 16]) for offset in range(8, len(data), 16)
        )
        return HomeAgentAddressDiscoveryReply(identifier, addresses, flags & 0x8000 != 0)
    options = _neighbor_options(data, 8)
    if kind == MOBILE_PREFIX_SOLICITATION:
        return MobilePrefixSolicitation(identifier, options)
    return MobilePrefixAdvertisement(identifier, flags & 0x8000 != 0, flags & 0x4000 != 0, options)


def _neighbor_options(data: bytes, offset: int) -> tuple[NeighborOption, ...]:
    options: list[NeighborOption] = []
    while offset < len(data):
        # RFC 4861 §4.6: a length of zero makes the whole message void.
        length = data[offset + 1] * 8 if offset + 1 < len(data) else 0
        if not length or offset + length > len(data):
            raise DecodeError(
                f"Neighbor Discovery option {data[offset]} is empty or overruns", offset=offset
            )
        kind = data[offset]
        if kind == PREFIX_INFORMATION:
            options.append(_prefix_information(data, offset, length))
        else:
            options.append(UnknownNeighborOption(kind, data[offset + 2 : offset + length]))
        offset += length
    return tuple(options)


def _prefix_information(data: bytes, offset: int, length: int) -> PrefixInformation:
    if length != 32:
        raise DecodeError(f"a Prefix Information option of {length} octets", offset=offset + 1)
    _, _, prefix_len, flags, valid, preferred, _, prefix = _PREFIX.unpack_from(data, offset)
    if prefix_len > 128:
        raise DecodeError(f"an IPv6 prefix length of {prefix_len}", offset=offset + 2)
    return PrefixInformation(
        prefix_len,
        IPv6Address(prefix),
        valid,
        preferred,
        flags & 0x80 != 0,
        flags & 0x40 != 0,
        flags & 0x20 != 0,
    )
