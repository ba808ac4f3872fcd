"""Captures, judged by Wireshark's tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dsmip_ipsec.lab import pcapng

TIME = 1_700_000_000_123_456_789
# Ethernet, IPv4, UDP 4500 → 4500 with one octet of payload (a NAT keepalive, RFC 3948 §2.3).
FRAME = bytes.fromhex(
    "020000000002" "020000000001" "0800"
    "4500001d00010000401100000a000064cb007102" "1194119400090000" "ff"
)  # fmt: skip


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_tshark_reads_what_we_write(tmp_path: Path) -> None:
    output = bytearray(pcapng.header("visited-a", "mn's end of visited-a", 2048))
    for number in range(5):  # lengths of every remainder modulo 4
        data = FRAME + bytes(number)
        direction = pcapng.OUTBOUND if number else pcapng.INBOUND
        head, tail = pcapng.packet(TIME + number, len(data) + 7, len(data), direction)
        output += head + data + tail
    output += pcapng.statistics(TIME + 10, 8, 3)
    path = tmp_path / "test.pcapng"
    path.write_bytes(output)
    fields = ["frame.time_epoch", "frame.cap_len", "frame.len", "frame.interface_name"]
    fields += ["frame.packet_flags_direction", "udp.dstport"]
    options = [word for field in fields for word in ("-e", field)]
    lines = tool("tshark", "-r", str(path), "-T", "fields", *options).splitlines()
    assert [line.split("\t") for line in lines] == [
        [
            f"1700000000.{123456789 + number}",
            str(len(FRAME) + number),
            str(len(FRAME) + number + 7),
            "visited-a",
            "0x00000002" if number else "0x00000001",
            "4500",
        ]
        for number in range(5)
    ]
    about = tool("capinfos", str(path))
    assert "nanoseconds (9)" in about
    assert "mn's end of visited-a" in about
    assert "Number of packets:   5" in about


def test_file_without_packets_or_end_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "empty.pcapng"
    path.write_bytes(pcapng.header("lo", "", 2048))
    assert tool("tshark", "-r", str(path)) == ""
