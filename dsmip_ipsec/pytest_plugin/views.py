"""What a test sees of a lab: its nodes, and their SADs as values that compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsmip_ipsec.lab.record import (
    Binding,
    IkeSa,
    NodeState,
    Policy,
    SecurityAssociation,
    StepRecord,
)

if TYPE_CHECKING:
    from dsmip_ipsec.lab.session import ExecResult
    from dsmip_ipsec.pytest_plugin.lab import Lab


@dataclass(frozen=True, slots=True, repr=False)
class Sad:
    """The SAD of a node at one moment: a set of SAs, without keys. Equal when all SAs are."""

    associations: tuple[SecurityAssociation, ...]

    @classmethod
    def of(cls, state: NodeState) -> Sad:
        """The SAD in ``state``, in an order of its own: a dump's order means nothing."""
        return cls(tuple(sorted(state.sas, key=lambda sa: (sa.spi, sa.mode, str(sa.source)))))

    def __repr__(self) -> str:
        # Short: pytest cuts the values in a failed assertion off after 240 characters.
        sas = (f"{sa.spi} {sa.purpose or sa.mode} {_where(sa)}" for sa in self)
        return f"<SAD: {'; '.join(sas) or 'empty'}>"

    def __iter__(self) -> Iterator[SecurityAssociation]:
        return iter(self.associations)

    def __len__(self) -> int:
        return len(self.associations)

    @property
    def spis(self) -> frozenset[str]:
        """The SPIs, as `0x` and eight digits: they stay the same as long as the keys do."""
        return frozenset(sa.spi for sa in self)

    @property
    def data(self) -> Sad:
        """The SAs for payload (RFC 5555 §5.2.2)."""
        return Sad(tuple(sa for sa in self if sa.purpose == "data"))

    @property
    def signalling(self) -> Sad:
        """The SAs for binding updates and acknowledgements (RFC 5555 §5.2.1)."""
        return Sad(tuple(sa for sa in self if sa.purpose == "signalling"))

    @property
    def udp_encapsulated(self) -> bool:
        """True if there are SAs and all of them are in UDP (RFC 3948)."""
        return bool(self.associations) and all(sa.encapsulation is not None for sa in self)


def _where(sa: SecurityAssociation) -> str:
    ports = sa.encapsulation
    udp = "no UDP" if ports is None else f"UDP {ports.source_port} > {ports.destination_port}"
    return f"{sa.source} > {sa.destination}, {udp}"


class Node:
    """A node of a lab. What it knows is asked for anew each time."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def __repr__(self) -> str:
        return f"<node {self.name}>"

    @property
    def state(self) -> NodeState:
        """Everything that the node knows now. Raises LabError for a router, NAT or host."""
        return self._lab.state_of(self.name)

    @property
    def sad(self) -> Sad:
        """Its SAD now."""
        return Sad.of(self.state)

    @property
    def spd(self) -> tuple[Policy, ...]:
        """Its policies now (those that dsmip-ipsec installs)."""
        return self.state.policies

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Its bindings now: a home agent's cache, a mobile node's update list."""
        return self.state.bindings

    @property
    def binding(self) -> Binding:
        """Its only binding now. Fails the test if there is none, or another."""
        found = self.bindings
        assert len(found) == 1, f"{self.name} has {len(found)} bindings, not one"
        return found[0]

    @property
    def ike(self) -> tuple[IkeSa, ...]:
        """Its IKE_SAs now, as charon lists them."""
        return self.state.ike

    def move(self, network: str, **expect: Any) -> StepRecord:
        """Move (or first attach) this mobile node to a network; see ``Lab.move``."""
        return self._lab.move(self.name, network, **expect)

    def run(
        self, *argv: str, input: str = "", timeout_s: float = 30.0, check: bool = True
    ) -> ExecResult:
        """Run a command as root on the node; ``check``: fail the test if its status isn't 0."""
        done = self._lab.exec(self.name, argv, input=input, timeout_s=timeout_s)
        if check:
            said = (done.err or done.out).strip()
            assert done.status == 0, f"{' '.join(argv)} on {self.name}: {done.status}: {said}"
        return done


def compared(left: Sad, right: Sad) -> list[str]:
    """What differs between two SADs, as pytest prints it below a failed comparison: a line for
    each SA, since pytest cuts off what is longer than eight."""
    lines = [f"SADs of {len(left)} and {len(right)} SAs"]
    old, new = _by_identity(left), _by_identity(right)
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        spi, mode, purpose = key
        ends = [sorted(map(_where, those or [])) or ["none"] for those in (before, after)]
        lines.append(f"{spi} {purpose or mode}: {'; '.join(ends[0])} != {'; '.join(ends[1])}")
    return lines


def _by_identity(sad: Sad) -> dict[tuple[str, str, str], list[SecurityAssociation]]:
    found: dict[tuple[str, str, str], list[SecurityAssociation]] = {}
    for sa in sad:
        found.setdefault((sa.spi, sa.mode, sa.purpose), []).append(sa)
    return found
