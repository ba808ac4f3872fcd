"""Probe flows: what is sent, what was received, and what that says about a handover.

A flow is one direction of one address family: numbered probes at fixed times. Sender and receiver
log CLOCK_MONOTONIC, which all namespaces of a kernel share, so that one-way delays are exact.
:mod:`dsmip_ipsec.lab.flow_main` sends and logs; here is the format and the (pure) analysis.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ..errors import LabError

Direction = Literal["up", "down"]  # up: from the mobile node
Protocol = Literal["udp", "tcp"]

SCHEMA = 1
# A probe: magic, flow's number, sequence number, time of sending in ns (CLOCK_MONOTONIC).
PROBE = struct.Struct("!4sIQQ")
MAGIC = b"DSMF"
NS_PER_MS = 1_000_000


# What to send --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """One flow: probes of ``size`` octets from ``source`` to ``destination``, UDP port ``port`` at
    both ends, one every ``interval_ms``. ``number`` tells flows apart on the wire, ``name`` in the
    logs. ``node``: the mobile node. ``traffic_class``: DSCP and ECN, one octet. ``protocol``: a
    probe is a datagram, or a part of a TCP connection to that port. ``end``: the host behind the
    mobile node at whose address the flow is ("": the mobile node's own)."""

    number: int
    name: str
    direction: Direction
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    port: int
    interval_ms: float
    size: int
    node: str = "mn"
    traffic_class: int = 0
    protocol: Protocol = "udp"
    end: str = ""

    @property
    def family(self) -> Literal["ipv4", "ipv6"]:
        """Address family of the probes."""
        return "ipv4" if self.source.version == 4 else "ipv6"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"source": str(self.source), "destination": str(self.destination)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FlowSpec:
        """From :meth:`to_json`'s.

        :raises LabError: it isn't that.
        """
        try:
            addresses = {key: ip_address(value[key]) for key in ("source", "destination")}
            return cls(**{**value, **addresses})
        except (KeyError, TypeError, ValueError) as error:
            raise LabError(f"not a flow's description: {error}") from None


def flows(
    home_addresses: Sequence[IPv4Address | IPv6Address],
    correspondents: Sequence[IPv4Address | IPv6Address],
    *,
    interval_ms: float,
    size: int = 64,
    port: int = 7777,
    node: str = "mn",
    first: int = 0,
    traffic_class: int = 0,
    protocol: Protocol = "udp",
) -> list[FlowSpec]:
    """The flows between the home addresses of the mobile node ``node`` and a correspondent's
    addresses: one per family and direction, named ``mn-ipv6-up``, ``mn-ipv6-down``, … and numbered
    from ``first``."""
    found: list[FlowSpec] = []
    for home in home_addresses:
        peer = next((a for a in correspondents if a.version == home.version), None)
        if peer is None:
            continue
        for direction in ("up", "down"):
            source, destination = (home, peer) if direction == "up" else (peer, home)
            found.append(
                FlowSpec(
                    number=first + len(found),
                    node=node,
                    name=f"{node}-ipv{home.version}-{direction}",
                    direction=direction,
                    source=source,
                    destination=destination,
                    port=port,
                    interval_ms=interval_ms,
                    size=max(size, PROBE.size),
                    traffic_class=traffic_class,
                    protocol=protocol,
                )
            )
    return found


# What was sent and received --------------------------------------------------------------------


@dataclass(slots=True)
class NodeLog:
    """What the process in one node saw.

    ``sent``: flow name → (sequence, time of sending), in order. ``refused``: flow name → sequences
    of probes that the node's own kernel refused to send (no route, no policy, blocked by one),
    counted in ``sent`` too. ``received``: flow name → (sequence, time of sending, time of
    arrival), in order of arrival. Times in ns of CLOCK_MONOTONIC.
    """

    sent: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    refused: dict[str, list[int]] = field(default_factory=dict)
    received: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schema": SCHEMA,
            "sent": self.sent,
            "refused": self.refused,
            "received": self.received,
        }

    @classmethod
    def load(cls, path: Path) -> NodeLog:
        """Read a result file of :mod:`dsmip_ipsec.lab.flow_main`.

        :raises LabError: it can't be read, or is something else.
        """
        hint = "the process that writes it may have been killed; see its log"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LabError(f"no flow results in {path}: {error}", hint=hint) from None
        try:
            if value["schema"] != SCHEMA:
                raise LabError(f"{path} has schema {value['schema']!r}, not {SCHEMA}", hint=hint)
            return cls(
                {k: [(int(s), int(t)) for s, t in v] for k, v in value["sent"].items()},
                {k: [int(s) for s in v] for k, v in value["refused"].items()},
                {
                    k: [(int(s), int(t), int(r)) for s, t, r in v]
                    for k, v in value["received"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LabError(f"{path} isn't a flow result: {error!r}", hint=hint) from None


@dataclass(frozen=True, slots=True)
class Series:
    """A flow's probes from both ends' logs: ``sent`` (sequence, sent at), in order of sending, and
    ``received`` (sequence, sent at, received at), in order of arrival."""

    flow: FlowSpec
    sent: tuple[tuple[int, int], ...]
    received: tuple[tuple[int, int, int], ...]
    refused: frozenset[int] = frozenset()


def merge(specs: Iterable[FlowSpec], logs: Iterable[NodeLog]) -> list[Series]:
    """Put the logs of all nodes together, flow by flow."""
    logs = list(logs)
    return [
        Series(
            spec,
            tuple(probe for log in logs for probe in log.sent.get(spec.name, ())),
            tuple(probe for log in logs for probe in log.received.get(spec.name, ())),
            frozenset(number for log in logs for number in log.refused.get(spec.name, ())),
        )
        for spec in specs
    ]


# What it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FlowStatistics:
    """What happened to the probes that were sent within a window.

    ``sent``; ``received``: how many of them arrived, each counted once; ``lost``: the others
    (``refused`` of them never left the node); ``duplicates``: arrivals beyond the first;
    ``reordered``: those that arrived after one with a higher sequence number (RFC 4737 §3).

    ``interruption_ms``: how much longer the receiver waited than it should have: the longest time
    between two consecutive arrivals, minus the interval; 0.0 at best, None when nothing arrived.
    Losses at the window's edges count like those within: the wait starts when the probe before
    the window's first arrived (or would have, with the delay of the nearest that did), and ends
    likewise. Probes that the sender left out, since it didn't get the CPU, are not the network's
    doing: one interval each is taken off the wait. ``sender_stall_ms`` tells of them.

    ``outage_ms``: by time of sending, from the first to the last of the longest run of
    consecutive lost probes, plus one interval; 0.0 when none was lost.

    ``sender_stall_ms``: the longest time between two probes' sending, minus the interval: for so
    long nobody looked whether the network delivers.

    ``delay_ms_min``, ``delay_ms_max``: one-way delay of those that arrived; None without any.
    """

    sent: int
    received: int
    lost: int
    refused: int
    duplicates: int
    reordered: int
    interruption_ms: float | None
    outage_ms: float
    sender_stall_ms: float
    delay_ms_min: float | None
    delay_ms_max: float | None


def analyse(
    series: Series, start_ns: int | None = None, end_ns: int | None = None
) -> FlowStatistics:
    """Statistics of the probes sent at or after ``start_ns`` and before ``end_ns``
    (CLOCK_MONOTONIC; None: no limit), whenever they arrived."""
    sent = sorted(_window(series.sent, start_ns, end_ns), key=lambda probe: probe[1])
    numbers = {number for number, _ in sent}
    arrivals: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    duplicates = reordered = 0
    highest = -1
    for number, sent_at, arrived_at in sorted(series.received, key=lambda probe: probe[2]):
        if number not in numbers:
            continue
        if number in seen:
            duplicates += 1
            continue
        seen.add(number)
        reordered += number < highest
        highest = max(highest, number)
        arrivals.append((number, sent_at, arrived_at))
    interval = series.flow.interval_ms
    delays = [arrived_at - sent_at for _, sent_at, arrived_at in arrivals]
    stalls = _gaps([sent_at for _, sent_at in sent])
    return FlowStatistics(
        sent=len(sent),
        received=len(arrivals),
        lost=len(sent) - len(arrivals),
        refused=len(numbers & series.refused),
        duplicates=duplicates,
        reordered=reordered,
        interruption_ms=_interruption(sent, arrivals, series.received, interval),
        outage_ms=_outage(sent, seen, interval),
        sender_stall_ms=max(0.0, max(stalls, default=0) / NS_PER_MS - interval),
        delay_ms_min=min(delays) / NS_PER_MS if delays else None,
        delay_ms_max=max(delays) / NS_PER_MS if delays else None,
    )


def _window(
    sent: Sequence[tuple[int, int]], start_ns: int | None, end_ns: int | None
) -> Sequence[tuple[int, int]]:
    """The part of ``sent`` (which is in order of time) that lies in the window."""
    first = 0 if start_ns is None else bisect_left(sent, start_ns, key=lambda probe: probe[1])
    last = len(sent) if end_ns is None else bisect_left(sent, end_ns, key=lambda probe: probe[1])
    return sent[first:last]


def _gaps(times: Sequence[int]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(times)]


def _interruption(
    sent: Sequence[tuple[int, int]],
    arrivals: Sequence[tuple[int, int, int]],
    everything: Sequence[tuple[int, int, int]],
    interval_ms: float,
) -> float | None:
    if not arrivals:
        return None
    first, last = arrivals[0], arrivals[-1]
    start, end = sent[0][1], sent[-1][1]
    interval = round(interval_ms * NS_PER_MS)
    # The delay that the probes just outside the window had, or had they not, those just within.
    earlier = [probe for probe in everything if probe[1] < start and probe[2] <= first[2]]
    later = [probe for probe in everything if probe[1] > end and probe[2] >= last[2]]
    _, sent_at, arrived_at = max(earlier, key=lambda probe: probe[2], default=first)
    before = start - interval + arrived_at - sent_at
    _, sent_at, arrived_at = min(later, key=lambda probe: probe[2], default=last)
    after = end + interval + arrived_at - sent_at
    # Arrivals by number; at the edges those just outside the window.
    marks = [
        (min(before, first[2]), sent[0][0] - 1),
        *((probe[2], probe[0]) for probe in arrivals),
        (max(after, last[2]), sent[-1][0] + 1),
    ]
    numbers = sorted(number for number, _ in sent)
    waits = [
        later - earlier - _left_out(numbers, number_earlier, number_later) * interval
        for (earlier, number_earlier), (later, number_later) in pairwise(marks)
    ]
    return max(0.0, max(waits) / NS_PER_MS - interval_ms)


def _left_out(numbers: Sequence[int], first: int, last: int) -> int:
    """How many probes between these two the sender left out; ``numbers``: those that it sent."""
    if last <= first:
        return 0
    return last - first - 1 - (bisect_left(numbers, last) - bisect_right(numbers, first))


def _outage(sent: Sequence[tuple[int, int]], arrived: set[int], interval_ms: float) -> float:
    longest = 0.0
    first: int | None = None
    for number, sent_at in sent:
        if number in arrived:
            first = None
            continue
        first = sent_at if first is None else first
        longest = max(longest, (sent_at - first) / NS_PER_MS + interval_ms)
    return longest
