"""Plans: the ordered operations that bring a kernel from what it has to what it should have.

Make before break: SAs appear before the policies that want them, and go after the policies that
wanted them. A policy whose template or action changes is updated in place: there is no moment
without it, hence none in which its traffic could leave in clear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import Action, ExtensionState, Mode, Policy, SecurityAssociation
from dsmip_ipsec.wire.ip import IPPROTO_MH

_EXTENSIONS = "RFC 6275 §6.3, §6.4"


class Verb(Enum):
    ADD_ASSOCIATION = "add sa"
    MOVE_ASSOCIATION = "move sa"
    DELETE_ASSOCIATION = "delete sa"
    ADD_EXTENSION = "add extension"
    UPDATE_EXTENSION = "update extension"
    DELETE_EXTENSION = "delete extension"
    ADD_POLICY = "add policy"
    UPDATE_POLICY = "update policy"
    DELETE_POLICY = "delete policy"


Subject: TypeAlias = Policy | SecurityAssociation | ExtensionState


@dataclass(frozen=True, slots=True)
class Operation:
    """One change: ``subject`` as it is to be (or, deleted, as it was), what it was ``before``
    (updated or moved), and why."""

    verb: Verb
    subject: Subject
    reason: str
    reference: str
    before: Subject | None = None

    def __str__(self) -> str:
        return f"{self.verb.value}: {self.subject} ({self.reason}; {self.reference})"


def plan(current: DesiredState, wanted: DesiredState) -> tuple[Operation, ...]:
    """Return the operations from ``current`` (what is ours in the kernel) to ``wanted``.

    Empty when they agree. Associations are compared by destination and SPI: their keys and
    addresses never change under one SPI, unless they are ours to move (``placed``); those are
    known by SPI and reqid, and one that the kernel hasn't got is left to IKE.
    """
    have_sas = {sa.key: sa for sa in current.associations}
    want_sas = {sa.key: sa for sa in wanted.associations}
    have = {policy.key: policy for policy in current.policies}
    want = {policy.key: policy for policy in wanted.policies}

    operations: list[Operation] = []
    operations += _associations(
        Verb.ADD_ASSOCIATION,
        (sa for key, sa in want_sas.items() if key not in have_sas),
        "IKE has negotiated it",
    )
    operations += _moves(current.placed, wanted.placed)
    operations += _new_extensions(current, wanted)
    for key, policy in want.items():
        old = have.get(key)
        if old is None:
            operations.append(Operation(Verb.ADD_POLICY, policy, *_why(policy)))
        elif old != policy:
            operations.append(Operation(Verb.UPDATE_POLICY, policy, *_why(policy), old))
    operations += [
        Operation(Verb.DELETE_POLICY, policy, "no longer wanted", _reference(policy))
        for key, policy in have.items()
        if key not in want
    ]
    operations += _old_extensions(current, wanted)
    operations += _associations(
        Verb.DELETE_ASSOCIATION,
        (sa for key, sa in have_sas.items() if key not in want_sas),
        "IKE has deleted its origin",
    )
    live = {(sa.spi, sa.reqid): sa for sa in current.abandoned}
    operations += _associations(
        Verb.DELETE_ASSOCIATION,
        (live[sa.spi, sa.reqid] for sa in wanted.abandoned if (sa.spi, sa.reqid) in live),
        "IKE no longer knows it",
    )
    return tuple(operations)


def _new_extensions(current: DesiredState, wanted: DesiredState) -> list[Operation]:
    have = {state.key: state for state in current.extensions}
    operations = []
    for state in wanted.extensions:
        old = have.get(state.key)
        if old is None:
            reason = "BU and BA travel natively over IPv6"
            operations.append(Operation(Verb.ADD_EXTENSION, state, reason, _EXTENSIONS))
        elif old != state:
            reason = "the next BU leaves from another care-of address"
            operations.append(Operation(Verb.UPDATE_EXTENSION, state, reason, _EXTENSIONS, old))
    return operations


def _old_extensions(current: DesiredState, wanted: DesiredState) -> list[Operation]:
    want = {state.key for state in wanted.extensions}
    return [
        Operation(Verb.DELETE_EXTENSION, state, "no BU leaves natively any more", _EXTENSIONS)
        for state in current.extensions
        if state.key not in want
    ]


def _moves(
    current: Iterable[SecurityAssociation], wanted: Iterable[SecurityAssociation]
) -> list[Operation]:
    """Outbound and inbound together with the policies that follow: keys and replay state stay."""
    have = {(sa.spi, sa.reqid): sa for sa in current}
    operations = []
    for sa in wanted:
        old = have.get((sa.spi, sa.reqid))
        if old is None or old == sa:
            continue
        changes = []
        if (old.source, old.destination) != (sa.source, sa.destination):
            changes.append("the mobile node is elsewhere")
        if old.encapsulation != sa.encapsulation:
            if sa.encapsulation is None:
                changes.append("no NAT any more")
            elif old.encapsulation is None:
                changes.append("there is a NAT")
            else:
                changes.append("the NAT has another port")
        reason = " and ".join(changes)
        operations.append(Operation(Verb.MOVE_ASSOCIATION, sa, reason, "RFC 5555 §5.1", old))
    return operations


def _associations(
    verb: Verb, associations: Iterable[SecurityAssociation], reason: str
) -> list[Operation]:
    return [Operation(verb, sa, reason, "RFC 5555 §5.2.1") for sa in associations]


def _reference(policy: Policy) -> str:
    """Signalling is told from payload by what the selector names."""
    signalling = policy.selector.protocol == IPPROTO_MH
    return "RFC 5555 §5.2.1" if signalling else "RFC 5555 §5.2.2"


def _why(policy: Policy) -> tuple[str, str]:
    if policy.action is Action.BLOCK:
        reason = "must not travel in clear"
    elif policy.template is not None and policy.template.mode is Mode.TUNNEL:
        reason = "payload goes by the tunnel SA"
    else:
        reason = "signalling goes by the transport SA"
    return reason, _reference(policy)
