"""IPv4, IPv6 and UDP headers: what DSMIPv6 puts around its messages (RFC 5555 §4.1).

Parsers return the header and the payload that the header's own length field delimits; octets
behind it (link padding) are left out. They raise :class:`TruncatedError`,
:class:`ChecksumError`, :class:`VersionError` or :class:`DecodeError`, builders
:class:`EncodeError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.wire.checksum import (
    complement,
    internet_checksum,
    is_valid,
    pseudo_header4,
    pseudo_header6,
    words,
)
from dsmip_ipsec.wire.errors import (
    ChecksumError,
    DecodeError,
    EncodeError,
    TruncatedError,
    VersionError,
)

# IANA, "Assigned Internet Protocol Numbers".
IPPROTO_HOPOPTS: Final = 0
IPPROTO_ICMP: Final = 1
IPPROTO_IPIP: Final = 4
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
IPPROTO_IPV6: Final = 41
IPPROTO_ROUTING: Final = 43
IPPROTO_FRAGMENT: Final = 44
IPPROTO_ESP: Final = 50
IPPROTO_AH: Final = 51
IPPROTO_ICMPV6: Final = 58
IPPROTO_NONE: Final = 59
IPPROTO_DSTOPTS: Final = 60
IPPROTO_MH: Final = 135

DSMIP_PORT: Final = 4191  # RFC 5555 §8
IKE_NATT_PORT: Final = 4500  # RFC 3948

_IPV4 = struct.Struct("!BBHHHBBHII")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_DONT_FRAGMENT = 0x4000
_MORE_FRAGMENTS = 0x2000


@dataclass(frozen=True, slots=True)
class IPv4Header:
    """IPv4 (RFC 791). ``tos`` is DSCP and ECN, ``fragment_offset`` is in octets."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    ttl: int = 64
    tos: int = 0
    identification: int = 0
    dont_fragment: bool = True
    more_fragments: bool = False
    fragment_offset: int = 0
    options: bytes = b""

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.fragment_offset > 0


@dataclass(frozen=True, slots=True)
class IPv6Header:
    """IPv6 (RFC 8200). ``traffic_class`` is DSCP and ECN; ``next_header`` may be an extension
    header: see :mod:`dsmip_ipsec.wire.exthdr`."""

    source: IPv6Address
    destination: IPv6Address
    next_header: int
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0


@dataclass(frozen=True, slots=True)
class UdpHeader:
    """UDP (RFC 768). ``checksum`` is as received; 0 means that the sender made none."""

    source_port: int
    destination_port: int
    checksum: int = 0


def ip_version(data: bytes) -> int:
    """4 or 6: the first thing to ask of what follows the UDP header (RFC 5555 §4.1)."""
    if not data:
        raise TruncatedError("an IP header is expected, there is nothing", offset=0)
    version = data[0] >> 4
    if version not in (4, 6):
        raise VersionError(f"IP version {version}", offset=0)
    return version


def traffic_class_of(packet: bytes) -> int:
    """TOS or traffic class, DSCP and ECN, of what begins with a whole IP header."""
    if packet[0] >> 4 == 6:
        return (packet[0] << 4 | packet[1] >> 4) & 0xFF
    return packet[1]


def with_ecn(packet: bytes, ecn: int) -> bytes:
    """``packet``, which begins with a whole IP header, with other ECN bits (RFC 3168 §5)."""
    head = bytearray(packet)
    if packet[0] >> 4 == 6:
        head[1] = head[1] & 0xCF | ecn << 4
        return bytes(head)
    head[1] = head[1] & 0xFC | ecn
    # The rest of the header must keep what its checksum said about it (RFC 1624).
    changed = int.from_bytes(head[10:12], "big") ^ 0xFFFF
    changed += 0xFFFF - packet[1] + head[1]
    head[10:12] = complement(changed).to_bytes(2, "big")
    return bytes(head)


def build_ipv4(header: IPv4Header, payload: bytes) -> bytes:
    """An IPv4 packet, with checksum."""
    if len(header.options) % 4 or len(header.options) > 40:
        raise EncodeError("IPv4 options take a multiple of 4 octets, 40 at most")
    if header.fragment_offset % 8:
        raise EncodeError("an IPv4 fragment offset is a multiple of 8 octets")
    length = 20 + len(header.options) + len(payload)
    fragment = (
        header.fragment_offset >> 3
        | (_DONT_FRAGMENT if header.dont_fragment else 0)
        | (_MORE_FRAGMENTS if header.more_fragments else 0)
    )
    try:
        raw = _IPV4.pack(
            0x45 + len(header.options) // 4,
            header.tos,
            length,
            header.identification,
            fragment,
            header.ttl,
            header.protocol,
            0,
            int(header.source),
            int(header.destination),
        )
    except struct.error as error:
        raise EncodeError(f"IPv4 header: {error}") from error
    raw += header.options
    return raw[:10] + internet_checksum(raw).to_bytes(2, "big") + raw[12:] + payload


