"""Desired IPsec state: what one end of an MN/HA pair must have, as a pure function.

The inputs are the peering (configuration), the binding, and the SAs that IKE has negotiated; the
output is the exact set of policies and of SAs that we add to those of IKE. Nothing here knows
what the kernel has at the moment: ``plan`` compares, ``kernel.reconciler`` applies.

What must never leave in clear is blocked and not merely unprotected (RFC 5555 §5: a BU MUST be
protected): whenever a policy asks for an SA that doesn't live, the policy is a block.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.extensions import extension_states
from dsmip_ipsec.ipsec.model import (
    ExtensionState,
    Policy,
    SecurityAssociation,
    Tunnel,
    TunnelRoute,
)
from dsmip_ipsec.ipsec.payload_policies import (
    home_agent_policies,
    payload_policies,
    return_routability_policies,
    staying_policies,
)
from dsmip_ipsec.ipsec.peering import Peering, Role, outbound
from dsmip_ipsec.ipsec.placement import place
from dsmip_ipsec.ipsec.plain_tunnels import plain_tunnel, tunnel_routes
from dsmip_ipsec.ipsec.priorities import PRIORITY_BAND as PRIORITY_BAND
from dsmip_ipsec.ipsec.signalling_policies import (
    prefix_discovery_policies,
    signalling_policies,
    transport_pair,
)
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH


@dataclass(frozen=True, slots=True)
class DesiredState:
    """``policies`` by their key; ``associations`` (beside those that IKE installs) by theirs;
    ``placed``: where the data SAs that IKE installed have to be, if they are ours to move;
    ``extensions``: states for Mobile IPv6's extension headers, by their key; ``abandoned``: SAs
    that IKE installed and has forgotten, to be deleted (as what a kernel has: every SA that IKE
    installed); ``tunnels`` and ``routes`` into them, for payload that isn't protected."""

    policies: tuple[Policy, ...] = ()
    associations: tuple[SecurityAssociation, ...] = ()
    placed: tuple[SecurityAssociation, ...] = ()
    extensions: tuple[ExtensionState, ...] = ()
    abandoned: tuple[SecurityAssociation, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    routes: tuple[TunnelRoute, ...] = ()

    def __add__(self, other: DesiredState) -> DesiredState:
        return DesiredState(
            self.policies + other.policies,
            self.associations + other.associations,
            self.placed + other.placed,
            self.extensions + other.extensions,
            self.abandoned + other.abandoned,
            self.tunnels + other.tunnels,
            self.routes + other.routes,
        )

    def ipsec(self) -> DesiredState:
        """What XFRM holds of it."""
        return replace(self, tunnels=(), routes=())

    def plain(self) -> DesiredState:
        """What needs no XFRM: tunnels and routes."""
        return DesiredState(tunnels=self.tunnels, routes=self.routes)


def desired(
    peering: Peering,
    *,
    active: bool,
    binding: Binding | None,
    negotiated: Iterable[SecurityAssociation],
    esp_care_of: OuterAddress | None = None,
    at_home: bool = False,
    signalling_care_of: IPv6Address | None = None,
    retired: Container[int] = (),
) -> DesiredState:
    """Return what this end must have.

    ``active``: this end takes part in mobility for that peer: without it there is nothing, with
    it BU and BA are protected, or blocked as long as IKE has no SA for them.
    ``negotiated``: the SAs of this peering that IKE has installed,
    newest first; others are ignored. ``esp_care_of``: where the mobile node's ESP was last heard
    from, at the home agent (see ``placement``); None: where charon has the signalling SAs, which
    follow the IKE_SA. ``at_home``: the mobile node is on its home link, where payload needs no
    tunnel; BU and BA stay protected. ``signalling_care_of``: the care-of address that the mobile
    node's next BU leaves from natively, with a home address option; None when it goes in UDP over
    IPv4 or from the home link. Reconcile after changing it and before sending. ``retired``: SPIs
    of SAs that charon no longer knows.
    """
    associations = list(negotiated)
    abandoned = tuple(sa for sa in associations if sa.spi in retired)
    if not active and binding is None:
        return DesiredState(abandoned=abandoned)
    reqids = peering.reqids
    associations = [sa for sa in associations if sa.spi not in retired]
    if peering.moves_associations:
        origins = [sa for sa in associations if sa.reqid == reqids.signalling]
        esp_care_of = esp_care_of or _ike_care_of(peering, origins)
    extensions = extension_states(peering, signalling_care_of)
    signalling = transport_pair(peering, associations, reqids.signalling, IPPROTO_MH)
    state = DesiredState(
        signalling_policies(peering, signalling.reqid, extensions),
        signalling.mirrors,
        extensions=extensions,
        abandoned=abandoned,
    )
    # The HA intercepts payload only while a binding exists (RFC 6275 §10.4.1); the MN must not
    # send payload in clear at any time while it is away.
    away = peering.role is Role.MOBILE_NODE and not at_home
    if binding is None and not away:
        return state
    if reqids.prefix_discovery or not peering.protect_data:
        # Where payload is protected, what is between these two addresses is blocked anyway.
        prefixes = transport_pair(peering, associations, reqids.prefix_discovery, IPPROTO_ICMPV6)
        policies = prefix_discovery_policies(peering, prefixes.reqid, extensions)
        state += DesiredState(tuple(policies), prefixes.mirrors)
    if peering.protect_data:
        staying = DesiredState(tuple(staying_policies(peering, binding)))
        return state + _protected(peering, binding, associations, esp_care_of) + staying
    return state + _unprotected(peering, binding, associations, esp_care_of)


def _ike_care_of(
    peering: Peering, signalling: Iterable[SecurityAssociation]
) -> OuterAddress | None:
    """Where IKE has the mobile node, seen from the home agent: behind a NAT, charon's own
    signalling SAs are tunnels to there, and ESP in UDP shares the IKE_SA's ports (RFC 3948)."""
    if peering.role is Role.MOBILE_NODE:
        return None
    for sa in signalling:
        encapsulation = sa.encapsulation
        if encapsulation is not None and not outbound(peering, sa):
            return OuterAddress(sa.source, encapsulation.source_port)
    return None


def _protected(
    peering: Peering,
    binding: Binding | None,
    associations: list[SecurityAssociation],
    esp_care_of: OuterAddress | None,
) -> DesiredState:
    placed, sending = _tunnel_pair(peering, binding, associations, peering.reqids.data, esp_care_of)
    policies = (*home_agent_policies(peering), *payload_policies(peering, binding, sending))
    return DesiredState(tuple(policies), placed=placed)


def _unprotected(
    peering: Peering,
    binding: Binding | None,
    associations: list[SecurityAssociation],
    esp_care_of: OuterAddress | None,
) -> DesiredState:
    state = DesiredState()
    if peering.reqids.return_routability:
        placed, sending = _tunnel_pair(
            peering, binding, associations, peering.reqids.return_routability, esp_care_of
        )
        policies = return_routability_policies(peering, sending)
        state += DesiredState(tuple(policies), placed=placed)
    if binding is not None:
        tunnel = plain_tunnel(peering, binding)
        routes = tunnel_routes(peering, binding, tunnel)
        state += DesiredState(tunnels=(tunnel,), routes=routes)
    return state


def _tunnel_pair(
    peering: Peering,
    binding: Binding | None,
    associations: list[SecurityAssociation],
    reqid: int,
    esp_care_of: OuterAddress | None,
) -> tuple[tuple[SecurityAssociation, ...], SecurityAssociation | None]:
    """Tunnel SAs as they have to be placed, if they are ours to move; and the one to send by."""
    found = [sa for sa in associations if sa.reqid == reqid]
    placed: tuple[SecurityAssociation, ...] = ()
    if peering.moves_associations and binding is not None:
        placed = tuple(place(peering, binding, sa, esp_care_of) for sa in found)
        found = list(placed)
    sending = next((sa for sa in found if outbound(peering, sa)), None)
    return placed, sending if binding is not None else None
