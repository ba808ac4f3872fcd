"""Neighbor Discovery (RFC 4861) and ARP (RFC 826), as much as mobility needs of them: whole IPv6
packets for the former, since their hop limit and source address are part of what is said.

Receivers of Neighbor Discovery look at the hop limit (RFC 4861 §6.1, §7.1): a packet that was
forwarded is none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.errors import DecodeError, EncodeError, TruncatedError
from dsmip_ipsec.wire.icmp6 import PREFIX_INFORMATION, UnknownIcmp
from dsmip_ipsec.wire.ip import IPv6Header, build_ipv6, parse_ipv6

ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOR_SOLICITATION: Final = 135
NEIGHBOR_ADVERTISEMENT: Final = 136

ALL_NODES: Final = IPv6Address("ff02::1")
ALL_ROUTERS: Final = IPv6Address("ff02::2")
UNSPECIFIED: Final = IPv6Address(0)

IPPROTO_ICMPV6: Final = 58
_HOP_LIMIT: Final = 255
_SOURCE_LINK_LAYER_ADDRESS = 1
_TARGET_LINK_LAYER_ADDRESS = 2
_ADVERTISEMENT_INTERVAL = 7  # RFC 6275 §7.3
_HOME_AGENT_INFORMATION = 8  # RFC 6275 §7.4
_SOLICITED = 0x40
_OVERRIDE = 0x20
_ROUTER_ADDRESS = 0x20
_HOME_AGENT = 0x20 << 16  # RFC 6275 §7.1
_MOBILE_ROUTERS = 0x8000  # RFC 3963 §7.3

_ROUTER_HEAD = struct.Struct("!BBHII")
_PREFIX = struct.Struct("!BBII4x16s")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_REPLY = 2


def solicited_node(target: IPv6Address) -> IPv6Address:
    """RFC 4291 §2.7.1."""
    return IPv6Address(0xFF02_0000_0000_0000_0000_0001_FF00_0000 | int(target) & 0xFFFFFF)


def multicast_link_address(group: IPv6Address) -> bytes:
    """The Ethernet address of a multicast group (RFC 2464 §7)."""
    return b"\x33\x33" + group.packed[12:]


def link_local_of(link_address: bytes) -> IPv6Address:
    """The link-local address of an Ethernet address (RFC 4291 appendix A)."""
    if len(link_address) != 6:
        raise EncodeError(f"a link-layer address of {len(link_address)} octets")
    identifier = bytes((link_address[0] ^ 2,)) + link_address[1:3] + b"\xff\xfe" + link_address[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


@dataclass(frozen=True, slots=True)
class NeighborSolicitation:
    """Somebody (``source``; unspecified: in duplicate address detection) asks for ``target``."""

    source: IPv6Address
    target: IPv6Address


@dataclass(frozen=True, slots=True)
class NeighborAdvertisement:
    """``target`` is there, says ``source``."""

    source: IPv6Address
    target: IPv6Address
    solicited: bool
    override: bool


@dataclass(frozen=True, slots=True)
class PrefixHeard:
    """A prefix information option. ``router``: the whole address, with the R flag (RFC 6275
    §7.2). Lifetime in seconds."""

    prefix: IPv6Network
    on_link: bool
    autonomous: bool
    valid_lifetime: int
    router: IPv6Address | None


@dataclass(frozen=True, slots=True)
class RouterAdvertisementHeard:
    """A router advertisement. ``lifetime`` and ``interval`` in seconds, the latter None without
    the option. ``home_agent``: the H flag; what the home agent information option then says,
    ``home_agent_lifetime`` in seconds, is None without one (RFC 6275 §7.1, §7.4)."""

    source: IPv6Address
    lifetime: int
    prefixes: tuple[PrefixHeard, ...]
    interval: float | None
    home_agent: bool = False
    preference: int | None = None
    home_agent_lifetime: int | None = None
    mobile_routers: bool = False


Heard = NeighborSolicitation | NeighborAdvertisement | RouterAdvertisementHeard


def _packet(source: IPv6Address, destination: IPv6Address, message: UnknownIcmp) -> bytes:
    header = IPv6Header(source, destination, IPPROTO_ICMPV6, hop_limit=_HOP_LIMIT)
    return build_ipv6(header, icmp6.encode(message, source, destination))


def duplicate_address_probe(target: IPv6Address) -> bytes:
    """The neighbor solicitation of duplicate address detection (RFC 4862 §5.4.2)."""
    body = bytes(4) + target.packed
    message = UnknownIcmp(NEIGHBOR_SOLICITATION, 0, body)
    return _packet(UNSPECIFIED, solicited_node(target), message)


def neighbor_solicitation(source: IPv6Address, target: IPv6Address, link_address: bytes) -> bytes:
    """A unicast neighbor solicitation: is ``target`` still there? ``link_address`` is ours."""
    body = bytes(4) + target.packed + _link_option(_SOURCE_LINK_LAYER_ADDRESS, link_address)
    return _packet(source, target, UnknownIcmp(NEIGHBOR_SOLICITATION, 0, body))


def solicited_advertisement(
    source: IPv6Address, destination: IPv6Address, target: IPv6Address, link_address: bytes
) -> bytes:
    """The answer to a neighbor solicitation for ``target``, which is at ``link_address``."""
    body = bytes((_SOLICITED | _OVERRIDE, 0, 0, 0)) + target.packed
    body += _link_option(_TARGET_LINK_LAYER_ADDRESS, link_address)
    return _packet(source, destination, UnknownIcmp(NEIGHBOR_ADVERTISEMENT, 0, body))


def router_solicitation(source: IPv6Address, link_address: bytes) -> bytes:
    """To all routers. ``source`` may be unspecified: then without our link-layer address."""
    option = b""
    if source != UNSPECIFIED:
        option = _link_option(_SOURCE_LINK_LAYER_ADDRESS, link_address)
    return _packet(source, ALL_ROUTERS, UnknownIcmp(ROUTER_SOLICITATION, 0, bytes(4) + option))


def unsolicited_advertisement(source: IPv6Address, message: UnknownIcmp) -> bytes:
    """A neighbor advertisement to all nodes (RFC 6275 §10.4.1)."""
    return _packet(source, ALL_NODES, message)


def _link_option(kind: int, link_address: bytes) -> bytes:
    if len(link_address) != 6:
        raise EncodeError(f"a link-layer address of {len(link_address)} octets")
    return bytes((kind, 1)) + link_address


def read(packet: bytes) -> Heard | None:
    """What an IPv6 packet says in Neighbor Discovery; None when it is something else. Raises
    WireError for one that is broken (and must be ignored)."""
    header, payload = parse_ipv6(packet)
    if header.next_header != IPPROTO_ICMPV6 or not payload:
        return None
    kind = payload[0]
    if kind not in (ROUTER_ADVERTISEMENT, NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
        return None
    if header.hop_limit != _HOP_LIMIT:
        raise DecodeError(f"neighbor discovery with hop limit {header.hop_limit}", offset=7)
    message = icmp6.decode(payload, header.source, header.destination)
    assert isinstance(message, UnknownIcmp), "none of those types is known there"
    if message.code:
        raise DecodeError(f"neighbor discovery with code {message.code}", offset=1)
    if kind == ROUTER_ADVERTISEMENT:
        return _router_advertisement(header, payload)
    if len(payload) < 24:
        raise TruncatedError("a neighbor discovery message is cut short", offset=len(payload))
    target = IPv6Address(payload[8:24])
    if target.is_multicast:
        raise DecodeError(f"the target {target} is a multicast address", offset=8)
    for _ in _options(payload, 24):
        pass  # RFC 4861 §7.1: all options have a length above zero
    if kind == NEIGHBOR_SOLICITATION:
        return NeighborSolicitation(header.source, target)
    flags = payload[4]
    return NeighborAdvertisement(
        header.source, target, bool(flags & _SOLICITED), bool(flags & _OVERRIDE)
    )


def _router_advertisement(header: IPv6Header, payload: bytes) -> RouterAdvertisementHeard:
    """RFC 4861 §6.1.2."""
    if not header.source.is_link_local:
        raise DecodeError(f"a router advertisement from {header.source}", offset=8)
    if len(payload) < 16:
        raise TruncatedError("a router advertisement is cut short", offset=len(payload))
    flags_and_lifetime = int.from_bytes(payload[4:8], "big")
    prefixes: list[PrefixHeard] = []
    interval: float | None = None
    preference: int | None = None
    home_agent_lifetime: int | None = None
    mobile_routers = False
    for kind, data in _options(payload, 16):
        if kind == PREFIX_INFORMATION and len(data) == 30:
            heard = _prefix(data)
            if heard is not None:
                prefixes.append(heard)
        elif kind == _ADVERTISEMENT_INTERVAL and len(data) == 6:
            interval = int.from_bytes(data[2:6], "big") / 1000
        elif kind == _HOME_AGENT_INFORMATION and len(data) == 6:
            mobile_routers = bool(int.from_bytes(data[:2], "big") & _MOBILE_ROUTERS)
            preference = int.from_bytes(data[2:4], "big", signed=True)
            home_agent_lifetime = int.from_bytes(data[4:6], "big")
    return RouterAdvertisementHeard(
        header.source,
        flags_and_lifetime & 0xFFFF,
        tuple(prefixes),
        interval,
        bool(flags_and_lifetime & _HOME_AGENT),
        preference,
        home_agent_lifetime,
        mobile_routers,
    )


def _prefix(data: bytes) -> PrefixHeard | None:
    length, flags, valid, _, raw = _PREFIX.unpack(data)
    if length > 128:
        return None
    address = IPv6Address(raw)
    return PrefixHeard(
        IPv6Network((address, length), strict=False),
        bool(flags & 0x80),
        bool(flags & 0x40),
        valid,
        address if flags & _ROUTER_ADDRESS else None,
    )


def _options(payload: bytes, offset: int) -> list[tuple[int, bytes]]:
    """(type, all behind type and length). Raises WireError."""
    found: list[tuple[int, bytes]] = []
    while offset < len(payload):
        if offset + 2 > len(payload):
            raise TruncatedError("a neighbor discovery option is cut short", offset=offset)
        end = offset + payload[offset + 1] * 8
        if end == offset or end > len(payload):
            raise DecodeError(
                "a neighbor discovery option of no or too great length", offset=offset
            )
        found.append((payload[offset], payload[offset + 2 : end]))
        offset = end
    return found


@dataclass(frozen=True, slots=True)
class Arp:
    """The fields of an ARP packet of IPv4 over Ethernet. ``operation``: 1 request, 2 reply."""

    operation: int
    sender_link_address: bytes
    sender: IPv4Address
    target_link_address: bytes
    target: IPv4Address

    @property
    def is_reply(self) -> bool:
        return self.operation == _ARP_REPLY


def arp_request(
    link_address: bytes, sender: IPv4Address, target: IPv4Address, *, reply: bool = False
) -> bytes:
    """An ARP packet. With ``sender`` the target itself it is gratuitous: neighbours learn who
    answers for the address from now on (RFC 5944 §4.6). ``reply``: as the operation says."""
    if len(link_address) != 6:
        raise EncodeError(f"a link-layer address of {len(link_address)} octets")
    there = link_address if reply else bytes(6)
    return _ARP.pack(
        1, 0x0800, 6, 4, 2 if reply else 1, link_address, sender.packed, there, target.packed
    )


def read_arp(packet: bytes) -> Arp:
    """Raises WireError for anything but IPv4 over Ethernet."""
    if len(packet) < _ARP.size:
        raise TruncatedError("an ARP packet is cut short", offset=len(packet))
    hardware, protocol, hardware_size, size, operation, sha, spa, tha, tpa = _ARP.unpack_from(
        packet
    )
    if (hardware, protocol, hardware_size, size) != (1, 0x0800, 6, 4):
        raise DecodeError("an ARP packet that isn't IPv4 over Ethernet", offset=0)
    return Arp(operation, sha, IPv4Address(spa), tha, IPv4Address(tpa))