def parse_ipv4(data: bytes) -> tuple[IPv4Header, bytes]:
    """Split an IPv4 packet; the header checksum is verified. Fragments aren't joined: ask
    ``is_fragment`` before reading a payload."""
    if len(data) < 20:
        raise TruncatedError(f"an IPv4 header has 20 octets, here are {len(data)}", offset=0)
    data = bytes(data)
    first, tos, length, identification, fragment, ttl, protocol, _, source, destination = (
        _IPV4.unpack_from(data)
    )
    if first >> 4 != 4:
        raise VersionError(f"IP version {first >> 4}, not 4", offset=0)
    header_length = (first & 15) * 4
    if header_length < 20 or length < header_length:
        raise DecodeError("IPv4 header length and total length contradict each other", offset=0)
    if length > len(data):
        raise TruncatedError(f"IPv4 total length {length}, here are {len(data)}", offset=2)
    if not is_valid(words(data[:header_length])):
        raise ChecksumError("IPv4 header checksum", offset=10, hint="the packet was changed")
    return (
        IPv4Header(
            IPv4Address(source),
            IPv4Address(destination),
            protocol,
            ttl,
            tos,
            identification,
            bool(fragment & _DONT_FRAGMENT),
            bool(fragment & _MORE_FRAGMENTS),
            (fragment & 0x1FFF) << 3,
            data[20:header_length],
        ),
        data[header_length:length],
    )


def build_ipv6(header: IPv6Header, payload: bytes) -> bytes:
    """An IPv6 packet; ``payload`` starts with the header that ``next_header`` names."""
    if not 0 <= header.traffic_class <= 0xFF or not 0 <= header.flow_label <= 0xFFFFF:
        raise EncodeError("the traffic class has 8 bits and the flow label 20")
    try:
        return (
            _IPV6.pack(
                6 << 28 | header.traffic_class << 20 | header.flow_label,
                len(payload),
                header.next_header,
                header.hop_limit,
                header.source.packed,
                header.destination.packed,
            )
            + payload
        )
    except struct.error as error:
        raise EncodeError(f"IPv6 header: {error}") from error


def parse_ipv6(data: bytes) -> tuple[IPv6Header, bytes]:
    """Split an IPv6 packet (no jumbograms)."""
    if len(data) < 40:
        raise TruncatedError(f"an IPv6 header has 40 octets, here are {len(data)}", offset=0)
    data = bytes(data)
    first, length, next_header, hop_limit, source, destination = _IPV6.unpack_from(data)
    if first >> 28 != 6:
        raise VersionError(f"IP version {first >> 28}, not 6", offset=0)
    if length > len(data) - 40:
        raise TruncatedError(f"IPv6 payload length {length}, here are {len(data) - 40}", offset=4)
    return (
        IPv6Header(
            IPv6Address(source),
            IPv6Address(destination),
            next_header,
            hop_limit,
            first >> 20 & 0xFF,
            first & 0xFFFFF,
        ),
        data[40 : 40 + length],
    )


def build_udp(
    source: IPv4Address | IPv6Address,
    source_port: int,
    destination: IPv4Address | IPv6Address,
    destination_port: int,
    payload: bytes,
    *,
    checksum: bool = True,
) -> bytes:
    """A UDP header and its payload. ``checksum=False`` writes 0: legal in IPv4, and in IPv6
    only where RFC 6935 allows it."""
    length = 8 + len(payload)
    try:
        raw = _UDP.pack(source_port, destination_port, length, 0) + payload
    except struct.error as error:
        raise EncodeError(f"UDP header: {error}") from error
    if not checksum:
        return raw
    # RFC 768: a checksum that comes out as zero is sent as all ones.
    total = complement(_pseudo_header(source, destination, length) + words(raw)) or 0xFFFF
    return raw[:6] + total.to_bytes(2, "big") + payload


def parse_udp(
    data: bytes,
    source: IPv4Address | IPv6Address | None = None,
    destination: IPv4Address | IPv6Address | None = None,
) -> tuple[UdpHeader, bytes]:
    """Split a UDP datagram. With both addresses the checksum is verified, unless it is zero
    ("none made", which this accepts over IPv6 too, see RFC 6935)."""
    if len(data) < 8:
        raise TruncatedError(f"a UDP header has 8 octets, here are {len(data)}", offset=0)
    data = bytes(data)
    source_port, destination_port, length, checksum = _UDP.unpack_from(data)
    if length < 8:
        raise DecodeError(f"UDP length {length} is shorter than the header", offset=4)
    if length > len(data):
        raise TruncatedError(f"UDP length {length}, here are {len(data)}", offset=4)
    data = data[:length]
    if (
        checksum
        and source is not None
        and destination is not None
        and not is_valid(_pseudo_header(source, destination, length) + words(data))
    ):
        raise ChecksumError("UDP checksum", offset=6, hint="the datagram was changed on the way")
    return UdpHeader(source_port, destination_port, checksum), data[8:]


def _pseudo_header(
    source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address, length: int
) -> int:
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        return pseudo_header4(source, destination, length, IPPROTO_UDP)
    if isinstance(source, IPv6Address) and isinstance(destination, IPv6Address):
        return pseudo_header6(source, destination, length, IPPROTO_UDP)
    raise EncodeError("source and destination are of different address families")


def build_udp4(
    src: IPv4Address,
    sport: int,
    dst: IPv4Address,
    dport: int,
    payload: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    identification: int = 0,
    dont_fragment: bool = True,
    checksum: bool = True,
) -> bytes:
    """A whole IPv4/UDP packet: the outside of each message on port 4191 (RFC 5555 §4.2)."""
    udp = build_udp(src, sport, dst, dport, payload, checksum=checksum)
    header = IPv4Header(src, dst, IPPROTO_UDP, ttl, tos, identification, dont_fragment)
    return build_ipv4(header, udp)


def build_udp6(
    src: IPv6Address,
    sport: int,
    dst: IPv6Address,
    dport: int,
    payload: bytes,
    *,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
) -> bytes:
    """A whole IPv6/UDP packet: the last resort of RFC 5555 §4.4.1."""
    udp = build_udp(src, sport, dst, dport, payload)
    return build_ipv6(IPv6Header(src, dst, IPPROTO_UDP, hop_limit, traffic_class, flow_label), udp)
