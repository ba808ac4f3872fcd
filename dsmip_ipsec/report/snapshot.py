"""Snapshots: the IPsec state of all ends after each step of a run, as text to review and compare.

What differs from run to run without a meaning is made symbolic, consistently over all nodes and
steps: the same SPI has the same name at mobile node and home agent and as long as it lives, the
port that a NAT gave has the same name in the binding, the SAs and the IKE_SA. So a snapshot stays
equal when the same lab runs again, and differs when an SA is rekeyed where it should have moved,
a policy is missing, or a port or an encapsulation is still the old one.

Names: ``NODE@LINK/FAMILY`` an address of a lab file, ``NODE.home/FAMILY`` a home address,
``addressN`` another one; ``PURPOSE FROM>TO`` an SPI, with ``#2`` and so on for its successors;
``natN`` a port that isn't one of the protocols'; ``seqN`` a sequence number; reqids go by the
purpose of their SAs. Keys and lifetimes are left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ipsec.desired import PRIORITY_BAND
from dsmip_ipsec.lab.record import (
    Binding,
    ChildSa,
    IkeSa,
    NodeState,
    Policy,
    RunRecord,
    SecurityAssociation,
    Topology,
)

FORMAT = "# dsmip-ipsec snapshot, format 1"

# Ports of IKE (RFC 7296), NAT traversal (RFC 3948) and DSMIPv6 (RFC 5555): never a NAT's choice.
_PROTOCOL_PORTS = (500, 4500, 4191)
_CONTEXT = 2

Address = IPv4Address | IPv6Address
States = Mapping[str, NodeState]


@dataclass(frozen=True, slots=True)
class Section:
    """What one node knew after one step. ``lines`` are sorted, and without line ends."""

    step: str
    node: str
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"== {_one_line(self.step)} == {self.node}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A section for each step and node, in the order of the run."""

    sections: tuple[Section, ...]

    def text(self) -> str:
        """The snapshot as it is stored; :func:`parse` reads it."""
        parts = [FORMAT]
        for section in self.sections:
            parts += ["", section.title, *section.lines]
        return "\n".join(parts) + "\n"


def of_record(record: RunRecord) -> Snapshot:
    """The snapshot of a whole run."""
    return take(record.topology, [(step.name, step.after) for step in record.steps])


def take(topology: Topology, steps: Sequence[tuple[str, States]]) -> Snapshot:
    """The snapshot of ``steps``: (name, states by node after it), from the run's first on.

    Names depend on all of the steps so far, and on no later one.
    """
    names = _Names(topology, [states for _, states in steps])
    sections = [
        Section(step, node, tuple(_lines(states[node], node, names)))
        for step, states in steps
        for node in sorted(states)
    ]
    return Snapshot(tuple(sections))


def parse(text: str) -> Snapshot:
    """Read a stored snapshot. Raises ConfigError if it isn't one."""
    lines = text.splitlines()
    if not lines or lines[0] != FORMAT:
        raise ConfigError(
            f"this isn't a snapshot: its first line isn't '{FORMAT}'",
            hint="write it anew: pytest --dsmip-update-snapshots",
        )
    sections: list[Section] = []
    for number, line in enumerate(lines[1:], start=2):
        if match := re.fullmatch(r"== (.+) == (\S+)", line):
            sections.append(Section(match[1], match[2], ()))
        elif line and sections:
            last = sections[-1]
            sections[-1] = Section(last.step, last.node, (*last.lines, line))
        elif line:
            raise ConfigError(
                "the snapshot has a line before its first section",
                line=number,
                hint="write it anew: pytest --dsmip-update-snapshots",
            )
    return Snapshot(tuple(sections))


def difference(stored: Snapshot, seen: Snapshot) -> list[str]:
    """What differs, as lines for a person: ``-`` as stored, ``+`` as seen, each under the step
    and node it belongs to. Empty: nothing does."""
    old = {(_one_line(s.step), s.node): s for s in stored.sections}
    new = {(_one_line(s.step), s.node): s for s in seen.sections}
    found: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before = old[key].lines if key in old else ()
        after = new[key].lines if key in new else ()
        step, node = key
        where = f"step '{step}', node {node}"
        if key not in new:
            found += [f"{where}: stored, but not seen", *(f"- {line}" for line in before)]
        elif key not in old:
            found += [f"{where}: seen, but not stored", *(f"+ {line}" for line in after)]
        elif before != after:
            found += [f"{where}:", *_changed(before, after)]
    if not found and list(old) != list(new):
        found.append("the steps come in another order")
    return found


