"""ESP and the IP headers around it: transport and tunnel mode (RFC 4303 §3.1), UDP encapsulation
(RFC 3948 §3), ECN through tunnels (RFC 6040).

Packets are whole IP packets in ``bytes``. Inner and outer family of a tunnel are independent.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.ipsec.esp import EspSender
from dsmip_ipsec.ipsec.esp_errors import (
    DummyPacket,
    EspError,
    EspFormatError,
    SequenceExhausted,
)
from dsmip_ipsec.ipsec.model import Address, SecurityAssociation
from dsmip_ipsec.wire.checksum import internet_checksum
from dsmip_ipsec.wire.errors import DecodeError, TruncatedError
from dsmip_ipsec.wire.exthdr import final_addresses, parse_extension_headers
from dsmip_ipsec.wire.ip import (
    IPPROTO_DSTOPTS,
    IPPROTO_ESP,
    IPPROTO_FRAGMENT,
    IPPROTO_HOPOPTS,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
    IPPROTO_MH,
    IPPROTO_NONE,
    IPPROTO_ROUTING,
    IPPROTO_UDP,
    build_udp,
    ip_version,
    parse_ipv4,
    parse_ipv6,
    with_ecn,
)

_CHAIN: Final = (IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_DSTOPTS)
_TTL: Final = 64
_DONT_FRAGMENT: Final = 0x4000
_IPV4: Final = struct.Struct("!BBHHHBBHII")
_IPV4_UDP: Final = struct.Struct("!BBHHHBBHIIHHHH")
_IPV6: Final = struct.Struct("!IHBB16s16s")

_NOT_ECT, _ECT1, _ECT0, _CE = range(4)
# RFC 6040 §4.2, figure 4: (inner, outer) -> inner as delivered, where it changes; None: drop.
_ECN: Final[dict[tuple[int, int], int | None]] = {
    (_NOT_ECT, _CE): None,
    (_ECT0, _ECT1): _ECT1,
    (_ECT0, _CE): _CE,
    (_ECT1, _CE): _CE,
}


class CongestionError(EspError):
    """The outer header says "congestion experienced", the inner one knows no ECN: a loss."""

    default_hint = "a congested router marked what it would have dropped: send less"


@dataclass(frozen=True, slots=True)
class PacketView:
    """What policies and SAs ask of a packet.

    ``source`` and ``destination`` are those that selectors mean: home addresses in place of
    care-of addresses (RFC 6275 §11.3.2). ``wire_destination`` is the IP header's.
    ``protocol`` is that of the upper layer behind all extension headers, at ``offset``; the
    octet that names it stands at ``field``. It is None where a fragment hides it.
    ``traffic_class`` is DSCP and ECN.
    """

    version: int
    source: Address
    destination: Address
    wire_source: Address
    wire_destination: Address
    protocol: int | None
    offset: int
    field: int
    length: int
    traffic_class: int
    mobility_header_type: int | None = None
    fragment: bool = False


def view(packet: bytes) -> PacketView:
    """Look at an IP packet; octets behind its length are not counted.

    Raises :class:`DecodeError` for what no receiver could use.
    """
    if ip_version(packet) == 4:
        header4, payload = parse_ipv4(packet)
        offset = 20 + len(header4.options)
        return PacketView(
            4,
            header4.source,
            header4.destination,
            header4.source,
            header4.destination,
            header4.protocol,
            offset,
            9,
            offset + len(payload),
            header4.tos,
            fragment=header4.is_fragment,
        )
    header, payload = parse_ipv6(packet)
    chain, rest = parse_extension_headers(
        header.next_header, payload, to_multicast=header.destination.is_multicast
    )
    source, destination = final_addresses(header, chain)
    protocol: int | None = chain.protocol
    mh_type: int | None = None
    fragment = protocol == IPPROTO_FRAGMENT
    if fragment:
        # Its own chain may go on behind the fragment header; only the first fragment has it.
        if len(rest) < 8:
            raise TruncatedError("an IPv6 fragment header is cut short", offset=40 + chain.offset)
        protocol = None if rest[0] in (*_CHAIN, IPPROTO_FRAGMENT) else rest[0]
    elif protocol == IPPROTO_MH:
        if len(rest) < 3:
            raise TruncatedError("a Mobility Header is cut short", offset=40 + chain.offset)
        mh_type = rest[2]
    return PacketView(
        6,
        source,
        destination,
        header.source,
        header.destination,
        protocol,
        40 + chain.offset,
        _last_field(packet, chain.offset),
        40 + len(payload),
        header.traffic_class,
        mh_type,
        fragment,
    )


def _last_field(packet: bytes, chain_length: int) -> int:
    """Where the Next Header stands that names what follows a chain of checked headers."""
    field, offset, end = 6, 40, 40 + chain_length
    while offset < end:
        field = offset
        offset += (packet[offset + 1] + 1) * 8
    return field


# --- outbound ---


def encapsulator(sender: EspSender) -> Callable[[bytes], bytes]:
    """A function from a whole inner packet to the outer packet, for a tunnel mode SA.

    DSCP and ECN are copied outwards (RFC 4301 §5.1.2, RFC 6040 §4.1), and DF of an IPv4 packet;
    IPv6 in IPv4 gets DF. The function raises :class:`SequenceExhausted`; its argument must be a
    packet whose length field is right.
    """
    association = sender.association
    outer = _outer_header(association)
    seal, limit = sender.cipher_seal, sender.limit

    def encapsulate(packet: bytes) -> bytes:
        # EspSender.seal() in line: this runs for every packet.
        sequence = sender.sequence + 1
        if sequence > limit:
            raise SequenceExhausted(association.spi)
        sender.sequence = sequence
        first = packet[0]
        if first < 0x50:
            esp = seal(sequence, packet, IPPROTO_IPIP)
            flags = packet[6] << 8 & _DONT_FRAGMENT
            # RFC 6864 §4.1: only a packet that may be fragmented needs an identification.
            return outer(esp, packet[1], flags, 0 if flags else sequence & 0xFFFF)
        esp = seal(sequence, packet, IPPROTO_IPV6)
        return outer(esp, (first << 4 | packet[1] >> 4) & 0xFF, _DONT_FRAGMENT, 0)

    return encapsulate


def dummy(sender: EspSender) -> bytes:
    """A dummy packet of a tunnel mode SA (RFC 4303 §2.6), which its receiver drops once it has
    seen that it is authentic. Raises :class:`SequenceExhausted`."""
    outer = _outer_header(sender.association)
    return outer(sender.seal(b"", IPPROTO_NONE), 0, _DONT_FRAGMENT, 0)


_Outer = Callable[[bytes, int, int, int], bytes]


def _outer_header(association: SecurityAssociation) -> _Outer:
    """(ESP packet, DSCP and ECN, flags, identification) -> the whole packet."""
    source, destination = association.source, association.destination
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        return _outer_ipv4(association, int(source), int(destination))
    if isinstance(source, IPv6Address) and isinstance(destination, IPv6Address):
        return _outer_ipv6(association, source, destination)
    raise EspError(
        f"{source} and {destination} are of different families",
        spi=association.spi,
        hint="give both ends of the tunnel addresses of one family",
    )


def _outer_ipv4(association: SecurityAssociation, source: int, destination: int) -> _Outer:
    ports = association.encapsulation
    protocol = IPPROTO_UDP if ports is not None else IPPROTO_ESP
    # The header's sum without what changes from packet to packet (RFC 1071).
    constant = 0x4500 + (_TTL << 8 | protocol) + source + destination
    pack, pack_udp = _IPV4.pack, _IPV4_UDP.pack

    def plain(esp: bytes, tos: int, flags: int, identification: int) -> bytes:
        length = 20 + len(esp)
        checksum = -(constant + tos + length + flags + identification) % 0xFFFF
        head = pack(
            0x45,
            tos,
            length,
            identification,
            flags,
            _TTL,
            protocol,
            checksum,
            source,
            destination,
        )
        return head + esp

    if ports is None:
        return plain
    sport, dport = ports.source_port, ports.destination_port

    def encapsulated(esp: bytes, tos: int, flags: int, identification: int) -> bytes:
        length = 28 + len(esp)
        checksum = -(constant + tos + length + flags + identification) % 0xFFFF
        head = pack_udp(
            0x45,
            tos,
            length,
            identification,
            flags,
            _TTL,
            protocol,
            checksum,
            source,
            destination,
            sport,
            dport,
            length - 20,
            0,  # RFC 3948 §2.1: the UDP checksum SHOULD be zero
        )
        return head + esp

    return encapsulated


def _outer_ipv6(
    association: SecurityAssociation, source: IPv6Address, destination: IPv6Address
) -> _Outer:
    ports = association.encapsulation
    pack = _IPV6.pack
    ends = source.packed, destination.packed

    def plain(esp: bytes, traffic_class: int, flags: int, identification: int) -> bytes:
        first = 6 << 28 | traffic_class << 20
        return pack(first, len(esp), IPPROTO_ESP, _TTL, *ends) + esp

    if ports is None:
        return plain
    sport, dport = ports.source_port, ports.destination_port

    def encapsulated(esp: bytes, traffic_class: int, flags: int, identification: int) -> bytes:
        # Over IPv6 a checksum of zero is for those who agreed on it (RFC 8200 §8.1).
        udp = build_udp(source, sport, destination, dport, esp)
        return pack(6 << 28 | traffic_class << 20, len(udp), IPPROTO_UDP, _TTL, *ends) + udp

    return encapsulated


def to_transport(sender: EspSender, packet: bytes, seen: PacketView) -> bytes:
    """The packet with its upper layer in ESP (transport mode); ``seen`` is its view.

    ESP goes behind the extension headers, as RFC 4303 §3.1.1 and RFC 6275 §11.3.2 (Home Address
    option, routing header) want it. Raises :class:`EspError` for fragments (RFC 4303 §3.3.4),
    :class:`SequenceExhausted`.
    """
    if seen.fragment or seen.protocol is None:
        raise EspError(
            "transport mode protects whole datagrams, this is a fragment",
            spi=sender.association.spi,
            hint="let the packet be protected before it is fragmented",
        )
    payload = sender.seal(packet[seen.offset : seen.length], seen.protocol)
    protocol = IPPROTO_ESP
    ports = sender.association.encapsulation
    if ports is not None:
        payload = build_udp(
            seen.wire_source,
            ports.source_port,
            seen.wire_destination,
            ports.destination_port,
            payload,
            checksum=seen.version == 6,
        )
        protocol = IPPROTO_UDP
    return _with_payload(packet, seen, protocol, payload)


def _with_payload(packet: bytes, seen: PacketView, protocol: int, payload: bytes) -> bytes:
    """The packet's headers with another upper layer: lengths and checksum follow."""
    length = seen.offset + len(payload)
    if length - (40 if seen.version == 6 else 0) > 0xFFFF:
        raise EspFormatError(f"{length} octets don't fit an IP packet")
    head = bytearray(packet[: seen.offset])
    head[seen.field] = protocol
    if seen.version == 6:
        head[4:6] = (length - 40).to_bytes(2, "big")
    else:
        head[2:4] = length.to_bytes(2, "big")
        head[10:12] = bytes(2)
        head[10:12] = internet_checksum(bytes(head)).to_bytes(2, "big")
    return bytes(head) + payload


