"""tshark as a judge: packets in, one dict of printed fields per packet out."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

RAW_IP = 101  # LINKTYPE_RAW: the packet starts with its IP header


def dissect(
    packets: Iterable[bytes], fields: Sequence[str], directory: Path
) -> list[dict[str, list[str]]]:
    """What tshark prints for each field of each packet; several occurrences in order, fields
    without one left out."""
    capture = directory / "judged.pcap"
    count = 0
    with capture.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, RAW_IP))
        for packet in packets:
            file.write(struct.pack("<IIII", count, 0, len(packet), len(packet)) + packet)
            count += 1
    command = ["tshark", "-n", "-r", str(capture), "-d", "udp.port==4191,ip", "-T", "fields"]
    command += ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    command += ["-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=|"]
    for field in fields:
        command += ["-e", field]
    # An empty home: nobody's own preferences change the verdict.
    environment = {**os.environ, "HOME": str(directory), "WIRESHARK_CONFIG_DIR": str(directory)}
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    lines = result.stdout.splitlines()
    assert len(lines) == count, result.stderr
    return [
        {
            field: value.split("|")
            for field, value in zip(fields, line.split("\t"), strict=True)
            if value
        }
        for line in lines
    ]
