"""Upper layers as layers of a dissected packet: Mobility Header, ICMP, TCP."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import Final

from dsmip_ipsec.userspace.layers import Fields, Layer, icmp6_fields, message_fields, mh_type_name
from dsmip_ipsec.wire import icmp6, mobility
from dsmip_ipsec.wire.checksum import complement, pseudo_header6
from dsmip_ipsec.wire.errors import ChecksumError, DecodeError, OptionError
from dsmip_ipsec.wire.ip import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_MH, IPPROTO_TCP
from dsmip_ipsec.wire.messages import Message

_ICMP6_KNOWN: Final = frozenset({4, 144, 145, 146, 147})
_ECHO: Final = frozenset({0, 8, 128, 129})
_TCP_FLAGS: Final = ("fin", "syn", "rst", "psh", "ack", "urg")


def dissect_mobility(
    data: bytes, source: IPv6Address, destination: IPv6Address, *, cut: bool = False
) -> Layer:
    """A Mobility Header (RFC 6275 §6.1). Addresses are those of its pseudo-header: home addresses
    in place of care-of addresses."""
    layer = Layer("Mobility Header")
    if len(data) < 6:
        layer.error = f"a Mobility Header has 8 octets or more, here are {len(data)}"
        return layer
    layer.fields = {
        "payload_proto": data[0],
        "header_len": data[1],
        "mh_type": data[2],
        "mh_type_name": mh_type_name(data[2]),
        "checksum": data[4] << 8 | data[5],
    }
    if cut:
        layer.error = "cut short"
        return layer
    try:
        message, layer.error = _decode(data, source, destination), ""
    except OptionError as error:
        message, layer.error = error.partial, error.message
    except ChecksumError as error:
        layer.error = error.message
        message = _in_spite(data, source, destination)
    except DecodeError as error:
        layer.error = error.message
        return layer
    if message is not None:
        layer.fields.update(message_fields(message))
    return layer


def _decode(data: bytes, source: IPv6Address, destination: IPv6Address) -> Message | None:
    return mobility.decode(data, source, destination)


def _in_spite(data: bytes, source: IPv6Address, destination: IPv6Address) -> Message | None:
    """What a message with a wrong checksum would say with a right one."""
    length = min((data[1] + 1) * 8, len(data))
    body = data[:4] + bytes(2) + data[6:length]
    total = pseudo_header6(source, destination, length, IPPROTO_MH)
    checksum = complement(total + int.from_bytes(body, "big"))
    mended = body[:4] + checksum.to_bytes(2, "big") + body[6:]
    try:
        return mobility.decode(mended, source, destination)
    except OptionError as error:
        return error.partial
    except DecodeError:
        return None


def dissect_icmp6(
    data: bytes, source: IPv6Address, destination: IPv6Address, *, cut: bool = False
) -> Layer:
    """ICMPv6: type and code of all, everything of what Mobile IPv6 uses."""
    layer = dissect_plain(IPPROTO_ICMPV6, data)
    if layer.error or cut or data[0] not in _ICMP6_KNOWN:
        return layer
    try:
        layer.fields.update(icmp6_fields(icmp6.decode(data, source, destination)))
    except DecodeError as error:
        layer.error = error.message
    return layer


def dissect_plain(protocol: int, data: bytes) -> Layer:
    """The first fields of ICMP, ICMPv6 and TCP; of all else its protocol number and length."""
    if protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        return _icmp("ICMP" if protocol == IPPROTO_ICMP else "ICMPv6", data)
    if protocol == IPPROTO_TCP:
        return _tcp(data)
    return Layer("data", {"protocol": protocol, "length": len(data)})


def _icmp(name: str, data: bytes) -> Layer:
    layer = Layer(name)
    if len(data) < 4:
        layer.error = f"an ICMP header has 4 octets or more, here are {len(data)}"
        return layer
    kind, code, checksum = struct.unpack_from("!BBH", data)
    layer.fields = {"type": kind, "code": code, "checksum": checksum}
    if kind in _ECHO and len(data) >= 8:
        identifier, sequence = struct.unpack_from("!HH", data, 4)
        layer.fields.update(identifier=identifier, sequence_number=sequence)
    return layer


def _tcp(data: bytes) -> Layer:
    layer = Layer("TCP")
    if len(data) < 20:
        layer.error = f"a TCP header has 20 octets, here are {len(data)}"
        return layer
    source, destination, sequence, acknowledgment, bits, window, checksum, urgent = (
        struct.unpack_from("!HHIIHHHH", data)
    )
    fields: Fields = {
        "source_port": source,
        "destination_port": destination,
        "sequence_number": sequence,
        "acknowledgment_number": acknowledgment,
        "data_offset": bits >> 12,
        **{flag: bool(bits >> index & 1) for index, flag in enumerate(_TCP_FLAGS)},
        "window": window,
        "checksum": checksum,
        "urgent_pointer": urgent,
    }
    layer.fields = fields
    if not 20 <= (bits >> 12) * 4 <= len(data):
        layer.error = f"data offset {bits >> 12} doesn't fit {len(data)} octets"
    return layer
