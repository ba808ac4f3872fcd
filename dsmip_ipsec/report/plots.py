"""Geometry of the HTML report's drawings: where lines and words go. Pure; the template draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from dsmip_ipsec.lab.record import FlowTimeline, RunRecord
from dsmip_ipsec.report.run_ladder import RunLadder

WIDTH = 960.0
_LEFT, _RIGHT = 110.0, 20.0
_TOP = 34.0
_ROW = 46.0
_LADDER_ROW = 23.0
_LADDER_TOP = 40.0
_TIME = 80.0

_Scale = Callable[[float], float]  # seconds since the run's start -> x


@dataclass(frozen=True, slots=True)
class Band:
    """A step on the time axis; ``number`` counts from 1."""

    x: float
    width: float
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin: ``x``, ``y``, ``width``, ``height`` in units of the drawing, and its words."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """One flow. ``loss``: share of lost probes; ``waits``: the longest wait between arrivals."""

    name: str
    base: float
    loss: tuple[Bar, ...]
    waits: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Loss and interruption of all flows over the run. ``ticks``: (x, label)."""

    height: float
    bottom: float
    bands: tuple[Band, ...]
    ticks: tuple[tuple[float, str], ...]
    loss: tuple[Row, ...]
    waits: tuple[Row, ...]
    wait_scale_ms: float
    bin_ms: float


def timeline(record: RunRecord) -> Timeline:
    """The plots of a record that has timelines."""
    several = len({flow.node for flow in record.timelines}) > 1
    starts = [f.start_s for f in record.timelines] + [s.started_s for s in record.steps]
    ends = [_end_s(f) for f in record.timelines] + [s.ended_s for s in record.steps]
    start, end = min(starts), max(max(ends), min(starts) + 0.1)
    scale = (WIDTH - _LEFT - _RIGHT) / (end - start)

    def x(seconds: float) -> float:
        return round(_LEFT + (seconds - start) * scale, 1)

    longest = max((wait for f in record.timelines for wait in f.wait_ms), default=0.0)
    wait_scale = max(100.0, ceil(longest / 100) * 100.0)
    loss, waits = [], []
    for index, flow in enumerate(record.timelines):
        base = _TOP + (index + 1) * _ROW
        name = f"{flow.family.replace('ip', 'IP')} {flow.direction}"
        name = f"{flow.node} {name}" if several else name
        loss.append(Row(name, base, tuple(_loss(flow, base, x)), ()))
        waits.append(Row(name, base, (), tuple(_waits(flow, base, wait_scale, x))))
    bottom = _TOP + len(record.timelines) * _ROW
    step_s = next(s for s in (0.5, 1, 2, 5, 10, 30, 60, 300, 3600) if (end - start) / s <= 24)
    first = ceil(start / step_s)
    ticks = [(x(n * step_s), f"{n * step_s:g} s") for n in range(first, int(end / step_s) + 1)]
    return Timeline(
        height=bottom + 30,
        bottom=bottom,
        bands=tuple(
            Band(x(s.started_s), max(1.0, x(s.ended_s) - x(s.started_s)), s.name, number)
            for number, s in enumerate(record.steps, start=1)
        ),
        ticks=tuple(ticks),
        loss=tuple(loss),
        waits=tuple(waits),
        wait_scale_ms=wait_scale,
        bin_ms=max((flow.bin_ms for flow in record.timelines), default=0.0),
    )


def _end_s(flow: FlowTimeline) -> float:
    return flow.start_s + len(flow.sent) * flow.bin_ms / 1000


def _bins(flow: FlowTimeline) -> Iterable[tuple[int, float]]:
    for index in range(len(flow.sent)):
        yield index, flow.start_s + index * flow.bin_ms / 1000


def _loss(flow: FlowTimeline, base: float, x: _Scale) -> Iterable[Bar]:
    room = _ROW - 12
    for index, at in _bins(flow):
        sent, lost = flow.sent[index], flow.lost[index]
        if not lost:
            continue
        height = round(max(2.0, room * lost / max(sent, 1)), 1)
        width = max(1.0, x(at + flow.bin_ms / 1000) - x(at))
        title = f"{at:.1f} s: {lost} of {sent} probes lost"
        yield Bar(x(at), base - height, round(width, 1), height, title)


def _waits(flow: FlowTimeline, base: float, longest: float, x: _Scale) -> Iterable[Bar]:
    room = _ROW - 12
    for index, at in _bins(flow):
        wait = flow.wait_ms[index]
        if not wait:
            continue
        height = round(max(1.0, room * wait / longest), 1)
        width = max(1.0, x(at + flow.bin_ms / 1000) - x(at))
        title = f"{at:.1f} s: {wait:.1f} ms without an arrival"
        yield Bar(x(at), base - height, round(width, 1), height, title)


# The ladder ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rung:
    """One message. ``end``: where the arrow ends (half way if it got ``lost``); ``tip``: the
    corners of its head, or "" if it was lost."""

    y: float
    start: float
    end: float
    tip: str
    label_x: float
    label: str
    time: str
    wire: str
    kind: str
    lost: bool


@dataclass(frozen=True, slots=True)
class Ladder:
    """``columns``: (x, node); ``marks``: (y, step name) where a step begins."""

    width: float
    height: float
    columns: tuple[tuple[float, str], ...]
    rungs: tuple[Rung, ...]
    marks: tuple[tuple[float, str], ...]


def ladder(found: RunLadder, record: RunRecord) -> Ladder:
    """Where the messages of a run go, one below the other, with the steps that they belong to."""
    gap = 360.0 if len(found.nodes) < 3 else 240.0
    columns = {node: _TIME + 40 + index * gap for index, node in enumerate(found.nodes)}
    width = max([*columns.values(), _TIME]) + 220
    rungs: list[Rung] = []
    marks: list[tuple[float, str]] = []
    y = _LADDER_TOP
    steps = list(record.steps)
    for message in found.messages:
        while steps and message.seconds >= steps[0].started_s:
            y += _LADDER_ROW * 1.4
            marks.append((y, steps.pop(0).name))
        y += _LADDER_ROW
        end = columns.get(message.destination, _TIME + 40)
        start = columns.get(message.source, (end + _TIME) / 2)
        if message.lost:
            end = start + (end - start) * 0.75
        side = 7 if end > start else -7
        rungs.append(
            Rung(
                y=y,
                start=start,
                end=end,
                tip="" if message.lost else f"{end},{y} {end - side},{y - 4} {end - side},{y + 4}",
                label_x=(start + end) / 2,
                label=message.label,
                time=f"{message.seconds:.3f} s",
                wire=message.wire,
                kind=_kind(message.label),
                lost=message.lost,
            )
        )
    for step in steps:
        y += _LADDER_ROW * 1.4
        marks.append((y, step.name))
    return Ladder(
        width=width,
        height=y + _LADDER_ROW,
        columns=tuple((x, node) for node, x in columns.items()),
        rungs=tuple(rungs),
        marks=tuple(marks),
    )


def _kind(label: str) -> str:
    """A message's class in the style sheet."""
    if label.startswith(("BU", "BA", "Mobility")):
        return "mobility"
    return "esp" if label.startswith("ESP") else "ike"
