"""Two situations of a mobile node, and the plan that leads from one to the other.

For people and tests: no kernel and no charon are needed. Where they would have installed SAs,
placeholders stand (SPIs 1 to 8, no keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import (
    Mode,
    SecurityAssociation,
    Selector,
    host_network,
)
from dsmip_ipsec.ipsec.peering import Peering, Role
from dsmip_ipsec.ipsec.placement import place
from dsmip_ipsec.ipsec.plan import Operation, plan
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH

SIGNALLING_UP, SIGNALLING_DOWN, DATA_UP, DATA_DOWN = 1, 2, 3, 4
PREFIXES_UP, PREFIXES_DOWN, ROUTABILITY_UP, ROUTABILITY_DOWN = 5, 6, 7, 8


@dataclass(frozen=True, slots=True)
class Situation:
    """``binding`` None: the mobile node is at home, or with ``away`` in a visited network without a
    binding yet. ``esp_care_of``: where the home agent last heard the node's ESP from."""

    peering: Peering
    binding: Binding | None = None
    esp_care_of: OuterAddress | None = None
    away: bool = False


def handover(before: Situation | None, after: Situation | None) -> tuple[Operation, ...]:
    """The plan of one end for the way from ``before`` to ``after``; None is no daemon at all.

    The SAs are those that IKE negotiated where the node was first bound: one that starts at home
    has none there, one that returns keeps those it had. With MOBIKE, IKE has moved them already
    when the plan for ``after`` is made (RFC 5555 §5.1).
    """
    bound = before is not None and before.binding is not None
    first = before if bound else after
    sas: list[SecurityAssociation] = []
    if first is not None and first.binding is not None:
        sas = negotiated_at(first.peering, first.binding, first.esp_care_of)
    current = DesiredState() if before is None else state_of(before, sas if bound else [])
    wanted = DesiredState() if after is None else state_of(after, settled(after, sas))
    return plan(current, wanted)


def settled(
    situation: Situation, negotiated: list[SecurityAssociation]
) -> list[SecurityAssociation]:
    """``negotiated`` when IKE has followed the mobile node to ``situation``: with MOBIKE it moves
    the tunnel SAs, otherwise they are ours to move and stay until then."""
    binding, peering = situation.binding, situation.peering
    if binding is None or peering.moves_associations:
        return negotiated
    return [
        place(peering, binding, sa, situation.esp_care_of)
        if sa.reqid in peering.reqids.tunnels
        else sa
        for sa in negotiated
    ]


def state_of(situation: Situation, negotiated: list[SecurityAssociation]) -> DesiredState:
    """Desired state with the SAs that IKE has negotiated."""
    binding = situation.binding
    care_of = None if binding is None else binding.care_of_address
    mobile_node = situation.peering.role is Role.MOBILE_NODE
    return desired(
        situation.peering,
        active=True,
        binding=binding,
        negotiated=negotiated,
        esp_care_of=situation.esp_care_of,
        at_home=binding is None and not situation.away,
        signalling_care_of=care_of
        if mobile_node and isinstance(care_of, IPv6Address) and not _in_udp(binding)
        else None,
    )


def _in_udp(binding: Binding | None) -> bool:
    """RFC 5555 §4.4.1's last resort: UDP over IPv6, without a home address option."""
    return binding is not None and binding.outer is not None


def negotiated_at(
    peering: Peering, binding: Binding, esp_care_of: OuterAddress | None
) -> list[SecurityAssociation]:
    """What IKE installs at this end for a mobile node that is where ``binding`` says.

    Behind a NAT the signalling CHILD_SA is in tunnel mode, to be mirrored (docs/decisions.md).
    """
    reqids = peering.reqids
    transport = [
        (SIGNALLING_UP, SIGNALLING_DOWN, reqids.signalling, IPPROTO_MH),
        (PREFIXES_UP, PREFIXES_DOWN, reqids.prefix_discovery, IPPROTO_ICMPV6),
    ]
    tunnel = []
    if peering.protect_data:
        tunnel.append((DATA_UP, DATA_DOWN, reqids.data))
    elif reqids.return_routability:
        tunnel.append((ROUTABILITY_UP, ROUTABILITY_DOWN, reqids.return_routability))
    found = []
    for up, down, reqid, protocol in transport:
        if reqid == 0:
            continue
        pair = [_tunnel(peering, binding, spi, reqid, esp_care_of) for spi in (up, down)]
        if not any(sa.encapsulation is not None for sa in pair):
            pair = [_native(peering, sa, protocol) for sa in pair]
        found += pair
    for up, down, reqid in tunnel:
        found += [_tunnel(peering, binding, spi, reqid, esp_care_of) for spi in (up, down)]
    return found


def _tunnel(
    peering: Peering, binding: Binding, spi: int, reqid: int, esp_care_of: OuterAddress | None
) -> SecurityAssociation:
    """SPIs towards the home agent are odd."""
    mobile, agent = peering.home_address, peering.home_agent
    source, destination = (mobile, agent) if spi % 2 else (agent, mobile)
    anywhere = SecurityAssociation(spi, source, destination, Mode.TUNNEL, reqid)
    return place(peering, binding, anywhere, esp_care_of)


def _native(peering: Peering, sa: SecurityAssociation, protocol: int) -> SecurityAssociation:
    """The same in transport mode between home address and home agent (RFC 5555 §5.2.1)."""
    mobile, agent = peering.home_address, peering.home_agent
    source, destination = (mobile, agent) if sa.spi % 2 else (agent, mobile)
    selector = Selector(host_network(source), host_network(destination), protocol)
    return SecurityAssociation(
        sa.spi, source, destination, Mode.TRANSPORT, sa.reqid, selector=selector
    )
