"""Sends and logs the probes of one node: ``python -m dsmip_ipsec.lab.flow_main PLAN RESULT``.

PLAN is a JSON file ``{"flows": [...], "node": "mobile_node" | "correspondent_node"}`` (see
:mod:`dsmip_ipsec.lab.flow`); the node sends the flows of its direction and logs the others.
The log goes to the JSON file RESULT on SIGTERM, when the process ends, and so far on SIGUSR1. The
line ``ready`` on standard output says that it listens and sends.

One process and one loop do all flows of a node. Probes are due at multiples of the interval from
the start; one that comes late because the process didn't get the CPU is sent with its true time,
and those that were missed altogether are left out rather than sent in a burst.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DsmipError
from .flow import MAGIC, NS_PER_MS, PROBE, FlowSpec, NodeLog
from .flow_tcp import Connection, freebind

# asm-generic/socket.h; Python has no name for it.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_ANCILLARY = socket.CMSG_SPACE(_TIMESPEC.size)


@dataclass(slots=True)
class _Sender:
    spec: FlowSpec
    transmit: Callable[[bytes], object]  # raises OSError where the kernel doesn't take it
    sent: list[tuple[int, int]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    padding: bytes = b""

    def send(self, sequence: int) -> None:
        now = time.monotonic_ns()
        probe = PROBE.pack(MAGIC, self.spec.number, sequence, now) + self.padding
        try:
            self.transmit(probe)
        except OSError:  # no address, no route, refused by policy: that's what we measure
            self.refused.append(sequence)
        self.sent.append((sequence, now))


def _send_to(bound: socket.socket, where: tuple[str, int], probe: bytes) -> None:
    bound.sendto(probe, where)


def clock_offset_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC in ns: of some readings the one that took the least
    time, since the process may lose the CPU in the middle of any."""
    readings: list[tuple[int, int]] = []
    for _ in range(20):
        before, now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, now - (before + after) // 2))
    return min(readings)[1]


class FlowNode:
    """The flows of one node; ``role`` is the node's."""

    def __init__(self, flows: list[FlowSpec], role: str, result: Path) -> None:
        self._result = result
        self._senders: list[_Sender] = []
        self._receivers: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
        self._received: dict[str, list[tuple[int, int, int]]] = {}
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._connections: dict[tuple[str, str], Connection] = {}
        self._stop = False
        self._dump = False
        # Arrivals are stamped by the kernel, in CLOCK_REALTIME; the two clocks differ by a
        # constant as long as nobody sets the time.
        self._offset = clock_offset_ns()
        own = "up" if role == "mobile_node" else "down"
        for spec in flows:
            outgoing = spec.direction == own
            address = str(spec.source if outgoing else spec.destination)
            peer = str(spec.destination if outgoing else spec.source)
            transmit: Callable[[bytes], object]
            if spec.protocol == "tcp":
                transmit = self._connection(address, peer, spec, listens=own == "down").send
            else:
                bound = self._socket(address, spec)
                transmit = partial(_send_to, bound, (peer, spec.port))
            if outgoing:
                padding = bytes(max(0, spec.size - PROBE.size))
                self._senders.append(_Sender(spec, transmit, padding=padding))
            else:
                self._received[spec.name] = self._receivers[spec.number, peer] = []

    def _connection(self, local: str, remote: str, spec: FlowSpec, *, listens: bool) -> Connection:
        if (local, remote) not in self._connections:
            self._connections[local, remote] = Connection(
                local, remote, spec.port, spec.size, listens=listens
            )
        return self._connections[local, remote]

    def _socket(self, address: str, spec: FlowSpec) -> socket.socket:
        if (address, spec.port) in self._sockets:
            return self._sockets[address, spec.port]
        version6 = spec.source.version == 6
        bound = socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_DGRAM)
        freebind(bound)  # the home addresses may come later than we do
        bound.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if spec.traffic_class and version6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, spec.traffic_class)
        elif spec.traffic_class:
            bound.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, spec.traffic_class)
        bound.setblocking(False)
        bound.bind((address, spec.port))
        self._sockets[address, spec.port] = bound
        return bound

    def run(self) -> None:
        """Send and log until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)
        # A signal between two looks at the flags must end the wait: select sees this pipe.
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        interval = round(min((s.spec.interval_ms for s in self._senders), default=1000) * NS_PER_MS)
        start = time.monotonic_ns()
        sequence = 0
        print("ready", flush=True)
        while not self._stop:
            for connection in self._connections.values():
                connection.tick()
            wait_ns = start + sequence * interval - time.monotonic_ns()
            if wait_ns <= 0:
                for sender in self._senders:
                    sender.send(sequence)
                sequence = max(sequence, (time.monotonic_ns() - start) // interval) + 1
                continue
            watched: list[Any] = [*self._sockets.values(), reader]
            for connection in self._connections.values():
                watched += connection.sockets()
            readable, _, _ = select.select(watched, (), (), wait_ns / 1e9)
            self._receive_streams()
            for source in readable:
                if source == reader:
                    os.read(reader, 512)
                elif source in self._sockets.values():
                    self._receive(source)
            if self._dump:
                self._dump = False
                self.write()
        for bound in self._sockets.values():  # what has arrived already is part of the result
            self._receive(bound)
        self._receive_streams()
        self.write()

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self._dump = True
        else:
            self._stop = True

    def _receive(self, bound: socket.socket) -> None:
        for _ in range(64):  # then others have their turn
            try:
                data, ancillary, _, address = bound.recvmsg(2048, _ANCILLARY)
            except OSError:
                return
            now = time.monotonic_ns()
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                    now = min(now, seconds * 1_000_000_000 + nanoseconds - self._offset)
            self._log(data, address[0], now)

    def _receive_streams(self) -> None:
        for (_, remote), connection in self._connections.items():
            for record in connection.receive():
                self._log(record, remote, time.monotonic_ns())

    def _log(self, data: bytes, remote: str, now: int) -> None:
        if len(data) < PROBE.size or data[:4] != MAGIC:
            return
        _, number, sequence, sent_at = PROBE.unpack_from(data)
        log = self._receivers.get((number, remote))
        if log is not None:
            log.append((sequence, sent_at, now))

    def write(self) -> None:
        """Write the log, whole or not at all."""
        log = NodeLog(
            {s.spec.name: s.sent for s in self._senders},
            {s.spec.name: s.refused for s in self._senders},
            self._received,
        )
        temporary = self._result.with_suffix(".part")
        temporary.write_text(json.dumps(log.to_json(), separators=(",", ":")), encoding="utf-8")
        temporary.replace(self._result)


def main(arguments: list[str]) -> int:
    """Entry point. :returns: exit status."""
    try:
        plan, result = (Path(argument) for argument in arguments)
        value = json.loads(plan.read_text(encoding="utf-8"))
        flows = [FlowSpec.from_json(entry) for entry in value["flows"]]
        FlowNode(flows, value["node"], result).run()
    except (OSError, ValueError, KeyError, TypeError, DsmipError) as error:
        print(f"flow_main: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
