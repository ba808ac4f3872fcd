"""Reading captures: pcap (micro- and nanoseconds) and pcapng, of either byte order.

Our own reader, because both formats are a handful of fixed structs, and the libraries at hand
either leave out parts (per-interface time resolution, blocks that are cut short) or are far
larger than what they would replace. Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from dsmip_ipsec.errors import DsmipError

_MAX_RECORD: Final = 16 << 20
"""Octets of a packet or block beyond which the length is taken for garbage."""

_PCAP_MAGIC: Final[dict[bytes, tuple[str, int]]] = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_PCAPNG_MAGIC: Final = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDER: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}

_INTERFACE_DESCRIPTION: Final = 1
_OLD_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_INTERFACE_STATISTICS: Final = 5
_ENHANCED_PACKET: Final = 6
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14
_ISB_DROPS: Final = (5, 7)  # isb_ifdrop, isb_osdrop: for want of room at the interface, in the OS


class CaptureError(DsmipError):
    """The file isn't a capture, or ends or breaks in the middle. Packets before that are good.

    Or it lacks packets that were dropped while it was taken; those that it has are good."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A captured packet. ``number`` counts from 1, as Wireshark does. ``time_ns`` is since 1970,
    None where the format has none. ``length`` is that of the packet on the wire, in octets."""

    number: int
    time_ns: int | None
    link_type: int
    data: bytes
    length: int


def read_frames(file: BinaryIO) -> Iterator[Frame]:
    """All packets of a capture, in order. Raises :class:`CaptureError` where it breaks, and behind
    the last packet of one that says of itself that packets are missing."""
    magic = file.read(4)
    if magic == _PCAPNG_MAGIC:
        reader = _Pcapng(file)
        yield from reader.frames()
        if dropped := sum(reader.drops.values()):
            raise CaptureError(
                f"the capture lacks {dropped} packets, which were dropped while it was taken",
                hint="capture less, with a larger buffer, or on a machine that isn't as busy",
            )
    elif magic in _PCAP_MAGIC:
        yield from _pcap(file, *_PCAP_MAGIC[magic])
    elif magic[:2] == b"\x1f\x8b":
        raise CaptureError("the capture is compressed", hint="unpack it with gunzip first")
    else:
        raise CaptureError(
            "this is no capture: neither pcap nor pcapng",
            hint="give a file that tcpdump, dumpcap or a lab wrote",
        )


def dropped_packets(file: BinaryIO) -> int | None:
    """How many packets the pcapng file lacks, as its interfaces' statistics tell; None: it has
    none, as when whoever wrote it didn't get to the end. Raises :class:`CaptureError`."""
    if file.read(4) != _PCAPNG_MAGIC:
        return None
    reader = _Pcapng(file)
    for _ in reader.frames():
        pass
    return sum(reader.drops.values()) if reader.drops else None


def _exactly(file: BinaryIO, count: int, what: str) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise CaptureError(
            f"the capture ends in the middle of {what}",
            hint="whoever wrote it was stopped; what is in front is complete",
        )
    return data


# --- pcap ---


def _pcap(file: BinaryIO, order: str, unit_ns: int) -> Iterator[Frame]:
    header = _exactly(file, 20, "its header")
    # The upper bits tell whether frames have a checksum behind them (FCS).
    link_type = struct.unpack(order + "I", header[16:])[0] & 0xFFFF
    record = struct.Struct(order + "IIII")
    number = 0
    while head := file.read(record.size):
        number += 1
        if len(head) < record.size:
            head += _exactly(file, record.size - len(head), f"packet {number}")
        seconds, fraction, captured, length = record.unpack(head)
        if captured > _MAX_RECORD:
            raise CaptureError(
                f"packet {number} says that it has {captured} octets: the capture is broken",
                hint="what is in front of it is good",
            )
        data = _exactly(file, captured, f"packet {number}")
        yield Frame(number, seconds * 10**9 + fraction * unit_ns, link_type, data, length)


# --- pcapng ---


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    snap_length: int
    units_per_second: int
    offset_seconds: int


