"""Two situations of a mobile node, and the plan that leads from one to the other.

For people and tests: no kernel and no charon are needed. Where they would have installed SAs,
placeholders stand (SPIs 1 to 4, no keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import (
    Address,
    Mode,
    SecurityAssociation,
    Selector,
)
from dsmip_ipsec.ipsec.peering import Peering, Role
from dsmip_ipsec.ipsec.placement import place
from dsmip_ipsec.ipsec.plan import Operation, plan
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.wire.ip import IPPROTO_MH

SIGNALLING_UP, SIGNALLING_DOWN, DATA_UP, DATA_DOWN = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Situation:
    """``binding`` None: the mobile node is at home, or nowhere. ``esp_care_of``: where the home
    agent last heard the node's ESP from."""

    peering: Peering
    binding: Binding | None = None
    esp_care_of: OuterAddress | None = None


def handover(before: Situation, after: Situation) -> tuple[Operation, ...]:
    """The plan of one end for the way from ``before`` to ``after``.

    The SAs are those that IKE negotiated where the node was first bound; with MOBIKE, IKE has
    moved them already when the plan for ``after`` is made (RFC 5555 §5.1).
    """
    first = before.binding or after.binding
    sas = _negotiated(before.peering, first, before.esp_care_of) if first is not None else []
    current = _state(before, sas)
    wanted = _state(after, sas)
    if after.binding is not None and not after.peering.moves_associations:
        wanted = _state(after, _moved_by_ike(after, sas))
    return plan(current, wanted)


def _state(situation: Situation, sas: list[SecurityAssociation]) -> DesiredState:
    """Desired state, and where there is no binding the SAs as IKE placed them."""
    binding = situation.binding
    return desired(
        situation.peering,
        active=binding is not None,
        binding=binding,
        negotiated=sas if binding is not None else [],
        esp_care_of=situation.esp_care_of,
    )


def _moved_by_ike(
    situation: Situation, sas: list[SecurityAssociation]
) -> list[SecurityAssociation]:
    binding, peering = situation.binding, situation.peering
    assert binding is not None, "the caller has checked"
    return [
        place(peering, binding, sa, situation.esp_care_of)
        if sa.reqid == peering.reqids.data
        else sa
        for sa in sas
    ]


def _negotiated(
    peering: Peering, binding: Binding, esp_care_of: OuterAddress | None
) -> list[SecurityAssociation]:
    """What IKE installs at this end for a mobile node that is where ``binding`` says.

    Behind a NAT the signalling CHILD_SA is in tunnel mode, to be mirrored (docs/decisions.md).
    """
    mobile: Address = binding.care_of_address
    if peering.role is Role.HOME_AGENT and binding.outer is not None:
        mobile = binding.outer.address
    agent: Address = peering.home_agent if mobile.version == 6 else peering.home_agent_ipv4
    tunnels = [
        SecurityAssociation(spi, source, destination, Mode.TUNNEL, reqid)
        for spi, source, destination, reqid in (
            (SIGNALLING_UP, mobile, agent, peering.reqids.signalling),
            (SIGNALLING_DOWN, agent, mobile, peering.reqids.signalling),
            (DATA_UP, mobile, agent, peering.reqids.data),
            (DATA_DOWN, agent, mobile, peering.reqids.data),
        )
    ]
    placed = [place(peering, binding, sa, esp_care_of) for sa in tunnels]
    if any(sa.encapsulation is not None for sa in placed):
        return placed
    home, address = peering.home_address, peering.home_agent
    native = [
        SecurityAssociation(
            spi, source, destination, Mode.TRANSPORT, peering.reqids.signalling,
            selector=Selector(ip_network(source), ip_network(destination), IPPROTO_MH),
        )
        for spi, source, destination in (
            (SIGNALLING_UP, home, address),
            (SIGNALLING_DOWN, address, home),
        )
    ]  # fmt: skip
    return [*native, *(sa for sa in placed if sa.reqid == peering.reqids.data)]
