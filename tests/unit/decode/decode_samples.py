"""What the tests of ``decode`` share: the committed sample, and runs of the command."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

from dsmip_ipsec.userspace.capture_file import Frame, read_frames
from dsmip_ipsec.userspace.dissect import Dissector
from dsmip_ipsec.userspace.key_ring import KeyRing

DATA = Path(__file__).parents[2] / "data" / "decode"
SAMPLE = DATA / "sample.pcapng"
KEYS = DATA / "wireshark"

Packet = dict[str, Any]


def sample_frames() -> list[Frame]:
    return list(read_frames(io.BytesIO(SAMPLE.read_bytes())))


def dissected(frame: Frame, keys: KeyRing | None = None) -> list[dict[str, Any]]:
    layers = [layer.as_json() for layer in Dissector(keys).dissect(frame)]
    json.dumps(layers)  # nothing in it that JSON doesn't have
    return layers


def raw(packet: bytes, *, length: int = 0) -> Frame:
    """A frame that starts with its IP header."""
    return Frame(1, 0, 101, packet, length or len(packet))


def names(layers: list[dict[str, Any]]) -> list[str]:
    return [layer["layer"] for layer in layers]


def write_pcap(path: Path, packets: list[bytes], link_type: int = 101) -> Path:
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type)
    for packet in packets:
        data += struct.pack("<IIII", 1, 2, len(packet), len(packet)) + packet
    path.write_bytes(data)
    return path
