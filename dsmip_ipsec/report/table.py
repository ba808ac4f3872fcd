"""The run record on a terminal.

Details come first and the conclusion last, where the eye is when a command ends. Everything is
said in words; colour only repeats them, so that a CI log and a colour-blind reader lose nothing.
Eighty columns are enough. What a record holds is shown as text: neither control characters nor
rich's markup in a name have an effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dsmip_ipsec.lab.record import Expectation, Flow, RunRecord, StepRecord
from dsmip_ipsec.report.changes import (
    Change,
    before_after,
    changes,
    mobile_nodes,
    nat_seen,
    udp_encapsulation,
)

MAX_CHANGES = 40
"""Rows of objects shown for a step; a lab with many mobile nodes has more in its record."""

BUSY_MS = 25.0
"""A sender that was kept from sending for so long, or longer, is told of beside what failed."""

# Counters of what goes well; the record has them.
_EXPECTED = re.compile(
    r"received\..*|sent\..*|answered\.0|acknowledged\.0|signalling\.(udp_received|received|sent)"
)

_FAMILY = {"ipv6": "IPv6", "ipv4": "IPv4"}
_WORD_STYLE = {"new": "green", "now": "green", "gone": "red", "was": "dim"}


def render(record: RunRecord, console: Console, *, directory: Path | None = None) -> None:
    """Print the record. ``directory`` is where it and its artefacts are (None: nowhere)."""
    arrow = "->" if console.options.ascii_only else "→"
    _header(record, console)
    for step in record.steps:
        console.print()
        _details(step, console, arrow)
    if record.steps:
        console.print()
        console.print(_summary(record.steps, arrow))
    _failures(record, console)
    console.print()
    _conclusion(record, console, directory)


def step_details(step: StepRecord, console: Console) -> None:
    """Print one step: what was done, and what became of each object."""
    _details(step, console, "->" if console.options.ascii_only else "→")


def milliseconds(value: float) -> str:
    """`0.8 ms`, `65.5 ms`, `412 ms`, `1240 ms`: no more digits than a probe flow can know."""
    return f"{value:.1f} ms" if value < 99.95 else f"{value:.0f} ms"


def worst_interruption(flows: Iterable[Flow]) -> str:
    """The longest interruption of the flows, such as `65.5 ms (1.6 RTT)`."""
    found = list(flows)
    if not found:
        return "-"
    worst = max(found, key=lambda flow: _length(flow.interruption_ms))
    if worst.interruption_ms is None:
        return "nothing arrived"
    text = milliseconds(worst.interruption_ms)
    if worst.interruption_rtts is not None:
        rtts = worst.interruption_rtts
        text += f" ({rtts:.1f} RTT)" if rtts < 9.95 else f" ({rtts:.0f} RTT)"
    return text


def _length(interruption_ms: float | None) -> float:
    return float("inf") if interruption_ms is None else interruption_ms


def _header(record: RunRecord, console: Console) -> None:
    title = _text(record.lab, style="bold")
    title.append_text(_text(f"  run {record.run_id}"))
    _print(console, title)
    if record.description:
        _print(console, _text(record.description))
    settings = record.settings
    ike = ", ".join(filter(None, (settings.ike_authentication, settings.ike_mobility)))
    facts = [
        ("kernel", f"{record.kernel.release} ({record.kernel.kind})"),
        ("IPsec", "in the daemons, with configured keys")
        if settings.ipsec == "userspace"
        else ("strongSwan", (record.strongswan_version or "-") + (f" ({ike})" if ike else "")),
        (
            "RTT",
            f"{settings.rtt_ms:g} ms, MN to HA"
            + " (by a relay)" * (settings.delayed_by == "relay"),
        ),
        ("probes", f"every {settings.probe_interval_ms:g} ms"),
        ("started", f"{record.started:%Y-%m-%d %H:%M:%S} UTC"),
        ("took", f"{record.duration_s:.1f} s" + _phases(record)),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(_text(name, style="dim"), _text(value))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def _phases(record: RunRecord) -> str:
    if not record.phases:
        return ""
    phases = ", ".join(f"{phase.name} {phase.duration_s:.1f} s" for phase in record.phases)
    return f" ({phases})"


def _details(step: StepRecord, console: Console, arrow: str) -> None:
    """One step: what was done, and what became of each binding, IKE_SA and SA."""
    title = _text(step.name, style="bold")
    title.append_text(
        _text(f"  {step.action}, from {step.started_s:.1f} s to {step.ended_s:.1f} s")
    )
    _print(console, title)
    rows = changes(step, arrow)
    shown = rows[:MAX_CHANGES]
    if shown:
        console.print(Padding(_changes(shown, console.width), (0, 0, 0, 2), expand=False))
    if len(rows) > len(shown):
        _print(console, Text(f"  and {len(rows) - len(shown)} more in record.json"))
    for node, counters in step.counters.items():
        grown = [
            f"{name} +{value}"
            for name, value in (counters.engine | counters.xfrm).items()
            if not _EXPECTED.fullmatch(name)
        ]
        if grown:
            _print(console, _text(f"  counters of {node}: {', '.join(grown)}"))


def _changes(rows: Iterable[Change], width: int) -> Table:
    """The objects of each node; those that stayed as they were share a line."""
    wide = width >= 100
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Node", no_wrap=True)
    table.add_column("Object", no_wrap=True)
    table.add_column("Kind", no_wrap=True)
    if wide:
        table.add_column("Mode", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("Where", overflow="fold")
    for node, of_node in groupby(rows, key=lambda row: row.node):
        label = node
        same: list[str] = []
        for row in of_node:
            if row.before == row.after:
                same.append(row.thing)
                continue
            for line, (word, where) in enumerate(row.lines):
                about = ["", "", ""] if line else [row.thing, row.kind or row.mode, row.mode]
                table.add_row(
                    _text(label),
                    *map(_text, about if wide else about[:2]),
                    _text(word, style=_WORD_STYLE[word]),
                    _text(where, style="dim" if word == "was" else ""),
                )
                label = ""
        if same:
            blank = [""] * (3 if wide else 2)
            table.add_row(_text(label), *blank, "same", _text(", ".join(same), style="dim"))
    return table


def _summary(steps: Sequence[StepRecord], arrow: str) -> Table:
    """One row for each step, mobile node and family."""
    several = len({flow.node for step in steps for flow in step.flows}) > 1
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    table.add_column("Step", overflow="fold")
    if several:
        table.add_column("Node", overflow="fold")
    table.add_column("NAT", no_wrap=True)
    table.add_column("UDP encap", no_wrap=True)
    table.add_column("Flow", no_wrap=True)
    table.add_column("Interruption", justify="right", overflow="fold")
    table.add_column("Lost up", justify="right")
    table.add_column("down", justify="right")
    for step in steps:
        first = True
        for node in mobile_nodes(step) or [""]:
            states = step.before.get(node), step.after.get(node)
            nat = before_after(nat_seen(states[0]), nat_seen(states[1]), arrow)
            udp = before_after(udp_encapsulation(states[0]), udp_encapsulation(states[1]), arrow)
            # Before the first binding and after the last there is nothing to interrupt.
            carried = all(state is None or state.bindings for state in states)
            flows = [flow for flow in step.flows if flow.node == node and carried]
            families = [f for f in ("ipv6", "ipv4") if any(flow.family == f for flow in flows)]
            for index, family in enumerate(families or [""]):
                of_family = [flow for flow in flows if flow.family == family]
                row = [
                    _result(step) if first else Text(""),
                    _text(step.name if first else ""),
                    *([_text(node if not index else "")] if several else []),
                    Text("" if index else nat),
                    Text("" if index else udp),
                    Text(_FAMILY.get(family, "-")),
                    Text(worst_interruption(of_family)),
                    Text(_lost(of_family, "up")),
                    Text(_lost(of_family, "down")),
                ]
                table.add_row(*row)
                first = False
    return table


def _result(step: StepRecord) -> Text:
    if not step.expectations:
        return Text("-")
    return Text("ok", style="green") if step.passed else Text("FAIL", style="bold red")


def _lost(flows: Iterable[Flow], direction: str) -> str:
    found = [flow for flow in flows if flow.direction == direction]
    if not found:
        return "-"
    return f"{sum(flow.lost for flow in found)}/{sum(flow.sent for flow in found)}"


def _failures(record: RunRecord, console: Console) -> None:
    if record.failure is not None:
        failure = record.failure
        where = f"step {failure.step}: " if failure.step else ""
        console.print()
        _print(console, Text("Ended early", style="bold red"))
        _print(console, _text(f"  {where}{failure.message}"))
        if failure.hint:
            _print(console, _text(f"  {failure.hint}"))
    missing: dict[tuple[str, str], list[str]] = {}
    for step, item in record.all_not_applicable():
        missing.setdefault((item.name, item.reason), []).append(step)
    if missing:
        console.print()
        _print(console, Text("Not applicable", style="bold"))
        for (name, reason), steps in missing.items():
            _print(console, _text(f"  {name} ({', '.join(steps)}): {reason}"))
    failed = [(step, e) for step, e in record.all_expectations() if not e.passed]
    if failed:
        console.print()
        _print(console, Text("Failed expectations", style="bold red"))
        for step, expectation in failed:
            _print(console, _failed(step, expectation))
        concerned = {step for step, _ in failed}
        stalls = [
            flow.sender_stall_ms for s in record.steps if s.name in concerned for flow in s.flows
        ]
        if max(stalls, default=0) >= BUSY_MS:
            _print(console, _text(
                f"  The probes' senders went without a CPU for {milliseconds(max(stalls))} there: "
                "the machine was busy with something else, which lengthens interruptions."
            ))  # fmt: skip


def _failed(step: str, expectation: Expectation) -> Text:
    text = Text("  ")
    text.append_text(_text(f"{step}: {expectation.name}" if step else expectation.name))
    text.append("\n    expected  ").append_text(_text(expectation.expected))
    text.append("\n    saw       ").append_text(_text(expectation.seen, style="bold"))
    return text


def _conclusion(record: RunRecord, console: Console, directory: Path | None) -> None:
    """The last line: the verdict, what it rests on, and where to look next."""
    expectations = [e for _, e in record.all_expectations()]
    held = sum(e.passed for e in expectations)
    verdict = {
        "passed": Text("PASS", style="bold green"),
        "failed": Text("FAIL", style="bold red"),
        "error": Text("FAIL", style="bold red"),
    }[record.verdict]
    line = verdict.copy()
    counted = f"{held} of {len(expectations)} expectations held"
    line.append(f"  {counted if expectations else 'no expectation was checked'}")
    if missing := len(record.all_not_applicable()):
        line.append(f", {missing} not applicable")
    if record.failure is not None:
        line.append(", the run ended early")
    if directory is not None:
        line.append_text(_text(f"; see {directory}"))
    # Never broken: scripts look for this line, and people copy the path.
    console.print(line, highlight=False, soft_wrap=True)


def _text(text: str, *, style: str = "") -> Text:
    """Text of a record: no markup is looked for, control characters are shown, not obeyed."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return Text(shown, style=style)


def _print(console: Console, text: Text) -> None:
    # Emphasis in a log would only be noise: rich's highlighter stays off.
    console.print(text, highlight=False)