def _changed(before: Sequence[str], after: Sequence[str]) -> Iterable[str]:
    for line in difflib.unified_diff(before, after, n=_CONTEXT, lineterm=""):
        if line.startswith(("---", "+++")):
            continue
        yield "  ..." if line.startswith("@@") else f"{line[0]} {line[1:]}"


def _one_line(text: str) -> str:
    """A step's name on one line, without what would end a title early."""
    return _printable(" ".join(text.replace("==", "=").split())) or "-"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# Names ---------------------------------------------------------------------------------------


class _Names:
    """The names of one run's addresses, SPIs, ports, sequence numbers and reqids.

    They are given in the order of the steps, by what an object is and never by its random value.
    """

    def __init__(self, topology: Topology, steps: Sequence[States]) -> None:
        self._addresses: dict[Address, str] = {}
        self._owners: dict[Address, str] = {}
        self._spis: dict[str, str] = {}
        self._ports: dict[int, str] = {}
        self._sequences: dict[int, str] = {}
        self._reqids: dict[int, str] = {}
        self._configured(topology)
        for states in steps:
            self._homes(states)
        for states in steps:
            self._learn(states)

    def address(self, value: Address | str) -> str:
        try:
            address = ip_address(value) if isinstance(value, str) else value
        except ValueError:
            return str(value)
        if address.is_unspecified:
            return "any"
        if address not in self._addresses:
            number = sum(name.startswith("address") for name in self._addresses.values())
            self._addresses[address] = f"address{number + 1}"
        return self._addresses[address]

    def port(self, port: int) -> str:
        if port in _PROTOCOL_PORTS:
            return str(port)
        return self._ports.setdefault(port, f"nat{len(self._ports) + 1}")

    def sequence(self, number: int) -> str:
        return self._sequences.setdefault(number, f"seq{len(self._sequences) + 1}")

    def spi(self, spi: str | None) -> str:
        return "-" if spi is None else self._spis.get(spi, "SPI of no SA")

    def reqid(self, reqid: int) -> str:
        if not reqid:
            return "-"
        return self._reqids.setdefault(reqid, f"reqid{len(self._reqids) + 1}")

    def text(self, text: str) -> str:
        """Policies are recorded in words: the addresses and reqids in them become names."""
        text = re.sub(r"\breqid (\d+)", lambda m: f"reqid {self.reqid(int(m[1]))}", text)
        return re.sub(r"[0-9a-fA-F.:]+(?:/\d+)?(?= |$)", self._prefix, text)

    def _prefix(self, match: re.Match[str]) -> str:
        word = match[0]
        try:
            prefix = ip_interface(word)
        except ValueError:
            return word
        whole = prefix.network.prefixlen == prefix.max_prefixlen
        # A prefix length of zero stays: it tells the family of "everything".
        return self.address(prefix.ip) if whole else word

    # Where they come from

    def _configured(self, topology: Topology) -> None:
        for link in topology.links:
            for node, ends in link.ends.items():
                for end in ends:
                    address = ip_interface(end).ip
                    name = f"{node}@{link.name}/{address.version}"
                    taken = sum(n.split("#")[0] == name for n in self._addresses.values())
                    self._addresses[address] = f"{name}#{taken + 1}" if taken else name
                    self._owners[address] = node

    def _homes(self, states: States) -> None:
        """A mobile node (it has an attachment, or none of its bindings has V4ADDR) names the home
        addresses of its own bindings."""
        for node, state in states.items():
            if not state.attachment:
                continue
            for binding in state.bindings:
                for home in (binding.home_address, binding.ipv4_home_address):
                    if home is not None and home not in self._owners:
                        self._addresses.setdefault(home, f"{node}.home/{home.version}")
                        self._owners[home] = node
                care_of = binding.care_of_address
                if care_of not in self._owners:  # given by the network: DHCP, SLAAC
                    name = f"{node}@{state.attachment}/{care_of.version}"
                    self._addresses.setdefault(care_of, name)
                    self._owners[care_of] = node

    def _learn(self, states: States) -> None:
        for node in sorted(states):
            for binding in sorted(states[node].bindings, key=lambda b: b.home_address):
                self.sequence(binding.sequence)
                if binding.outer_port is not None:
                    self.port(binding.outer_port)
        for node in sorted(states):
            for ike in sorted(states[node].ike, key=lambda i: _ike_key(i, self)):
                self.port(ike.local_port)
                self.port(ike.remote_port)
        self._learn_spis(states)
        for node in sorted(states):
            for sa in sorted(states[node].sas, key=lambda s: (self.spi(s.spi), s.mode)):
                if sa.encapsulation is not None:
                    self.port(sa.encapsulation.source_port)
                    self.port(sa.encapsulation.destination_port)
                if sa.reqid and sa.purpose:
                    self._reqids.setdefault(sa.reqid, sa.purpose)

    def _learn_spis(self, states: States) -> None:
        """New SPIs of this step, by purpose and ends. Those of equal purpose and ends are told
        apart by what their SAs look like; where nothing does, they are interchangeable."""
        seen: dict[str, list[tuple[str, SecurityAssociation]]] = {}
        for node, state in states.items():
            for sa in state.sas:
                if sa.spi not in self._spis:
                    seen.setdefault(sa.spi, []).append((node, sa))
        described = []
        for spi, places in seen.items():
            purposes = {sa.purpose for _, sa in places}
            purpose = next((p for p in ("data", "signalling") if p in purposes), "")
            purpose = purpose or " ".join(sorted(purposes)).replace("origin", "signalling")
            base = f"{purpose or 'SA'} {self._ends(places)}"
            look = sorted((node, sa.mode, str(sa.encapsulation is None)) for node, sa in places)
            described.append((base, look, spi))
        for base, _, spi in sorted(described, key=lambda entry: entry[:2]):
            earlier = sum(name.split("#")[0] == base for name in self._spis.values())
            self._spis[spi] = f"{base}#{earlier + 1}" if earlier else base

    def _ends(self, places: Iterable[tuple[str, SecurityAssociation]]) -> str:
        sender = receiver = "?"
        for node, sa in places:
            if self._owners.get(sa.destination) == node:
                receiver = node
            elif self._owners.get(sa.source) == node:
                sender = node
        return f"{sender}>{receiver}"


