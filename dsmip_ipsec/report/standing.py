"""What the nodes of a standing lab know now, on a terminal: bindings, IKE_SAs, SAs with what they
have carried, policies. Names and addresses are shown as text, as in :mod:`.table`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dsmip_ipsec.lab.record import NodeState, StepRecord
from dsmip_ipsec.report.changes import Change, changes

States = Mapping[str, NodeState]
# Node -> SPI and mode (`0xc0ffee00 tunnel`) -> "octets" and "packets".
Traffic = Mapping[str, Mapping[str, Mapping[str, int]]]


def objects(states: States) -> list[Change]:
    """All objects of all nodes; their ``after`` says where they are."""
    return changes(
        StepRecord(name="", action="", started_s=0, ended_s=0, after=dict(states)), arrow="->"
    )


def carried(traffic: Traffic, row: Change) -> str:
    """What an SA has carried, such as `12 packets, 1344 octets`; nothing for what isn't an SA."""
    seen = _traffic_of(traffic, row)
    return "" if seen is None else f"{seen['packets']} packets, {seen['octets']} octets"


def _traffic_of(traffic: Traffic, row: Change) -> Mapping[str, int] | None:
    return traffic.get(row.node, {}).get(f"{row.thing} {row.mode}")


def table(states: States, traffic: Traffic, networks: Mapping[str, str]) -> RenderableType:
    """One row for each binding, IKE_SA and SA; nodes without any are named, too."""
    found = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("Node", "Object", "Kind"):
        found.add_column(name, no_wrap=True)
    found.add_column("Where", overflow="fold")
    found.add_column("Packets", justify="right", no_wrap=True)
    found.add_column("Octets", justify="right", no_wrap=True)
    rows = {node: list(of_node) for node, of_node in groupby(objects(states), lambda r: r.node)}
    for node in states:
        label = node
        if node in networks:
            label += f" ({networks[node]})"
        for row in rows.get(node, []):
            seen = _traffic_of(traffic, row)
            numbers = ("", "") if seen is None else (str(seen["packets"]), str(seen["octets"]))
            found.add_row(*map(_text, (label, row.thing, row.kind, row.after or "", *numbers)))
            label = ""
        if label:
            found.add_row(_text(label), Text("nothing"))
    return found


def policies(states: States) -> RenderableType:
    """The SPD of each node, best priority first."""
    found = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column("Node", no_wrap=True)
    found.add_column("", no_wrap=True)
    found.add_column("Policy", overflow="fold")
    found.add_column("Template", overflow="fold")
    found.add_column("Priority", justify="right", no_wrap=True)
    for node, state in states.items():
        label = node
        for policy in sorted(state.policies, key=lambda p: (p.direction, p.priority)):
            words = (label, policy.direction, policy.selector, policy.template)
            found.add_row(*map(_text, (*words, str(policy.priority))))
            label = ""
    return Group(Text(""), found) if found.row_count else Text("")


def lines(states: States, traffic: Traffic) -> list[str]:
    """The same for programs and logs: one line for each object."""
    return [
        " ".join(filter(None, (row.node, row.thing, row.kind, row.after, carried(traffic, row))))
        for row in objects(states)
    ]


def _text(value: str) -> Text:
    return Text("".join(c if c.isprintable() else "�" for c in value))
