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
    operations += _new_extensions(current, wanted)
    for key, policy in want.items():
        old = have.get(key)
        if old is None:
            operations.append(Operation(Verb.ADD_POLICY, policy, *_why(policy)))
        elif old != policy:
            operations.append(Operation(Verb.UPDATE_POLICY, policy, *_why(policy), old))
    operations += _new_tunnels(current, wanted)
    operations += _old_routes(current, wanted)
    operations += [
        Operation(Verb.DELETE_POLICY, policy, "no longer wanted", _reference(policy))
        for key, policy in have.items()
        if key not in want
    ]
    operations += _old_tunnels(current, wanted)
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


def _new_tunnels(current: DesiredState, wanted: DesiredState) -> list[Operation]:
    """Tunnels, then the routes into them."""
    have = {tunnel.key: tunnel for tunnel in current.tunnels}
    operations = []
    for tunnel in wanted.tunnels:
        old = have.get(tunnel.key)
        if old is None:
            reason = "unprotected payload goes by a tunnel"
            operations.append(Operation(Verb.ADD_TUNNEL, tunnel, reason, _TUNNELS))
        elif old != tunnel:
            reason = "the mobile node is elsewhere"
            operations.append(Operation(Verb.UPDATE_TUNNEL, tunnel, reason, _TUNNELS, old))
    routes = {route.key: route for route in current.routes}
    for route in wanted.routes:
        there = routes.get(route.key)
        if there is None:
            reason = "payload goes into the tunnel"
            operations.append(Operation(Verb.ADD_ROUTE, route, reason, _TUNNELS))
        elif there != route:
            reason = "the home address is another one"
            operations.append(Operation(Verb.UPDATE_ROUTE, route, reason, _TUNNELS, there))
    return operations


def _old_routes(current: DesiredState, wanted: DesiredState) -> list[Operation]:
    want = {route.key for route in wanted.routes}
    return [
        Operation(Verb.DELETE_ROUTE, route, "no longer wanted", _TUNNELS)
        for route in current.routes
        if route.key not in want
    ]


def _old_tunnels(current: DesiredState, wanted: DesiredState) -> list[Operation]:
    want = {tunnel.key for tunnel in wanted.tunnels}
    return [
        Operation(Verb.DELETE_TUNNEL, tunnel, "no longer wanted", _TUNNELS)
        for tunnel in current.tunnels
        if tunnel.key not in want
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
    elif policy.template is not None and policy.template.mode is Mode.TUNNEL:
        signalling = policy.priority == PRIORITY_RETURN_ROUTABILITY
        reason = f"{'return routability' if signalling else 'payload'} goes by the tunnel SA"
    else:
        reason = "signalling goes by the transport SA"
    return reason, _reference(policy)
