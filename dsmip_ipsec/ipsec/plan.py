"""Plans: the ordered operations that bring a kernel from what it has to what it should have.

Make before break: SAs appear before the policies that want them, and go after the policies that
wanted them. A policy whose template or action changes is updated in place: there is no moment
without it, hence none in which its traffic could leave in clear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, TypeVar

from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import (
    Action,
    ExtensionState,
    Mode,
    Policy,
    SecurityAssociation,
    Tunnel,
    TunnelRoute,
)
from dsmip_ipsec.ipsec.priorities import PRIORITY_RETURN_ROUTABILITY
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH

_EXTENSIONS = "RFC 6275 §6.3, §6.4"
_TUNNELS = "RFC 5555 §4.4.3, §4.5.1"


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
    ADD_TUNNEL = "add tunnel"
    UPDATE_TUNNEL = "update tunnel"
    DELETE_TUNNEL = "delete tunnel"
    ADD_ROUTE = "add route"
    UPDATE_ROUTE = "update route"
    DELETE_ROUTE = "delete route"


Subject: TypeAlias = Policy | SecurityAssociation | ExtensionState | Tunnel | TunnelRoute


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
    operations += _put(
        current.extensions, wanted.extensions, _EXTENSIONS,
        (Verb.ADD_EXTENSION, "BU and BA travel natively over IPv6"),
        (Verb.UPDATE_EXTENSION, "the next BU leaves from another care-of address"),
    )  # fmt: skip
    for key, policy in want.items():
        old = have.get(key)
        if old is None:
            operations.append(Operation(Verb.ADD_POLICY, policy, *_why(policy)))
        elif old is not policy and old != policy:
            operations.append(Operation(Verb.UPDATE_POLICY, policy, *_why(policy), old))
    # Tunnels, then the routes into them.
    operations += _put(
        current.tunnels, wanted.tunnels, _TUNNELS,
        (Verb.ADD_TUNNEL, "unprotected payload goes by a tunnel"),
        (Verb.UPDATE_TUNNEL, "the mobile node is elsewhere"),
    )  # fmt: skip
    operations += _put(
        current.routes, wanted.routes, _TUNNELS,
        (Verb.ADD_ROUTE, "payload goes into the tunnel"),
        (Verb.UPDATE_ROUTE, "the home address is another one"),
    )  # fmt: skip
    operations += _remove(
        Verb.DELETE_ROUTE, current.routes, wanted.routes, "no longer wanted", _TUNNELS
    )
    operations += [
        Operation(Verb.DELETE_POLICY, policy, "no longer wanted", _reference(policy))
        for key, policy in have.items()
        if key not in want
    ]
    operations += _remove(
        Verb.DELETE_TUNNEL, current.tunnels, wanted.tunnels, "no longer wanted", _TUNNELS
    )
    operations += _remove(
        Verb.DELETE_EXTENSION, current.extensions, wanted.extensions,
        "no BU leaves natively any more", _EXTENSIONS,
    )  # fmt: skip
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


Keyed = TypeVar("Keyed", ExtensionState, Tunnel, TunnelRoute)


def _put(
    current: Iterable[Keyed],
    wanted: Iterable[Keyed],
    reference: str,
    add: tuple[Verb, str],
    update: tuple[Verb, str],
) -> list[Operation]:
    """What is missing, and what is another; ``add`` and ``update`` are verbs and reasons."""
    have = {one.key: one for one in current}
    operations = []
    for one in wanted:
        old = have.get(one.key)
        if old is None:
            operations.append(Operation(add[0], one, add[1], reference))
        elif old != one:
            operations.append(Operation(update[0], one, update[1], reference, old))
    return operations


def _remove(
    verb: Verb, current: Iterable[Keyed], wanted: Iterable[Keyed], reason: str, reference: str
) -> list[Operation]:
    want = {one.key for one in wanted}
    return [Operation(verb, one, reason, reference) for one in current if one.key not in want]


def _moves(
    current: Iterable[SecurityAssociation], wanted: Iterable[SecurityAssociation]
) -> list[Operation]:
    """Outbound and inbound together with the policies that follow: keys and replay state stay.
    When IKE has moved one at the same time, it may be at two places: one of them goes."""
    have: dict[tuple[int, int], list[SecurityAssociation]] = {}
    for sa in current:
        have.setdefault((sa.spi, sa.reqid), []).append(sa)
    operations = []
    doubles: list[SecurityAssociation] = []
    for sa in {(sa.spi, sa.reqid): sa for sa in wanted}.values():
        found = have.get((sa.spi, sa.reqid))
        if found is None:
            continue
        old = sa if sa in found else found[-1]
        doubles += [other for other in found if other != old]
        if old == sa:
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
    return operations + _associations(Verb.DELETE_ASSOCIATION, doubles, "it is elsewhere as well")


def _associations(
    verb: Verb, associations: Iterable[SecurityAssociation], reason: str
) -> list[Operation]:
    return [Operation(verb, sa, reason, "RFC 5555 §5.2.1") for sa in associations]


def _reference(policy: Policy) -> str:
    """Signalling is told from payload by what the selector and the priority say."""
    if policy.selector.protocol == IPPROTO_ICMPV6:
        return "RFC 4877 §6.3"
    if policy.priority == PRIORITY_RETURN_ROUTABILITY:
        return "RFC 4877 §6.2"
    if policy.selector.protocol == IPPROTO_MH:
        return "RFC 5555 §5.2.1"
    return "RFC 5555 §5.2.2"


def _why(policy: Policy) -> tuple[str, str]:
    if policy.action is Action.BLOCK:
        reason = "must not travel in clear"
    elif policy.action is Action.BYPASS:
        return "stays in the networks behind the mobile router", "RFC 4301 §4.4.1"
    elif policy.template is not None and policy.template.mode is Mode.TUNNEL:
        signalling = policy.priority == PRIORITY_RETURN_ROUTABILITY
        reason = f"{'return routability' if signalling else 'payload'} goes by the tunnel SA"
    else:
        reason = "signalling goes by the transport SA"
    return reason, _reference(policy)
