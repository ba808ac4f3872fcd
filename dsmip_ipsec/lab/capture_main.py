"""Captures on many interfaces at once: ``python -m dsmip_ipsec.lab.capture_main PLAN RESULT``.

PLAN is a JSON list of ``{"namespace", "interface", "comment", "file"}``; RESULT gets a JSON list
of ``[packets, dropped]``, in the same order, at the end (SIGTERM). The line ``ready`` on standard
output says that all are capturing.

Each interface has a ring that the kernel fills (packet(7), TPACKET_V3: blocks of packets behind one
another, each handed over when it is full or its time is up). All rings are emptied a few times a
second in one go, so that a packet costs no system call and no wake-up, and few pages are touched,
each of which costs User-Mode Linux a fault when it is new.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DsmipError
from . import netns, pcapng
from .pace import pace, scaled

# linux/if_packet.h, linux/if_ether.h
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V3 = 2
_TP_STATUS_KERNEL = 0
_TP_STATUS_USER = 1
_PACKET_OUTGOING = 4
# struct tpacket_block_desc: version, offset of private data, status, packets, offset of the first.
_BLOCK = struct.Struct("=IIIII")
_BLOCK_STATUS = 8
# struct tpacket3_hdr: offset of the next, sec, nsec, snaplen, len, status, mac, …; then struct
# sockaddr_ll, of which the packet type is the octet at 10.
_FRAME = struct.Struct("=IIIIIIH")
_PACKET_TYPE = 48 + 10
_STATUS = struct.Struct("=I")
# tp_packets, tp_drops, tp_freeze_q_cnt
_STATISTICS = struct.Struct("=III")

# A packet of 1500 octets with its headers fits into a frame, all of it, since ESP can only be
# decrypted whole. The CPU may be busy elsewhere for a while: blocks last for six seconds and more
# (on a slow kernel accordingly longer), until one is filled before its time is up, by 8 Mbit/s.
_SNAP_LENGTH = 2048
_BLOCK_SIZE = 65536
_BLOCKS = 128
_RETIRE_MS = 50
_INTERVAL_S = 0.05
# Packets in one system call, three pieces each: at most IOV_MAX (1024) pieces.
_AT_ONCE = 256


@dataclass(slots=True)
class Ring:
    """A capturing interface: its socket, ring, and file."""

    socket: socket.socket
    ring: mmap.mmap
    file: int
    position: int = 0
    packets: int = 0

    @classmethod
    def open(cls, namespace: str, interface: str, comment: str, path: Path) -> Ring:
        """Start capturing on ``interface``; leaves the calling thread in ``namespace``."""
        netns.enter(namespace)
        # Protocol 0: nothing is received before the ring is there and the interface chosen.
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        packets.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        frames = _BLOCKS * _BLOCK_SIZE // _SNAP_LENGTH
        request = (_BLOCK_SIZE, _BLOCKS, _SNAP_LENGTH, frames, round(scaled(_RETIRE_MS)), 0, 0)
        packets.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("=7I", *request))
        ring = mmap.mmap(packets.fileno(), _BLOCKS * _BLOCK_SIZE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(path, flags, 0o644)
        _write(file, [pcapng.header(interface, comment, _SNAP_LENGTH)])
        packets.bind((interface, _ETH_P_ALL))
        return cls(packets, ring, file)

    def drain(self) -> None:
        """Write what the ring holds to the file."""
        with memoryview(self.ring) as view:
            for _ in range(_BLOCKS):
                block = self.position * _BLOCK_SIZE
                _, _, status, count, first = _BLOCK.unpack_from(view, block)
                if not status & _TP_STATUS_USER:
                    break
                self._write_packets(view, block + first, count)
                _STATUS.pack_into(view, block + _BLOCK_STATUS, _TP_STATUS_KERNEL)
                self.position = (self.position + 1) % _BLOCKS

    def _write_packets(self, view: memoryview, offset: int, count: int) -> None:
        """Write ``count`` packets from where they are: a buffer for them would be new memory."""
        pieces: list[bytes | memoryview] = []
        for number in range(1, count + 1):
            following, seconds, nanoseconds, captured, length, _, mac = _FRAME.unpack_from(
                view, offset
            )
            outgoing = view[offset + _PACKET_TYPE] == _PACKET_OUTGOING
            head, tail = pcapng.packet(
                seconds * 1_000_000_000 + nanoseconds,
                length,
                captured,
                pcapng.OUTBOUND if outgoing else pcapng.INBOUND,
            )
            pieces += (head, view[offset + mac : offset + mac + captured], tail)
            if number % _AT_ONCE == 0 or number == count:
                _write(self.file, pieces)
                pieces.clear()
            offset += following
        self.packets += count

    def close(self) -> tuple[int, int]:
        """Stop, with what is still in the ring. :returns: packets captured, packets dropped."""
        self.drain()
        # Behind the last packet, so that none is missing of which this doesn't tell.
        seen = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        dropped = int(_STATISTICS.unpack(seen)[1])
        _write(self.file, [pcapng.statistics(time.time_ns(), self.packets + dropped, dropped)])
        os.close(self.file)
        self.ring.close()
        self.socket.close()
        return self.packets, dropped


def _write(file: int, pieces: Sequence[bytes | memoryview]) -> None:
    written = os.writev(file, pieces)
    if written < sum(map(len, pieces)):
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(file, rest) :]


def run(plan: Path, result: Path) -> None:
    """Capture until SIGTERM or SIGINT."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    rings: list[Ring] = []
    for entry in json.loads(plan.read_text(encoding="utf-8")):
        path = Path(entry["file"])
        rings.append(Ring.open(entry["namespace"], entry["interface"], entry["comment"], path))
    if pace() == 1:
        os.nice(5)  # the lab's timing matters more, where there is time for both
    print("ready", flush=True)
    while not stop:
        for ring in rings:
            ring.drain()
        select.select([reader], (), (), _INTERVAL_S)
    time.sleep(2 * scaled(_RETIRE_MS) / 1000)  # until the kernel hands over its last blocks
    result.write_text(json.dumps([ring.close() for ring in rings]), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Entry point. :returns: exit status."""
    try:
        plan, result = (Path(argument) for argument in arguments)
        run(plan, result)
    except (OSError, ValueError, KeyError, TypeError, DsmipError) as error:
        print(f"capture_main: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
