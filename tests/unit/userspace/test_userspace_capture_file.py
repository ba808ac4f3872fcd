"""Captures in every form: byte orders, resolutions, blocks of all kinds, and broken ones."""

from __future__ import annotations

import struct
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.userspace.capture_file import CaptureError, Frame, dropped_packets, read_frames

SAMPLE = Path(__file__).parents[2] / "data" / "decode" / "sample.pcapng"


def frames(data: bytes) -> list[Frame]:
    return list(read_frames(BytesIO(data)))


def pcap(
    order: str, magic: int, records: list[tuple[int, int, bytes, int]], link: int = 1
) -> bytes:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for seconds, fraction, packet, length in records:
        data += struct.pack(order + "IIII", seconds, fraction, len(packet), length) + packet
    return data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap(order: str, magic: int, unit: int) -> None:
    data = pcap(order, magic, [(1_700_000_000, 5, b"abc", 100), (1, 2, b"", 0)], link=0x10000065)
    assert frames(data) == [
        Frame(1, 1_700_000_000 * 10**9 + 5 * unit, 101, b"abc", 100),
        Frame(2, 10**9 + 2 * unit, 101, b"", 0),
    ]


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int, *options: tuple[int, bytes], snap: int = 0) -> bytes:
    body = struct.pack(order + "HHI", link, 0, snap)
    return block(order, 1, body + b"".join(option(order, *each) for each in options))


def enhanced(order: str, number: int, ticks: int, packet: bytes, length: int) -> bytes:
    head = struct.pack(
        order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), length
    )
    return block(order, 6, head + packet)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order: str) -> None:
    other = ">" if order == "<" else "<"
    data = section(order)
    data += interface(order, 1)
    data += interface(order, 101, (2, b"tun0"), (9, b"\x09"), (14, struct.pack(order + "q", 7)))
    data += interface(order, 228, (9, b"\x8a"))  # 2^-10 seconds
    data += block(order, 0xBAD, b"unknown")
    data += enhanced(order, 0, 3_000_001, b"eth", 60)
    data += enhanced(order, 1, 5_000_000_002, b"raw", 3)
    data += enhanced(order, 2, 1536, b"v4", 2)
    old = struct.pack(order + "HHIIII", 1, 0, 0, 9, 4, 4) + b"old!"
    data += block(order, 2, old)
    data += block(order, 3, struct.pack(order + "I", 6) + b"simple")
    # A second section has a byte order and interfaces of its own.
    data += section(other) + interface(other, 113) + enhanced(other, 0, 1, b"sll", 3)
    assert frames(data) == [
        Frame(1, 3_000_001_000, 1, b"eth", 60),
        Frame(2, 12_000_000_002, 101, b"raw", 3),
        Frame(3, 1_500_000_000, 228, b"v4", 2),
        Frame(4, 7_000_000_009, 101, b"old!", 4),
        Frame(5, None, 1, b"simple", 6),
        Frame(6, 1000, 113, b"sll", 3),
    ]


def statistics(order: str, number: int, *counts: tuple[int, int]) -> bytes:
    options = b"".join(struct.pack(order + "HHQ", code, 8, count) for code, count in counts)
    return block(order, 5, struct.pack(order + "III", number, 0, 0) + options + bytes(4))


@pytest.mark.parametrize("order", ["<", ">"])
def test_packets_that_were_dropped(order: str) -> None:
    packet = section(order) + interface(order, 1) + enhanced(order, 0, 1, b"eth", 3)
    assert dropped_packets(BytesIO(packet)) is None
    assert dropped_packets(BytesIO(pcap(order, 0xA1B2C3D4, []))) is None
    # isb_ifrecv, isb_ifdrop, isb_osdrop; the interface's last block counts, and both sections'.
    data = packet + statistics(order, 0, (4, 9), (5, 1))
    data += statistics(order, 0, (4, 9), (5, 3), (7, 2))
    assert dropped_packets(BytesIO(data)) == 5
    data += packet + statistics(order, 0, (4, 9), (5, 4))
    assert dropped_packets(BytesIO(data)) == 9
    read: list[Frame] = []
    with pytest.raises(CaptureError, match="lacks 9 packets"):
        read.extend(read_frames(BytesIO(data)))
    assert frames(packet + statistics(order, 0, (4, 9), (5, 0))) == frames(packet)
    assert dropped_packets(BytesIO(packet + statistics(order, 0, (5, 0)))) == 0
    with pytest.raises(CaptureError, match="broken"):  # of an interface that isn't there
        dropped_packets(BytesIO(packet + statistics(order, 1, (5, 0))))


