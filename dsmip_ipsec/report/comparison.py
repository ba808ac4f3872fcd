"""Runs of one lab on several kernels, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsmip_ipsec.lab.record import NodeState, RunRecord, StepRecord
from dsmip_ipsec.report import snapshot
from dsmip_ipsec.report.table import worst_interruption

# Lines of differing state that are shown; what goes beyond is in the records.
MAX_LINES = 40


def render(records: Sequence[RunRecord], console: Console) -> bool:
    """Print a table with a column for each run, then how the IPsec states differ.

    Returns whether the bindings, SAs and policies after each step are the same in all runs, the
    names of what differs from run to run (SPIs, ports) aside; also false for less than two runs.
    """
    if len(records) < 2:
        console.print(Text("nothing to compare: fewer than two kernels have a result"))
        return False
    table = Table(title="Kernels", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for record in records:
        table.add_column(f"{record.kernel.kind} {record.kernel.release}", overflow="fold")
    rows: list[tuple[str, list[str]]] = [
        ("verdict", [record.verdict for record in records]),
        ("expectations met", [_met(record) for record in records]),
        ("whole run", [f"{record.duration_s:.0f} s" for record in records]),
    ]
    names = dict.fromkeys(step.name for record in records for step in record.steps)
    for name in names:
        steps = [_step(record, name) for record in records]
        rows.append((name, ["" for _ in steps]))
        rows.append(("  interruption", [worst_interruption(s.flows) if s else "-" for s in steps]))
        rows.append(("  SAD, SPD", [_moved(s) if s else "-" for s in steps]))
    for title, cells in rows:
        table.add_row(Text(title), *[Text(cell) for cell in cells])
    console.print(table)
    agree = True
    first = snapshot.of_record(records[0])
    for other in records[1:]:
        lines = snapshot.difference(first, snapshot.of_record(other))
        pair = f"{records[0].kernel.kind} and {other.kernel.kind}"
        if not lines:
            console.print(Text(f"IPsec state after each step: the same on {pair}"))
            continue
        agree = False
        console.print(Text(f"IPsec state differs between {pair} (- {pair.split()[0]}):", "red"))
        for line in lines[:MAX_LINES]:
            console.print(Text(f"  {line}"))
        if len(lines) > MAX_LINES:
            console.print(Text(f"  and {len(lines) - MAX_LINES} lines more"))
    return agree


def _met(record: RunRecord) -> str:
    found = [expectation.passed for _, expectation in record.all_expectations()]
    return f"{sum(found)} of {len(found)}"


def _step(record: RunRecord, name: str) -> StepRecord | None:
    return next((step for step in record.steps if step.name == name), None)


def _moved(step: StepRecord) -> str:
    """How many SAs and policies came, went or were changed, at all nodes together."""
    words: Counter[str] = Counter()
    for node in dict.fromkeys([*step.before, *step.after]):
        before = _objects(step.before.get(node, NodeState()))
        after = _objects(step.after.get(node, NodeState()))
        for key in before.keys() | after.keys():
            old, new = before.get(key), after.get(key)
            word = "new" if old is None else "gone" if new is None else "moved"
            if old != new:
                words[f"{word} {key[0]}"] += 1
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items())) or "unchanged"


def _objects(state: NodeState) -> dict[tuple[str, ...], object]:
    """SAs and policies by what stays when they move."""
    found: dict[tuple[str, ...], object] = {
        ("SA", sa.spi, sa.mode): (sa.source, sa.destination, sa.encapsulation) for sa in state.sas
    }
    for policy in state.policies:
        key = ("policy", policy.direction, policy.selector, str(policy.priority))
        found[key] = policy.template
    return found