class _Pcapng:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._number = 0
        self._earlier_interfaces = 0  # of the sections before this one
        self.drops: dict[int, int] = {}
        """Packets dropped so far, by interface; of those that there are statistics of."""

    def frames(self) -> Iterator[Frame]:
        self._section()  # its block type was read already
        while kind_octets := self._file.read(4):
            if len(kind_octets) < 4:
                kind_octets += _exactly(self._file, 4 - len(kind_octets), "a block")
            if kind_octets == _PCAPNG_MAGIC:
                self._section()
                continue
            (kind,) = self._unpack("I", kind_octets)
            body = self._body(_exactly(self._file, 4, "a block"))
            if kind == _INTERFACE_DESCRIPTION:
                self._interfaces.append(self._interface(body))
            elif kind in (_ENHANCED_PACKET, _OLD_PACKET, _SIMPLE_PACKET):
                self._number += 1
                yield self._packet(kind, body)
            elif kind == _INTERFACE_STATISTICS:
                self._statistics(body)

    def _unpack(self, form: str, data: bytes, offset: int = 0) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + form, data, offset)
        except struct.error:
            raise self._broken() from None

    def _broken(self) -> CaptureError:
        return CaptureError(
            f"the capture is broken behind packet {self._number}",
            hint="what is in front of that is good",
        )

    def _section(self) -> None:
        length, magic = _exactly(self._file, 4, "a block"), _exactly(self._file, 4, "a block")
        order = _BYTE_ORDER.get(magic)
        if order is None:
            raise self._broken()
        self._order = order
        self._earlier_interfaces += len(self._interfaces)
        self._interfaces = []
        self._body(length, already=4)

    def _body(self, length_octets: bytes, already: int = 0) -> bytes:
        """The rest of a block, whose length field was read, and ``already`` octets behind it."""
        (length,) = self._unpack("I", length_octets)
        if length < 12 + already or length % 4 or length > _MAX_RECORD:
            raise self._broken()
        rest = _exactly(self._file, length - 8 - already, "a block")
        if rest[-4:] != length_octets:
            raise self._broken()
        return rest[:-4]

    def _interface(self, body: bytes) -> _Interface:
        link_type, _, snap_length = self._unpack("HHI", body)
        units, offset_seconds = 10**6, 0
        for code, value in self._options(body, 8):
            if code == _IF_TSRESOL and len(value) == 1:
                exponent = value[0] & 0x7F
                units = 2**exponent if value[0] & 0x80 else 10**exponent
            elif code == _IF_TSOFFSET and len(value) == 8:
                (offset_seconds,) = self._unpack("q", value)
        return _Interface(link_type, snap_length, units, offset_seconds)

    def _statistics(self, body: bytes) -> None:
        """Counts from the start of the capture on: the last block of an interface has them all."""
        (number,) = self._unpack("I", body)
        self._by_number(number)
        self.drops[self._earlier_interfaces + number] = sum(
            self._unpack("Q", value)[0]
            for code, value in self._options(body, 12)
            if code in _ISB_DROPS and len(value) == 8
        )

    def _options(self, body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
        """Code and value of a block's options, as far as they are whole."""
        while offset + 4 <= len(body):
            code, length = self._unpack("HH", body, offset)
            value = body[offset + 4 : offset + 4 + length]
            if code == 0 or len(value) != length:
                return
            yield code, value
            offset += 4 + length + -length % 4

    def _packet(self, kind: int, body: bytes) -> Frame:
        if kind == _SIMPLE_PACKET:
            (length,) = self._unpack("I", body)
            interface = self._by_number(0)
            captured = min(length, interface.snap_length or length)
            data, time_ns = body[4 : 4 + captured], None
        else:
            if kind == _ENHANCED_PACKET:
                number, high, low, captured, length = self._unpack("IIIII", body)
            else:
                number, _, high, low, captured, length = self._unpack("HHIIII", body)
            interface = self._by_number(number)
            data = body[20 : 20 + captured]
            ticks = high << 32 | low
            time_ns = interface.offset_seconds * 10**9 + ticks * 10**9 // interface.units_per_second
        if len(data) != captured:
            raise self._broken()
        return Frame(self._number, time_ns, interface.link_type, data, length)

    def _by_number(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise self._broken()
        return self._interfaces[number]
