"""Captures on many interfaces at once: ``python -m dsmip_ipsec.lab.capture_main PLAN RESULT``.

PLAN is a JSON list of ``{"namespace", "interface", "comment", "file"}``; RESULT gets a JSON list
of ``[packets, dropped]``, in the same order, at the end (SIGTERM). The line ``ready`` on standard
output says that all are capturing.

Each interface has a ring that the kernel fills (packet(7), TPACKET_V2: frames of a fixed size,
each handed over by itself, so that the last packet is there as soon as it was sent). All rings are
emptied a few times a second in one go, so that a packet costs no system call and no wake-up.
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
from dataclasses import dataclass
from pathlib import Path

from ..errors import DsmipError
from . import netns, pcapng

# linux/if_packet.h, linux/if_ether.h
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V2 = 1
_TP_STATUS_KERNEL = 0
_TP_STATUS_USER = 1
_PACKET_OUTGOING = 4
# struct tpacket2_hdr: status, len, snaplen, mac, net, sec, nsec, vlan_tci, vlan_tpid, padding[4];
# then struct sockaddr_ll, of which the packet type is the octet at 10.
_FRAME = struct.Struct("=IIIHHII")
_FRAME_HEADER = 32
_PACKET_TYPE = _FRAME_HEADER + 10
_STATUS = struct.Struct("=I")

# A frame holds a packet of 1500 octets with its headers: all of it, since ESP can only be
# decrypted whole. The CPU may be busy elsewhere for a while: 4096 frames are two seconds of the
# busiest link of a lab with probes every 5 ms.
_FRAME_SIZE = 2048
_FRAMES = 4096
_BLOCK_SIZE = 65536
_INTERVAL_S = 0.05


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
        packets.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        blocks = _FRAMES * _FRAME_SIZE // _BLOCK_SIZE
        request = struct.pack("=IIII", _BLOCK_SIZE, blocks, _FRAME_SIZE, _FRAMES)
        packets.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        ring = mmap.mmap(packets.fileno(), _FRAMES * _FRAME_SIZE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(path, flags, 0o644)
        _write(file, pcapng.header(interface, comment, _FRAME_SIZE))
        packets.bind((interface, _ETH_P_ALL))
        return cls(packets, ring, file)

    def drain(self) -> None:
        """Write what the ring holds to the file."""
        ring, output = self.ring, bytearray()
        with memoryview(ring) as view:
            for _ in range(_FRAMES):
                offset = self.position * _FRAME_SIZE
                status, length, captured, mac, _, seconds, nanoseconds = _FRAME.unpack_from(
                    ring, offset
                )
                if not status & _TP_STATUS_USER:
                    break
                outgoing = ring[offset + _PACKET_TYPE] == _PACKET_OUTGOING
                start = offset + mac
                pcapng.append_packet(
                    output,
                    seconds * 1_000_000_000 + nanoseconds,
                    view[start : start + captured],
                    length,
                    pcapng.OUTBOUND if outgoing else pcapng.INBOUND,
                )
                _STATUS.pack_into(ring, offset, _TP_STATUS_KERNEL)
                self.position = (self.position + 1) % _FRAMES
                self.packets += 1
        if output:
            _write(self.file, output)

    def close(self) -> tuple[int, int]:
        """Stop, with what is still in the ring. :returns: packets captured, packets dropped."""
        seen = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        dropped = int(struct.unpack("=II", seen)[1])
        self.drain()
        _write(self.file, pcapng.statistics(time.time_ns(), self.packets + dropped, dropped))
        os.close(self.file)
        self.ring.close()
        self.socket.close()
        return self.packets, dropped


def _write(file: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


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
    os.nice(5)  # the lab's timing matters more
    print("ready", flush=True)
    while not stop:
        for ring in rings:
            ring.drain()
        select.select([reader], (), (), _INTERVAL_S)
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