def test_simple_packets_are_cut_to_the_snap_length() -> None:
    data = section("<") + interface("<", 1, snap=4)
    data += block("<", 3, struct.pack("<I", 9) + b"four")
    assert frames(data) == [Frame(1, None, 1, b"four", 9)]


def test_the_sample_as_tshark_reads_it() -> None:
    command = ["tshark", "-n", "-r", str(SAMPLE), "-T", "fields"]
    for field in ("frame.number", "frame.time_epoch", "frame.cap_len", "frame.len"):
        command += ["-e", field]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [
        "\t".join(
            (
                str(frame.number),
                f"{(frame.time_ns or 0) // 10**9}.{(frame.time_ns or 0) % 10**9:09d}",
                str(len(frame.data)),
                str(frame.length),
            )
        )
        for frame in frames(SAMPLE.read_bytes())
    ]
    assert ours == lines


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xd4\xc3",
        b"not a capture at all",
        b"\x1f\x8b\x08\x00",
        b"\xd4\xc3\xb2\xa1\2\0\4\0",
        pcap("<", 0xA1B2C3D4, [])[:-1],
        pcap("<", 0xA1B2C3D4, [(0, 0, b"abcd", 4)])[:-1],
        pcap("<", 0xA1B2C3D4, []) + b"\0\0\0",
        pcap("<", 0xA1B2C3D4, []) + struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 0),
        section("<")[:8],
        section("<")[:8] + b"ORD!" + section("<")[12:],
        section("<") + b"\1\0",
        section("<") + enhanced("<", 0, 0, b"no interface", 1),
        section("<") + block("<", 3, b"\0\0\0\0"),
        section("<") + interface("<", 1) + block("<", 6, b"short"),
        section("<") + interface("<", 1) + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 99, 99)),
        section("<") + struct.pack("<II", 1, 11),
        section("<") + struct.pack("<II", 1, 13) + b"\0" * 9,
        section("<") + struct.pack("<II", 1, 0xFFFFFFF0),
        section("<") + interface("<", 1)[:-4] + b"\0\0\0\0",
    ],
)
def test_broken_captures_are_told(data: bytes) -> None:
    with pytest.raises(CaptureError) as caught:
        frames(data)
    assert caught.value.hint


def test_packets_before_the_break_are_given() -> None:
    reader = read_frames(BytesIO(pcap("<", 0xA1B2C3D4, [(0, 0, b"ab", 2), (0, 0, b"cd", 2)])[:-1]))
    assert next(reader).data == b"ab"
    with pytest.raises(CaptureError):
        next(reader)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_garbage_is_a_capture_error_or_packets(data: st.DataObject) -> None:
    base = data.draw(
        st.sampled_from(
            [
                pcap("<", 0xA1B2C3D4, [(0, 0, b"abcdef", 6)] * 3),
                section(">") + interface(">", 1, (9, b"\x06")) + enhanced(">", 0, 1, b"abc", 3),
                SAMPLE.read_bytes()[:1500],
            ]
        )
    )
    broken = bytearray(base)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(4, len(broken) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.integers(4, len(broken)))]
    try:
        for frame in read_frames(BytesIO(bytes(broken))):
            assert len(frame.data) <= len(broken)
    except CaptureError as error:
        assert error.hint  # noqa: PT017  # both outcomes are right
