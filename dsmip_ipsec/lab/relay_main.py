"""Delays what links carry, where the kernel has no netem: ``python -m dsmip_ipsec.lab.relay_main
PLAN``, in the switch's namespace.

PLAN is a JSON file ``{"generation": N, "links": {NAME: {"ports": [...], "impairment": {...}}}}``,
with an impairment as in a lab file. It is read again on SIGHUP. The line ``ready`` on standard
output says that frames pass, ``applied N`` that the plan of generation N holds. SIGTERM ends it.

Like netem it impairs what each end sends: rate first, then delay and jitter, which may reorder. A
frame is due by the time that the kernel got it, not when this process had the CPU to read it.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .flow_main import clock_offset_ns
from .spec_models import Impairment

# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h; Python has no names for these.
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_IGNORE_OUTGOING = 23
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_ANCILLARY = socket.CMSG_SPACE(_TIMESPEC.size)
_MAX_FRAME = 65535 + 14
_BURST = 64
_QUEUE = 10_000  # frames under way from one end; netem's is as long
_BUFFER = 4 << 20
_RANDOM = random.SystemRandom()


@dataclass(slots=True, eq=False)
class Port:
    """One end of a link. ``idle_at_ns``: when its last frame has left at the link's rate."""

    socket: socket.socket
    link: Wire
    idle_at_ns: int = 0
    under_way: int = 0


@dataclass(slots=True, eq=False)
class Wire:
    """A link: a wire between its ports, or a switch that learns where an address is."""

    impairment: Impairment
    ports: list[Port] = field(default_factory=list)
    known: dict[bytes, Port] = field(default_factory=dict)

    def targets(self, port: Port, frame: bytes) -> Iterable[Port]:
        """Where a frame that came in at ``port`` goes."""
        if len(self.ports) == 2:
            return (self.ports[self.ports[0] is port],)
        self.known[frame[6:12]] = port
        known = self.known.get(frame[:6])
        if known is not None:
            return () if known is port else (known,)
        return [other for other in self.ports if other is not port]


class Relay:
    """All delayed links of a lab. ``uniform(a, b)`` draws a number, for jitter and loss."""

    def __init__(
        self, plan: Path, uniform: Callable[[float, float], float] = _RANDOM.uniform
    ) -> None:
        self._plan = plan
        self._uniform = uniform
        self._wires: dict[str, Wire] = {}
        self._queue: list[tuple[int, int, Port, bytes, Port]] = []
        self._numbers = count()
        self._offset_ns = clock_offset_ns()
        self._stop = self._reload = False
        document = self._read()
        for name, link in document["links"].items():
            wire = self._wires[name] = Wire(Impairment.model_validate(link["impairment"]))
            wire.ports = [Port(_listen(interface), wire) for interface in link["ports"]]

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._plan.read_text(encoding="utf-8"))
        return found

    def run(self) -> None:
        """Carry frames until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # A signal between two looks at the flags must end the wait: select sees this pipe.
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        ports = {port.socket: port for wire in self._wires.values() for port in wire.ports}
        watched: list[Any] = [reader, *ports]
        print("ready", flush=True)
        while not self._stop:
            wait_ns = self._deliver()
            # Not epoll, which counts in milliseconds.
            readable, _, _ = select.select(
                watched, (), (), None if wait_ns is None else wait_ns / 1e9
            )
            for source in readable:
                if source == reader:
                    os.read(reader, 512)
                else:
                    self._take(ports[source])
            if self._reload:
                self._reload = False
                self._apply()

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stop = True

    def _apply(self) -> None:
        document = self._read()
        for name, link in document["links"].items():
            self._wires[name].impairment = Impairment.model_validate(link["impairment"])
        print(f"applied {document['generation']}", flush=True)

    def _take(self, port: Port) -> None:
        for _ in range(_BURST):
            try:
                frame, ancillary, _, _ = port.socket.recvmsg(_MAX_FRAME, _ANCILLARY)
            except OSError:  # nothing more, or the interface is down
                return
            arrived = time.monotonic_ns()
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                    arrived = min(arrived, seconds * 1_000_000_000 + nanoseconds - self._offset_ns)
            self.schedule(port, frame, arrived)

    def schedule(self, port: Port, frame: bytes, arrived_ns: int) -> None:
        """Have a frame that came in at ``port`` delivered in time, or lose it."""
        impairment = port.link.impairment
        if port.under_way >= _QUEUE or self._uniform(0.0, 100.0) < impairment.loss_percent:
            return
        due = arrived_ns
        if impairment.rate_kbit is not None:
            port.idle_at_ns = max(due, port.idle_at_ns) + round(
                len(frame) * 8e6 / impairment.rate_kbit
            )
            due = port.idle_at_ns
        jitter = impairment.jitter_ms
        delay_ms = impairment.delay_ms + (self._uniform(-jitter, jitter) if jitter else 0.0)
        due += round(max(0.0, delay_ms) * 1e6)
        for target in port.link.targets(port, frame):
            port.under_way += 1
            heapq.heappush(self._queue, (due, next(self._numbers), target, frame, port))

    def _deliver(self) -> int | None:
        """Send what is due; nanoseconds until the next frame is, None: there is none."""
        while self._queue:
            wait_ns = self._queue[0][0] - time.monotonic_ns()
            if wait_ns > 0:
                return wait_ns
            _, _, target, frame, origin = heapq.heappop(self._queue)
            origin.under_way -= 1
            with suppress(OSError):  # that end is down: a frame on a wire is lost then
                target.socket.send(frame)
        return None


def _listen(interface: str) -> socket.socket:
    bound = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    bound.setblocking(False)
    bound.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    bound.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    bound.bind((interface, _ETH_P_ALL))
    return bound


def main(arguments: list[str]) -> int:
    """Entry point. :returns: exit status."""
    try:
        (plan,) = (Path(argument) for argument in arguments)
        Relay(plan).run()
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        print(f"relay_main: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
