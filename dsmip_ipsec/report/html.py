"""The run record as one HTML page: self-contained, without scripts, readable by anybody.

The page loads nothing: no image, font, script or style sheet from anywhere. Its content security
policy says so to the browser, too, and names the one style sheet by its hash. Every name in a
record may be hostile: the template escapes all of them, and links are quoted paths below the
page's own directory.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.record import NodeState, RunRecord, StepRecord
from dsmip_ipsec.report import plots
from dsmip_ipsec.report.changes import (
    Change,
    before_after,
    changes,
    mobile_nodes,
    nat_seen,
    udp_encapsulation,
)
from dsmip_ipsec.report.run_ladder import RunLadder
from dsmip_ipsec.report.table import worst_interruption
from dsmip_ipsec.resources import resource_directory

_TEMPLATES = "templates"


@dataclass(frozen=True, slots=True)
class _StepView:
    step: StepRecord
    number: int
    changes: tuple[Change, ...]
    nat: str
    udp: str
    interruption: str
    lost_up: str
    lost_down: str


def render(record: RunRecord, ladder: RunLadder | None) -> str:
    """The page. ``ladder`` None: there are no captures to draw it from.

    Raises ConfigError if the installation lacks its templates.
    """
    directory = resource_directory(_TEMPLATES) / "report"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(directory),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"link": _link, "shown": _shown}
    style = (directory / "run.css").read_text(encoding="utf-8")
    expectations = [e for _, e in record.all_expectations()]
    return environment.get_template("run.html.j2").render(
        record=record,
        # Our own file, and the hash must be over exactly what stands in the page.
        style=Markup(style),  # noqa: S704
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        steps=[_view(number, step) for number, step in enumerate(record.steps, start=1)],
        held=sum(e.passed for e in expectations),
        expectations=expectations,
        failed=[(step, e) for step, e in record.all_expectations() if not e.passed],
        timeline=plots.timeline(record) if record.timelines else None,
        ladder=plots.ladder(ladder, record) if ladder is not None else None,
        states=_states,
    )


def write(record: RunRecord, ladder: RunLadder | None, path: Path) -> None:
    """Write the page. Raises LabError if it can't be written."""
    try:
        path.write_text(render(record, ladder), encoding="utf-8", errors="replace")
    except OSError as error:
        raise LabError(
            f"the report {path} can't be written: {error.strerror}",
            hint="check that the directory exists, is yours and has room",
        ) from error


def _view(number: int, step: StepRecord) -> _StepView:
    nats, udps = [], []
    for node in mobile_nodes(step):
        before, after = step.before.get(node), step.after.get(node)
        nats.append(before_after(nat_seen(before), nat_seen(after), "→"))
        udps.append(before_after(udp_encapsulation(before), udp_encapsulation(after), "→"))

    # As in the terminal's table: before the first binding and after the last there is nothing to
    # interrupt.
    carried = [flow for flow in step.flows if _bound(step, flow.node)]

    def lost(direction: str) -> str:
        flows = [flow for flow in carried if flow.direction == direction]
        return f"{sum(f.lost for f in flows)}/{sum(f.sent for f in flows)}" if flows else "-"

    return _StepView(
        step=step,
        number=number,
        changes=tuple(changes(step)),
        nat=", ".join(dict.fromkeys(nats)) or "-",
        udp=", ".join(dict.fromkeys(udps)) or "-",
        interruption=worst_interruption(carried),
        lost_up=lost("up"),
        lost_down=lost("down"),
    )


def _bound(step: StepRecord, node: str) -> bool:
    states = step.before.get(node), step.after.get(node)
    return all(state is None or state.bindings for state in states)


def _states(step: StepRecord) -> Iterator[tuple[str, NodeState, NodeState]]:
    """(node, state before, state after), mobile nodes first."""
    nodes: Sequence[str] = list(dict.fromkeys([*step.before, *step.after]))
    mobile = mobile_nodes(step)
    for node in sorted(nodes, key=lambda name: name not in mobile):
        yield node, step.before.get(node, NodeState()), step.after.get(node, NodeState())


def _link(path: str) -> str:
    """A relative URL: a colon in a file name must not make it another scheme's."""
    return quote(path, safe="/")


def _shown(value: object) -> str:
    """Text without control characters, which HTML forbids and which could hide something."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