# Lines ---------------------------------------------------------------------------------------


def _lines(state: NodeState, node: str, names: _Names) -> list[str]:
    lines = [f"attached  {state.attachment}"] if state.attachment else []
    lines += sorted(_binding(binding, names) for binding in state.bindings)
    for ike in sorted(state.ike, key=lambda i: _ike_key(i, names)):
        lines.append(_ike(ike, names))
        lines += sorted(_child(child, names) for child in ike.children)
    lines += sorted(_sa(sa, names) for sa in state.sas)
    lines += sorted(_policy(policy, names) for policy in state.policies)
    return [_printable(line) for line in lines] or ["nothing"]


def _binding(binding: Binding, names: _Names) -> str:
    homes = [binding.home_address, binding.ipv4_home_address]
    text = "binding   " + ", ".join(names.address(home) for home in homes if home is not None)
    text += f": care-of {names.address(binding.care_of_address)}"
    if binding.outer_address is not None:
        text += f", seen as {names.address(binding.outer_address)}"
        if binding.outer_port is not None:
            text += f" port {names.port(binding.outer_port)}"
    text += ", NAT" if binding.nat_detected else ", no NAT"
    text += ", UDP" if binding.udp_encapsulation else ", no UDP"
    return f"{text}, {names.sequence(binding.sequence)}"


def _ike_key(ike: IkeSa, names: _Names) -> tuple[str, str, str, str]:
    """By what a charon's own number doesn't matter for."""
    ends = names.address(ike.local_host), names.address(ike.remote_host)
    return ike.name, *ends, ike.state


def _ike(ike: IkeSa, names: _Names) -> str:
    ends = [
        f"{names.address(host)} port {names.port(port)}"
        for host, port in ((ike.local_host, ike.local_port), (ike.remote_host, ike.remote_port))
    ]
    nats = [name for name, nat in (("here", ike.nat_local), ("there", ike.nat_remote)) if nat]
    return (
        f"IKE_SA    {ike.name} {ike.state}: {' - '.join(ends)}, "
        f"{'NAT ' + ' and '.join(nats) if nats else 'no NAT'}"
    )


def _child(child: ChildSa, names: _Names) -> str:
    return (
        f"CHILD_SA  {child.name} {child.state} {child.mode}: in {names.spi(child.spi_in)}, "
        f"out {names.spi(child.spi_out)}, {'UDP' if child.encapsulation else 'no UDP'}"
    )


def _sa(sa: SecurityAssociation, names: _Names) -> str:
    ports = sa.encapsulation
    udp = (
        "no UDP"
        if ports is None
        else f"UDP {names.port(ports.source_port)} > {names.port(ports.destination_port)}"
    )
    return (
        f"SA        {names.spi(sa.spi)}: {sa.mode} {names.address(sa.source)} > "
        f"{names.address(sa.destination)}, {udp}, reqid {names.reqid(sa.reqid)}"
    )


def _policy(policy: Policy, names: _Names) -> str:
    ours = policy.priority in PRIORITY_BAND
    priority = policy.priority - PRIORITY_BAND[0] if ours else policy.priority
    return (
        f"policy    {policy.direction:3} {names.text(policy.selector)}: "
        f"{names.text(policy.template)}, priority {priority}"
    )
