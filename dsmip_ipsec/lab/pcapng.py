"""Writing pcapng (draft-ietf-opsawg-pcapng): one section, one Ethernet interface, nanoseconds."""

from __future__ import annotations

import struct
from collections.abc import Iterable

LINKTYPE_ETHERNET = 1

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_INTERFACE_STATISTICS = 5
_BYTE_ORDER_MAGIC = 0x1A2B3C4D

# Option codes of the blocks we write.
_OPT_COMMENT = 1
_SHB_USERAPPL = 4
_IF_NAME = 2
_IF_TSRESOL = 9
_ISB_IFRECV = 4
_ISB_IFDROP = 5

_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_OPTION = struct.Struct("<HH")
# An Enhanced Packet Block's fixed part: type, length, interface, time (high, low), captured and
# original length; and its end with one option, epb_flags: code 2, length 4, the flags, end of
# options, length.
_PACKET = struct.Struct("<IIIIIII")
_PACKET_END = struct.Struct("<HHIII")
_PACKET_OVERHEAD = _PACKET.size + _PACKET_END.size

INBOUND = 1
OUTBOUND = 2

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def _options(options: Iterable[tuple[int, bytes]]) -> bytes:
    parts: list[bytes] = []
    for code, value in options:
        parts += [_OPTION.pack(code, len(value)), value, _PADDING[len(value) & 3]]
    return b"".join(parts) + _OPTION.pack(0, 0)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return _HEAD.pack(kind, length) + body + _LENGTH.pack(length)


def header(interface: str, comment: str, snap_length: int) -> bytes:
    """Section header and interface description: how a file starts."""
    section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1) + _options(
        [(_SHB_USERAPPL, b"dsmip-ipsec")]
    )
    description = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snap_length) + _options(
        [
            (_OPT_COMMENT, comment.encode()),
            (_IF_NAME, interface.encode()),
            (_IF_TSRESOL, b"\x09"),
        ]
    )
    return _block(_SECTION_HEADER, section) + _block(_INTERFACE_DESCRIPTION, description)


def packet(time_ns: int, length: int, captured: int, direction: int) -> tuple[bytes, bytes]:
    """What goes before and after a packet's ``captured`` octets to make an Enhanced Packet Block.

    ``time_ns``: since 1970. ``length``: of the packet on the wire, in octets. ``direction``:
    :data:`INBOUND`, :data:`OUTBOUND` or 0.
    """
    padding = _PADDING[captured & 3]
    total = _PACKET_OVERHEAD + captured + len(padding)
    head = _PACKET.pack(6, total, 0, time_ns >> 32, time_ns & 0xFFFFFFFF, captured, length)
    return head, padding + _PACKET_END.pack(2, 4, direction, 0, total)


def statistics(time_ns: int, received: int, dropped: int) -> bytes:
    """Interface statistics: how a file ends."""
    body = struct.pack("<III", 0, time_ns >> 32, time_ns & 0xFFFFFFFF) + _options(
        [
            (_ISB_IFRECV, struct.pack("<Q", received)),
            (_ISB_IFDROP, struct.pack("<Q", dropped)),
        ]
    )
    return _block(_INTERFACE_STATISTICS, body)
