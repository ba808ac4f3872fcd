"""Payload of the home addresses and mobile networks in ESP tunnel mode (RFC 5555 §5.2.2), and what
must not go around it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, ip_network

from dsmip_ipsec.ipsec.model import (
    Action,
    Address,
    Direction,
    Mode,
    Network,
    Policy,
    SecurityAssociation,
    Selector,
    Template,
    host_network,
)
from dsmip_ipsec.ipsec.peering import Peering, Role
from dsmip_ipsec.ipsec.priorities import (
    PRIORITY_HOME_AGENT,
    PRIORITY_PAYLOAD,
    PRIORITY_RETURN_ROUTABILITY,
    PRIORITY_STAYING,
)
from dsmip_ipsec.mobility.types import Binding
from dsmip_ipsec.wire.ip import IPPROTO_MH

ANYWHERE: dict[int, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
# Link-local unicast and multicast: neighbours and their discovery.
_ON_LINK: tuple[Network, ...] = (ip_network("fe80::/10"), ip_network("ff02::/16"))


def home_addresses(peering: Peering) -> list[tuple[Address, Address]]:
    """(home address, home agent address) in each family."""
    pairs: list[tuple[Address, Address]] = [(peering.home_address, peering.home_agent)]
    if peering.ipv4_home_address is not None:
        pairs.append((peering.ipv4_home_address, peering.home_agent_ipv4))
    return pairs


def mobile_networks(peering: Peering, binding: Binding | None) -> list[Network]:
    """The prefixes behind a mobile router (RFC 3963), IPv4 ones too (RFC 5555 §3.1.1's P bit)."""
    networks: list[Network] = []
    if peering.role is Role.MOBILE_NODE:
        networks += peering.mobile_network_prefixes
    if binding is not None:
        networks += binding.mobile_network_prefixes + binding.ipv4_prefixes
    return list(dict.fromkeys(networks))


@lru_cache(maxsize=16384)
def _directed(
    peering: Peering, home: Network, peer: Network, *, behind: bool = False
) -> tuple[tuple[Direction, Selector, bool], ...]:
    """(direction, selector, sending) for traffic between a home address, or a network ``behind``
    a mobile router, and its peers.

    Forwarded packets pass FWD: at the home agent those from the mobile node, at a mobile router
    those for its network. (The other way they come in clear, from other interfaces.)
    """
    from_home, to_home = Selector(home, peer), Selector(peer, home)
    if peering.role is Role.MOBILE_NODE:
        rows = (Direction.OUT, from_home, True), (Direction.IN, to_home, False)
        return (*rows, (Direction.FWD, to_home, False)) if behind else rows
    return (
        (Direction.OUT, to_home, True),
        (Direction.IN, from_home, False),
        (Direction.FWD, from_home, False),
    )


@lru_cache(maxsize=4096)
def home_agent_policies(peering: Peering) -> tuple[Policy, ...]:
    """Payload between the MN and the HA itself: excluded from the payload SA, so blocked.

    RFC 5555 §5.2.2: "remote_address != home_agent", so that the rule for data doesn't overlap
    with the one for BU and BA.
    """
    return tuple(
        Policy(direction, selector, PRIORITY_HOME_AGENT, Action.BLOCK)
        for home, agent in home_addresses(peering)
        for direction, selector, _ in _directed(peering, host_network(home), host_network(agent))
        if direction is not Direction.FWD
    )


def payload_policies(
    peering: Peering, binding: Binding | None, sending: SecurityAssociation | None
) -> list[Policy]:
    """RFC 5555 §5.2.2's SPD entries: all payload of both home addresses, and of the networks
    behind a mobile router (RFC 3963 §4: they are tunnelled like the home address's), in ESP tunnel
    mode.

    ``sending`` is the SA to send by; its addresses are the ones that MOBIKE or we gave it.
    """
    policies = []
    for home, _ in home_addresses(peering):
        rows = _directed(peering, host_network(home), ANYWHERE[home.version])
        policies += _tunnel_policies(rows, peering.reqids.data, sending, PRIORITY_PAYLOAD)
    for network in mobile_networks(peering, binding):
        rows = _directed(peering, network, ANYWHERE[network.version], behind=True)
        policies += _tunnel_policies(rows, peering.reqids.data, sending, PRIORITY_PAYLOAD)
    return policies


def staying_policies(peering: Peering, binding: Binding | None) -> list[Policy]:
    """What stays in the networks behind a mobile router, its router's neighbour discovery and
    answers among it, isn't for the tunnel that all else from there and for there goes through.

    A policy can't ask by which interface a packet came in, so routing rules refuse what comes from
    a visited network in their name (kernel.routing).
    """
    if peering.role is not Role.MOBILE_NODE:
        return []
    networks = mobile_networks(peering, binding)
    rows = []
    for network in networks:
        for other in networks:
            if other.version == network.version:
                inside = Selector(other, network)
                rows += [(direction, inside) for direction in Direction]
        if network.version == 6:
            rows += [(Direction.OUT, Selector(network, near)) for near in _ON_LINK]
            rows.append((Direction.IN, Selector(_ON_LINK[0], network)))
    return [
        Policy(direction, selector, PRIORITY_STAYING, Action.BYPASS) for direction, selector in rows
    ]


def return_routability_policies(
    peering: Peering, sending: SecurityAssociation | None
) -> list[Policy]:
    """RFC 4877 §6.2's SPD entries: HoTI and HoT in ESP tunnel mode, where payload isn't.

    For every Mobility Header, not for these two types: the kernel doesn't see the type of what it
    forwards or receives (docs/kernel-notes.md). BU and BA have stronger policies.
    """
    rows = [
        (direction, Selector(selector.source, selector.destination, IPPROTO_MH), out)
        for direction, selector, out in _directed(
            peering, host_network(peering.home_address), ANYWHERE[6]
        )
    ]
    reqid = peering.reqids.return_routability
    return _tunnel_policies(rows, reqid, sending, PRIORITY_RETURN_ROUTABILITY)


def _tunnel_policies(
    rows: Sequence[tuple[Direction, Selector, bool]],
    reqid: int,
    sending: SecurityAssociation | None,
    priority: int,
) -> list[Policy]:
    """Inbound templates have wildcard addresses: they need no change at a handover."""
    policies = []
    for direction, selector, out in rows:
        template: Template | None
        if not out:
            any_address = IPv4Address(0)
            template = Template(Mode.TUNNEL, any_address, any_address, reqid)
        elif sending is not None:
            template = Template(Mode.TUNNEL, sending.source, sending.destination, reqid)
        else:
            template = None
        action = Action.PROTECT if template is not None else Action.BLOCK
        policies.append(Policy(direction, selector, priority, action, template))
    return policies