# --- inbound ---


def from_transport(packet: bytes, seen: PacketView, payload: bytes, next_header: int) -> bytes:
    """The packet as it was before transport mode; ``seen`` is the view of the outer one.

    TCP and UDP checksums behind a NAT are left as they are (RFC 3948 §3.1.2 needs the original
    addresses, which an SA doesn't have). Raises :class:`DummyPacket`.
    """
    if next_header == IPPROTO_NONE:
        raise DummyPacket(0)
    return _with_payload(packet, seen, next_header, payload)


def from_tunnel(payload: bytes, next_header: int, outer_traffic_class: int, spi: int) -> bytes:
    """The inner packet of a tunnel mode payload: TFC padding cut off, ECN as RFC 6040 has it.

    Raises :class:`DummyPacket`, :class:`EspFormatError`, :class:`CongestionError`.
    """
    if next_header == IPPROTO_IPIP:
        if len(payload) < 20 or payload[0] >> 4 != 4:
            raise EspFormatError("next header 4, but no IPv4 packet inside", spi=spi)
        length = payload[2] << 8 | payload[3]
        header_length = (payload[0] & 15) * 4
        traffic_class = payload[1]
        if header_length < 20 or length < header_length:
            raise EspFormatError("the lengths of the inner IPv4 header don't agree", spi=spi)
    elif next_header == IPPROTO_IPV6:
        if len(payload) < 40 or payload[0] >> 4 != 6:
            raise EspFormatError("next header 41, but no IPv6 packet inside", spi=spi)
        length = 40 + (payload[4] << 8 | payload[5])
        traffic_class = payload[0] << 4 | payload[1] >> 4
    elif next_header == IPPROTO_NONE:
        raise DummyPacket(spi)
    else:
        raise EspFormatError(f"next header {next_header} in tunnel mode", spi=spi)
    if length > len(payload):
        raise EspFormatError(
            f"an inner packet of {length} octets in {len(payload)} of payload", spi=spi
        )
    if length < len(payload):
        payload = payload[:length]
    outer = outer_traffic_class & 3
    if outer:
        inner = traffic_class & 3
        ecn = _ECN.get((inner, outer), inner)
        if ecn is None:
            raise CongestionError("congestion experienced, and no ECN inside", spi=spi)
        if ecn != inner:
            payload = with_ecn(payload, ecn)
    return payload


def split_udp(packet: bytes, seen: PacketView) -> tuple[int, int, bytes]:
    """Source port, destination port and payload of the UDP datagram in a packet.

    The checksum isn't looked at (RFC 3948 §2.1: receivers MUST NOT depend on it being zero, and
    ESP has its ICV). Raises :class:`DecodeError`.
    """
    offset = seen.offset
    if seen.length - offset < 8:
        raise TruncatedError("a UDP header is cut short", offset=offset)
    sport, dport, length, _ = struct.unpack_from("!HHHH", packet, offset)
    if not 8 <= length <= seen.length - offset:
        raise DecodeError(f"UDP length {length} in {seen.length - offset} octets", offset=offset)
    return sport, dport, packet[offset + 8 : offset + length]
