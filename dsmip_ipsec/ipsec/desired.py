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
from ipaddress import IPv4Address, IPv6Address, ip_network

from dsmip_ipsec.ipsec.model import (
    Action,
    Address,
    Direction,
    Extension,
    ExtensionState,
    ExtensionTemplate,
    MobilityHeaderType,
    Mode,
    Network,
    Policy,
    SecurityAssociation,
    Selector,
    Template,
)
from dsmip_ipsec.ipsec.peering import Peering, Role, outbound
from dsmip_ipsec.ipsec.placement import place
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.wire.ip import IPPROTO_MH

# Our policies live in one priority band: the band is how we know them again after a crash, and
# it lies below (is stronger than) every priority that strongSwan computes for its own.
PRIORITY_SIGNALLING = 55550
PRIORITY_HOME_AGENT = 55551
PRIORITY_PAYLOAD = 55552
PRIORITY_BAND = range(55550, 55560)

_ANYWHERE: dict[int, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class DesiredState:
    """``policies`` by their key; ``associations`` (beside those that IKE installs) by theirs;
    ``placed``: where the data SAs that IKE installed have to be, if they are ours to move;
    ``extensions``: states for Mobile IPv6's extension headers, by their key; ``abandoned``: SAs
    that IKE installed and has forgotten, to be deleted (as what a kernel has: every SA that IKE
    installed)."""

    policies: tuple[Policy, ...] = ()
    associations: tuple[SecurityAssociation, ...] = ()
    placed: tuple[SecurityAssociation, ...] = ()
    extensions: tuple[ExtensionState, ...] = ()
    abandoned: tuple[SecurityAssociation, ...] = ()

    def __add__(self, other: DesiredState) -> DesiredState:
        return DesiredState(
            self.policies + other.policies,
            self.associations + other.associations,
            self.placed + other.placed,
            self.extensions + other.extensions,
            self.abandoned + other.abandoned,
        )


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

    ``active``: this end takes part in mobility for that peer (the MN is away from home; the HA
    has a signalling SA with it). ``negotiated``: the SAs of this peering that IKE has installed,
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
    associations = [sa for sa in associations if sa.spi not in retired]
    signalling = [sa for sa in associations if sa.reqid == peering.reqids.signalling]
    mirrors = tuple(_mirror(peering, sa) for sa in signalling if sa.mode is Mode.TUNNEL)
    reqid = peering.reqids.mirror if mirrors else peering.reqids.signalling
    extensions = _extension_states(peering, signalling_care_of)
    policies = _signalling_policies(peering, reqid if signalling else None, extensions)
    placed: tuple[SecurityAssociation, ...] = ()
    # The HA intercepts payload only while a binding exists (RFC 6275 §10.4.1); the MN must not
    # send payload in clear at any time while it is away.
    if binding is not None or (peering.role is Role.MOBILE_NODE and not at_home):
        policies += _home_agent_policies(peering)
        if peering.protect_data:
            data = [sa for sa in associations if sa.reqid == peering.reqids.data]
            if peering.moves_associations and binding is not None:
                esp_care_of = esp_care_of or _ike_care_of(peering, signalling)
                placed = tuple(place(peering, binding, sa, esp_care_of) for sa in data)
                data = list(placed)
            sending = next((sa for sa in data if outbound(peering, sa)), None)
            policies += _payload_policies(peering, sending if binding is not None else None)
    return DesiredState(tuple(policies), mirrors, placed, extensions, abandoned)


def _extension_states(
    peering: Peering, signalling_care_of: IPv6Address | None
) -> tuple[ExtensionState, ...]:
    """What lets BU and BA travel natively between care-of address and home agent.

    Inbound with a wildcard care-of address: a BU from anywhere and its BA, also a refusal, must
    pass. The kernel takes such a header only under a policy that names it, ours wants ESP too.
    Outbound only the mobile node needs a state: the home agent's socket gives each BA its routing
    header itself, since a refusal goes to a care-of address that isn't bound.
    """
    if not peering.native_signalling:
        return ()
    home, agent, reqid = peering.home_address, peering.home_agent, peering.reqids.mirror
    option, routing = Extension.HOME_ADDRESS_OPTION, Extension.TYPE2_ROUTING
    any_address = IPv6Address(0)
    if peering.role is Role.HOME_AGENT:
        return (ExtensionState(option, home, agent, any_address, reqid),)
    states: tuple[ExtensionState, ...] = (ExtensionState(routing, agent, home, any_address, reqid),)
    if signalling_care_of is not None:
        states += (ExtensionState(option, home, agent, signalling_care_of, reqid),)
    return states


def _extension_template(
    states: tuple[ExtensionState, ...], source: IPv6Address, destination: IPv6Address, *, sent: bool
) -> ExtensionTemplate | None:
    """What a policy from ``source`` to ``destination`` says of the extension header."""
    for state in states:
        if (state.source, state.destination) == (source, destination):
            return ExtensionTemplate(state.extension, state.reqid, required=sent)
    return None


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


def _mirror(peering: Peering, negotiated: SecurityAssociation) -> SecurityAssociation:
    """The transport SA of RFC 5555 §5.2.1 with the SPI, keys and algorithms of a tunnel SA.

    Behind a NAT charon can't negotiate transport mode between the home address and the home
    agent; the tunnel SA that it can negotiate is never used, its mirror is.
    """
    home, agent = peering.home_address, peering.home_agent
    to_agent = outbound(peering, negotiated) == (peering.role is Role.MOBILE_NODE)
    source, destination = (home, agent) if to_agent else (agent, home)
    return replace(
        negotiated,
        source=source,
        destination=destination,
        mode=Mode.TRANSPORT,
        reqid=peering.reqids.mirror,
        selector=Selector(ip_network(source), ip_network(destination), IPPROTO_MH),
        encapsulation=None,
    )


def _signalling_policies(
    peering: Peering, reqid: int | None, extensions: tuple[ExtensionState, ...]
) -> list[Policy]:
    """RFC 5555 §5.2.1's SPD entries: BU one way, BA the other, ESP transport mode.

    ``reqid``: of the SAs to use; None: there are none, so block. Binding Refresh Request and
    Binding Error come from the home agent under the same SA.
    """
    home, agent = peering.home_address, peering.home_agent
    mobile = peering.role is Role.MOBILE_NODE
    here, there = (home, agent) if mobile else (agent, home)
    sent = (
        (MobilityHeaderType.BINDING_UPDATE,)
        if mobile
        else (
            MobilityHeaderType.BINDING_ACKNOWLEDGEMENT,
            MobilityHeaderType.BINDING_REFRESH_REQUEST,
            MobilityHeaderType.BINDING_ERROR,
        )
    )
    rows: list[tuple[Direction, IPv6Address, IPv6Address, MobilityHeaderType | None]] = [
        (Direction.OUT, here, there, message) for message in sent
    ]
    # Inbound the kernel looks for the type behind the Mobility Header instead of in it and sees
    # zero (docs/kernel-notes.md), so there the type is left to the engine.
    rows.append((Direction.IN, there, here, None))
    return [
        Policy(
            direction,
            Selector(ip_network(source), ip_network(destination), IPPROTO_MH, message),
            PRIORITY_SIGNALLING,
            Action.PROTECT if reqid is not None else Action.BLOCK,
            Template(
                Mode.TRANSPORT, source, destination, reqid,
                _extension_template(
                    extensions, source, destination, sent=direction is Direction.OUT
                ),
            )
            if reqid is not None
            else None,
        )
        for direction, source, destination, message in rows
    ]  # fmt: skip


def _home_addresses(peering: Peering) -> list[tuple[Address, Address]]:
    """(home address, home agent address) in each family."""
    pairs: list[tuple[Address, Address]] = [(peering.home_address, peering.home_agent)]
    if peering.ipv4_home_address is not None:
        pairs.append((peering.ipv4_home_address, peering.home_agent_ipv4))
    return pairs


def _directed(
    peering: Peering, home: Network, peer: Network
) -> list[tuple[Direction, Selector, bool]]:
    """(direction, selector, sending) for traffic between a home address and its peers.

    Forwarded packets pass FWD: at the home agent those from the mobile node, at a mobile node
    those for a network behind it; the latter's selectors come with mobile network prefixes.
    """
    from_home, to_home = Selector(home, peer), Selector(peer, home)
    if peering.role is Role.MOBILE_NODE:
        return [(Direction.OUT, from_home, True), (Direction.IN, to_home, False)]
    return [
        (Direction.OUT, to_home, True),
        (Direction.IN, from_home, False),
        (Direction.FWD, from_home, False),
    ]


def _home_agent_policies(peering: Peering) -> list[Policy]:
    """Payload between the MN and the HA itself: excluded from the payload SA, so blocked.

    RFC 5555 §5.2.2: "remote_address != home_agent", so that the rule for data doesn't overlap
    with the one for BU and BA.
    """
    return [
        Policy(direction, selector, PRIORITY_HOME_AGENT, Action.BLOCK)
        for home, agent in _home_addresses(peering)
        for direction, selector, _ in _directed(peering, ip_network(home), ip_network(agent))
        if direction is not Direction.FWD
    ]


def _payload_policies(peering: Peering, sending: SecurityAssociation | None) -> list[Policy]:
    """RFC 5555 §5.2.2's SPD entries: all payload of both home addresses in ESP tunnel mode.

    ``sending`` is the SA to send by; its addresses are the ones that MOBIKE or we gave it.
    Inbound templates have wildcard addresses: they need no change at a handover.
    """
    policies = []
    for home, _ in _home_addresses(peering):
        anywhere = _ANYWHERE[home.version]
        for direction, selector, out in _directed(peering, ip_network(home), anywhere):
            template: Template | None
            if not out:
                any_address = IPv4Address(0)
                template = Template(Mode.TUNNEL, any_address, any_address, peering.reqids.data)
            elif sending is not None:
                template = Template(
                    Mode.TUNNEL, sending.source, sending.destination, peering.reqids.data
                )
            else:
                template = None
            action = Action.PROTECT if template is not None else Action.BLOCK
            policies.append(Policy(direction, selector, PRIORITY_PAYLOAD, action, template))
    return policies
