"""What a step changed in a node's state, as rows of plain text: shared by the views of a record.

Each row is about one object (a binding, an IKE_SA, an SA; the SPD by its size) that keeps its
identity over a handover, and says where it was and where it is now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from dsmip_ipsec.lab.record import (
    Binding,
    IkeSa,
    NodeState,
    SecurityAssociation,
    StepRecord,
)


@dataclass(frozen=True, slots=True)
class Change:
    """One object of one node. ``before`` or ``after`` is None while it doesn't exist; ``mode``
    is an SA's mode, else empty."""

    node: str
    thing: str
    kind: str
    mode: str
    before: str | None
    after: str | None

    @property
    def lines(self) -> list[tuple[str, str]]:
        """(word, text) pairs to show: `was`/`now`, `new`, `gone` or `same`."""
        if self.before is None:
            return [("new", self.after or "")]
        if self.after is None:
            return [("gone", self.before)]
        if self.before == self.after:
            return [("same", self.after)]
        return [("was", self.before), ("now", self.after)]


@dataclass(frozen=True, slots=True)
class _Shown:
    """One object at one moment: ``key`` is what stays when it moves."""

    key: tuple[str, ...]
    thing: str
    kind: str
    mode: str
    text: str


def changes(step: StepRecord, arrow: str = "→") -> list[Change]:
    """All objects of all nodes, mobile nodes first, in the order in which states list them.

    ``arrow`` stands between source and destination.
    """
    nodes = list(dict.fromkeys([*step.before, *step.after]))
    attached = mobile_nodes(step)
    nodes.sort(key=lambda node: node not in attached)  # stable: keeps the rest in order
    rows = []
    for node in nodes:
        before = list(_objects(step.before.get(node, NodeState()), arrow))
        after = list(_objects(step.after.get(node, NodeState()), arrow))
        keys = dict.fromkeys(shown.key for shown in (*before, *after))
        for key in keys:
            # Two objects can share a key (an SPI at two receivers): pair them in order.
            pairs = zip_longest(
                (shown for shown in before if shown.key == key),
                (shown for shown in after if shown.key == key),
            )
            for old, new in pairs:
                shown = new or old
                rows.append(
                    Change(
                        node=node,
                        thing=shown.thing,
                        kind=shown.kind,
                        mode=shown.mode,
                        before=old.text if old else None,
                        after=new.text if new else None,
                    )
                )
    return rows


def mobile_nodes(step: StepRecord) -> list[str]:
    """Nodes that were or are attached to a link, and those that flows belong to."""
    states = [*step.before.items(), *step.after.items()]
    attached = [node for node, state in states if state.attachment]
    return list(dict.fromkeys([*attached, *(flow.node for flow in step.flows)]))


def nat_seen(state: NodeState | None) -> str:
    """`yes` or `no` as the node's binding says, `-` without a binding."""
    if state is None or not state.bindings:
        return "-"
    return "yes" if any(binding.nat_detected for binding in state.bindings) else "no"


def udp_encapsulation(state: NodeState | None) -> str:
    """`yes`, `no` or `mixed` as the node's tunnel SAs are, `-` if it has none.

    Signalling SAs in transport mode don't count: RFC 5555 §5.2.1 has UDP outside of ESP's
    IPv6 header there, and never ESP in UDP.
    """
    tunnels = [] if state is None else [sa for sa in state.sas if sa.mode == "tunnel"]
    words = {"yes" if sa.encapsulation else "no" for sa in tunnels}
    return "-" if not words else words.pop() if len(words) == 1 else "mixed"


def before_after(before: str, after: str, arrow: str) -> str:
    """One word if nothing changed, else both."""
    return after if before == after else f"{before} {arrow} {after}"


def _objects(state: NodeState, arrow: str) -> Iterable[_Shown]:
    for binding in state.bindings:
        key = "binding", str(binding.home_address)
        yield _Shown(key, "binding", "", "", _binding(binding))
    for ike in state.ike:
        key_ike = "ike", ike.name, ike.uniqueid
        yield _Shown(key_ike, f"IKE_SA {ike.uniqueid}", ike.state.lower(), "", _ike(ike))
    for sa in state.sas:
        yield _Shown(("sa", sa.spi, sa.mode), sa.spi, sa.purpose, sa.mode, _sa(sa, arrow))
    if state.policies:
        yield _Shown(("policies",), "policies", "", "", str(len(state.policies)))


def _binding(binding: Binding) -> str:
    text = str(binding.care_of_address)
    if binding.outer_address is not None:
        # V4ADDR and Z of RFC 5555, as an engineer writes an address and a port.
        seen = str(binding.outer_address)
        if binding.outer_port is not None:
            seen = _endpoint(seen, binding.outer_port)
        text += f" seen as {seen}"
    text += ", NAT" if binding.nat_detected else ", no NAT"
    return text + (", UDP" if binding.udp_encapsulation else "")


def _ike(ike: IkeSa) -> str:
    text = f"{_endpoint(ike.local_host, ike.local_port)} - "
    text += _endpoint(ike.remote_host, ike.remote_port)
    ends = [name for name, nat in (("here", ike.nat_local), ("there", ike.nat_remote)) if nat]
    return text + (f", NAT {' and '.join(ends)}" if ends else "")


def _sa(sa: SecurityAssociation, arrow: str) -> str:
    text = f"{sa.source} {arrow} {sa.destination}"
    if sa.encapsulation is not None:
        ports = sa.encapsulation
        return f"{text}, UDP {ports.source_port} {arrow} {ports.destination_port}"
    return f"{text}, ESP" if sa.mode == "tunnel" else text


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
