"""Captured packets as layers, from the link down to the options of a binding update.

Nothing here raises: what is malformed gets its ``error``, and what can still be read behind it is
read. A capture shows what was on the wire, so lengths and checksums are told, not enforced, where
the rest can be found without them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ipsec.model import Address
from dsmip_ipsec.userspace.capture_file import Frame
from dsmip_ipsec.userspace.dissect_ike import dissect_ike
from dsmip_ipsec.userspace.dissect_upper import dissect_icmp6, dissect_mobility, dissect_plain
from dsmip_ipsec.userspace.key_ring import KeyRing, NoKey
from dsmip_ipsec.userspace.layers import Fields, Layer
from dsmip_ipsec.wire.checksum import is_valid, words
from dsmip_ipsec.wire.esp import Encapsulated, classify, parse_esp
from dsmip_ipsec.wire.exthdr import HOME_ADDRESS_OPTION, TYPE2_ROUTING
from dsmip_ipsec.wire.ip import (
    DSMIP_PORT,
    IKE_NATT_PORT,
    IPPROTO_DSTOPTS,
    IPPROTO_ESP,
    IPPROTO_FRAGMENT,
    IPPROTO_HOPOPTS,
    IPPROTO_ICMPV6,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
    IPPROTO_MH,
    IPPROTO_NONE,
    IPPROTO_ROUTING,
    IPPROTO_UDP,
)

_IKE_PORT: Final = 500
_MAX_DEPTH: Final = 16
"""IP headers inside each other before we give up."""

_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_UDP: Final = struct.Struct("!HHHH")
_ETHERTYPE_IPV4: Final = 0x0800
_ETHERTYPE_IPV6: Final = 0x86DD
_ETHERTYPE_ARP: Final = 0x0806
_VLAN: Final = frozenset({0x8100, 0x88A8, 0x9100})
_EXTENSIONS: Final = {
    IPPROTO_HOPOPTS: "IPv6 Hop-by-Hop Options",
    IPPROTO_ROUTING: "IPv6 Routing",
    IPPROTO_DSTOPTS: "IPv6 Destination Options",
}


@dataclass(frozen=True, slots=True)
class _Ip:
    """Where an upper layer is: addresses on the wire, and home addresses where they are given;
    ``cut``: the capture has less of the packet than was on the wire."""

    source: Address
    destination: Address
    cut: bool = False
    home_source: IPv6Address | None = None
    home_destination: IPv6Address | None = None

    @property
    def final_source(self) -> Address:
        return self.home_source or self.source

    @property
    def final_destination(self) -> Address:
        return self.home_destination or self.destination


class Dissector:
    """Takes packets apart, with the keys that there are."""

    def __init__(self, keys: KeyRing | None = None) -> None:
        self._keys = keys or KeyRing()
        self._layers: list[Layer] = []
        self._depth = 0

    def dissect(self, frame: Frame) -> list[Layer]:
        """The layers of a packet, outermost first."""
        self._layers = []
        self._depth = 0
        cut = len(frame.data) < frame.length
        link = _LINKS.get(frame.link_type)
        if link is None:
            layer = self._layer(f"link type {frame.link_type}")
            layer.error = "this link type can't be read here"
        else:
            link(self, frame.data, cut)
        return self._layers

    def _layer(self, name: str, fields: Fields | None = None) -> Layer:
        layer = Layer(name, fields if fields is not None else {})
        self._layers.append(layer)
        return layer

    # --- links ---

    def _ethernet(self, data: bytes, cut: bool) -> None:
        layer = self._layer("Ethernet")
        if len(data) < 14:
            layer.error = f"an Ethernet header has 14 octets, here are {len(data)}"
            return
        kind = data[12] << 8 | data[13]
        layer.fields = {"destination": data[:6].hex(":"), "source": data[6:12].hex(":")}
        offset = 14
        while kind in _VLAN and len(data) >= offset + 4:
            tag = data[offset] << 8 | data[offset + 1]
            layer.fields.setdefault("vlan_ids", []).append(tag & 0xFFF)
            kind = data[offset + 2] << 8 | data[offset + 3]
            offset += 4
        layer.fields["ethertype"] = kind
        self._by_ethertype(kind, data[offset:], cut, layer)

    def _cooked(self, data: bytes, cut: bool) -> None:
        """Linux "any", first version."""
        self._cooked_header(data, cut, 16, 14)

    def _cooked2(self, data: bytes, cut: bool) -> None:
        self._cooked_header(data, cut, 20, 0)

    def _cooked_header(self, data: bytes, cut: bool, length: int, at: int) -> None:
        layer = self._layer("Linux cooked")
        if len(data) < length:
            layer.error = f"its header has {length} octets, here are {len(data)}"
            return
        kind = data[at] << 8 | data[at + 1]
        layer.fields = {"protocol_type": kind}
        self._by_ethertype(kind, data[length:], cut, layer)

    def _null(self, data: bytes, cut: bool) -> None:
        """BSD loopback: an address family in somebody's byte order; the version tells as well."""
        layer = self._layer("Null/Loopback")
        if len(data) < 4:
            layer.error = f"its header has 4 octets, here are {len(data)}"
            return
        layer.fields = {"family": data[:4].hex()}
        self._ip(data[4:], cut)

    def _by_ethertype(self, kind: int, data: bytes, cut: bool, layer: Layer) -> None:
        if kind in (_ETHERTYPE_IPV4, _ETHERTYPE_IPV6):
            self._ip(data, cut)
        elif kind == _ETHERTYPE_ARP:
            self._arp(data)
        else:
            layer.note = f"ethertype 0x{kind:04x} isn't read here"

    def _arp(self, data: bytes) -> None:
        layer = self._layer("ARP")
        if len(data) < 28:
            layer.error = f"an ARP packet has 28 octets, here are {len(data)}"
            return
        layer.fields = {
            "opcode": data[6] << 8 | data[7],
            "sender_hardware_address": data[8:14].hex(":"),
            "sender_protocol_address": str(IPv4Address(data[14:18])),
            "target_hardware_address": data[18:24].hex(":"),
            "target_protocol_address": str(IPv4Address(data[24:28])),
        }

    # --- IP ---

    def _ip(self, data: bytes, cut: bool) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._layer("IP").error = f"more than {_MAX_DEPTH} IP headers inside each other"
        elif not data:
            self._layer("IP").error = "an IP header is expected, there is nothing"
        elif data[0] >> 4 == 4:
            self._ipv4(data, cut)
        elif data[0] >> 4 == 6:
            self._ipv6(data, cut)
        else:
            self._layer("IP", {"version": data[0] >> 4}).error = f"IP version {data[0] >> 4}"

    def _ipv4(self, data: bytes, cut: bool) -> None:
        layer = self._layer("IPv4")
        if len(data) < 20:
            layer.error = f"an IPv4 header has 20 octets, here are {len(data)}"
            return
        first, tos, length, identification, fragment, ttl, protocol, checksum, src, dst = (
            _IPV4.unpack_from(data)
        )
        ihl = (first & 15) * 4
        layer.fields = {
            "version": 4,
            "ihl": first & 15,
            "type_of_service": tos,
            "total_length": length,
            "identification": identification,
            "dont_fragment": bool(fragment & 0x4000),
            "more_fragments": bool(fragment & 0x2000),
            "fragment_offset": (fragment & 0x1FFF) * 8,
            "time_to_live": ttl,
            "protocol": protocol,
            "header_checksum": checksum,
            "source_address": str(IPv4Address(src)),
            "destination_address": str(IPv4Address(dst)),
        }
        if ihl < 20 or length < ihl or ihl > len(data):
            layer.error = f"header length {ihl} and total length {length} don't fit"
            return
        if ihl > 20:
            layer.fields["options"] = data[20:ihl].hex()
        if not is_valid(words(data[:ihl])):
            layer.error = "wrong header checksum"
        cut = self._shorter(layer, "total length", length, len(data), cut)
        where = _Ip(IPv4Address(src), IPv4Address(dst), cut)
        if fragment & 0x3FFF:
            layer.note = "a fragment: fragments aren't put together"
            return
        self._upper(protocol, data[ihl:length], where)

    def _shorter(self, layer: Layer, what: str, said: int, there: int, cut: bool) -> bool:
        """Note a length that says more than there is; whether what follows is incomplete."""
        if said <= there:
            return False
        reason = "captured" if cut else "here"
        layer.error = layer.error or f"{what} {said}, {reason} {there} octets"
        return True

    def _ipv6(self, data: bytes, cut: bool) -> None:
        layer = self._layer("IPv6")
        if len(data) < 40:
            layer.error = f"an IPv6 header has 40 octets, here are {len(data)}"
            return
        first, length, next_header, hop_limit, src, dst = _IPV6.unpack_from(data)
        layer.fields = {
            "version": 6,
            "traffic_class": first >> 20 & 0xFF,
            "flow_label": first & 0xFFFFF,
            "payload_length": length,
            "next_header": next_header,
            "hop_limit": hop_limit,
            "source_address": str(IPv6Address(src)),
            "destination_address": str(IPv6Address(dst)),
        }
        cut = self._shorter(layer, "payload length", length, len(data) - 40, cut)
        where = _Ip(IPv6Address(src), IPv6Address(dst), cut)
        self._upper(next_header, data[40 : 40 + length], where)

    def _upper(self, protocol: int, data: bytes, where: _Ip) -> None:
        while protocol in _EXTENSIONS and where.source.version == 6:
            layer = self._layer(_EXTENSIONS[protocol])
            if len(data) < 8 or len(data) < (data[1] + 1) * 8:
                layer.error = f"it runs past the packet: {len(data)} octets left"
                return
            header, data = data[: (data[1] + 1) * 8], data[(data[1] + 1) * 8 :]
            layer.fields = {"next_header": header[0], "hdr_ext_len": header[1]}
            if protocol == IPPROTO_ROUTING:
                where = self._routing(layer, header, where)
            else:
                where = self._options(layer, header, where)
            protocol = header[0]
        if protocol == IPPROTO_FRAGMENT and where.source.version == 6:
            self._fragment(data, where)
        elif protocol in (IPPROTO_IPIP, IPPROTO_IPV6):
            self._ip(data, where.cut)
        elif protocol == IPPROTO_UDP:
            self._udp(data, where)
        elif protocol == IPPROTO_ESP:
            self._esp(data, where)
        elif protocol in (IPPROTO_MH, IPPROTO_ICMPV6):
            self._with_addresses(protocol, data, where)
        elif protocol == IPPROTO_NONE:
            self._layer("No Next Header", {"length": len(data)})
        else:
            self._layers.append(dissect_plain(protocol, data))

    def _routing(self, layer: Layer, header: bytes, where: _Ip) -> _Ip:
        layer.fields.update(routing_type=header[2], segments_left=header[3])
        if header[2] != TYPE2_ROUTING:
            layer.fields["type_specific_data"] = header[4:].hex()
            return where
        if len(header) != 24:
            layer.error = f"a type 2 routing header of {len(header)} octets"
            return where
        home = IPv6Address(header[8:24])
        layer.fields["home_address"] = str(home)
        return replace(where, home_destination=home)

    def _options(self, layer: Layer, header: bytes, where: _Ip) -> _Ip:
        found: list[Fields] = []
        layer.fields["options"] = found
        offset = 2
        while offset < len(header):
            kind = header[offset]
            if kind == 0:
                offset += 1
                continue
            end = offset + 2 + (header[offset + 1] if offset + 1 < len(header) else 255)
            if end > len(header):
                layer.error = f"option {kind} runs past the end of its header"
                return where
            value = header[offset + 2 : end]
            if kind == HOME_ADDRESS_OPTION and len(value) == 16:
                home = IPv6Address(value)
                found.append({"option_type": kind, "home_address": str(home)})
                where = replace(where, home_source=home)
            elif kind != 1:
                found.append({"option_type": kind, "option_data": value.hex()})
            offset = end
        return where

    def _fragment(self, data: bytes, where: _Ip) -> None:
        layer = self._layer("IPv6 Fragment")
        if len(data) < 8:
            layer.error = f"a fragment header has 8 octets, here are {len(data)}"
            return
        next_header, _, offset, identification = struct.unpack_from("!BBHI", data)
        layer.fields = {
            "next_header": next_header,
            "fragment_offset": offset & 0xFFF8,
            "more_fragments": bool(offset & 1),
            "identification": identification,
        }
        if offset & 0xFFF9:
            layer.note = "a fragment: fragments aren't put together"
            return
        self._upper(next_header, data[8:], where)

    def _with_addresses(self, protocol: int, data: bytes, where: _Ip) -> None:
        source, destination = where.final_source, where.final_destination
        name = "Mobility Header" if protocol == IPPROTO_MH else "ICMPv6"
        if not isinstance(source, IPv6Address) or not isinstance(destination, IPv6Address):
            self._layer(name).error = "it belongs into IPv6"
            return
        dissect = dissect_mobility if protocol == IPPROTO_MH else dissect_icmp6
        self._layers.append(dissect(data, source, destination, cut=where.cut))

    # --- UDP and ESP ---

    def _udp(self, data: bytes, where: _Ip) -> None:
        layer = self._layer("UDP")
        if len(data) < 8:
            layer.error = f"a UDP header has 8 octets, here are {len(data)}"
            return
        source_port, destination_port, length, checksum = _UDP.unpack_from(data)
        layer.fields = {
            "source_port": source_port,
            "destination_port": destination_port,
            "length": length,
            "checksum": checksum,
        }
        if length < 8:
            layer.error = f"length {length} is shorter than the header"
            return
        cut = self._shorter(layer, "length", length, len(data), where.cut) or where.cut
        if not checksum:
            layer.fields["checksum_status"] = "none"
        elif not cut:
            # No error: packets captured at their sender often have no checksum yet.
            total = int(where.final_source) + int(where.final_destination) + IPPROTO_UDP
            good = is_valid(total + length + words(data[:length]))
            layer.fields["checksum_status"] = "good" if good else "wrong"
        ports = (source_port, destination_port)
        payload = data[8:length]
        where = replace(where, cut=cut)
        if IKE_NATT_PORT in ports:
            self._encapsulated(layer, payload, where)
        elif DSMIP_PORT in ports:
            self._dsmip(layer, payload, where)
        elif _IKE_PORT in ports:
            self._layers.append(dissect_ike(payload, self._keys.ike, cut=cut))
        elif payload:
            self._layer("data", {"length": len(payload)})

    def _dsmip(self, layer: Layer, payload: bytes, where: _Ip) -> None:
        """RFC 5555 §4.1: an IP packet. An empty datagram, or one octet, keeps a NAT open."""
        if len(payload) <= 1:
            layer.note = "a keepalive"
        else:
            self._ip(payload, where.cut)

    def _encapsulated(self, layer: Layer, payload: bytes, where: _Ip) -> None:
        """RFC 3948 §2."""
        try:
            kind, rest = classify(payload)
        except DsmipError as error:
            layer.error = layer.error or error.message
            return
        if kind is Encapsulated.KEEPALIVE:
            self._layer("NAT-keepalive")
        elif kind is Encapsulated.IKE:
            self._layer("Non-ESP Marker")
            self._layers.append(dissect_ike(rest, self._keys.ike, cut=where.cut))
        else:
            self._esp(payload, where)

    def _esp(self, data: bytes, where: _Ip) -> None:
        layer = self._layer("ESP")
        try:
            header, _ = parse_esp(data)
        except DsmipError as error:
            layer.error = error.message
            return
        layer.fields = {
            "spi": header.spi,
            "sequence_number": header.sequence,
            "length": len(data),
            "decrypted": False,
        }
        if where.cut:
            layer.error = "cut short: it can't be decrypted"
            return
        pairs = (
            (where.source, where.destination),
            (where.final_source, where.final_destination),
        )
        try:
            payload, next_header, pad_length = self._keys.open(data, pairs)
        except NoKey as reason:
            layer.note = reason.message
            return
        except DsmipError as error:
            layer.error = error.message
            return
        layer.fields.update(decrypted=True, pad_length=pad_length, next_header=next_header)
        self._upper(next_header, payload, where)


_Link = Callable[[Dissector, bytes, bool], None]

# https://www.tcpdump.org/linktypes.html
_LINKS: Final[dict[int, _Link]] = {
    0: Dissector._null,
    1: Dissector._ethernet,
    12: Dissector._ip,
    14: Dissector._ip,
    101: Dissector._ip,
    108: Dissector._null,
    113: Dissector._cooked,
    228: Dissector._ip,
    229: Dissector._ip,
    276: Dissector._cooked2,
}

LINK_TYPES: Final = frozenset(_LINKS)
"""The link types that can be read."""
