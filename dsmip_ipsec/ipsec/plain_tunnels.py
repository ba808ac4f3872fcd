"""Tunnels for payload that isn't protected, and the routes into them (RFC 5555 §4.4.3, §4.5.1)."""

from __future__ import annotations

from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.model import Encapsulation, Tunnel, TunnelRoute, host_network
from dsmip_ipsec.ipsec.payload_policies import ANYWHERE, home_addresses, mobile_networks
from dsmip_ipsec.ipsec.peering import Peering, Role
from dsmip_ipsec.mobility.tunnelling import Role as TunnelRole
from dsmip_ipsec.mobility.tunnelling import tunnel_format
from dsmip_ipsec.mobility.types import Binding

# Routes into tunnels are known by it. It is just stronger than that of the route into the TUN
# (kernel.routing), which stays behind them: what no tunnel takes ends there, not on a link. The
# daemons' default routes stand beside that one, in the table that payload looks at first.
TUNNEL_METRIC = 55549
_ALIAS = "dsmip-ipsec tunnel of "


def tunnel_alias(tunnel: Tunnel) -> str:
    """What the interface says of itself: whose it is."""
    return f"{_ALIAS}{tunnel.home_address}"


def tunnel_of_alias(alias: str) -> IPv6Address | None:
    """The home address in an interface's alias, None in one that isn't ours."""
    try:
        return IPv6Address(alias.removeprefix(_ALIAS)) if alias.startswith(_ALIAS) else None
    except ValueError:
        return None


def plain_tunnel(peering: Peering, binding: Binding) -> Tunnel:
    """The tunnel of a binding; its ends and ports are ``tunnelling``'s."""
    role = TunnelRole.MOBILE_NODE
    if peering.role is Role.HOME_AGENT:
        role = TunnelRole.HOME_AGENT
    made = tunnel_format(binding, role, 6, esp=False)
    encapsulation = None
    if made.source_port is not None and made.destination_port is not None:
        encapsulation = Encapsulation(made.source_port, made.destination_port)
    return Tunnel(peering.home_address, made.source, made.destination, encapsulation)


def tunnel_routes(peering: Peering, binding: Binding, tunnel: Tunnel) -> tuple[TunnelRoute, ...]:
    """The mobile node sends everything through the tunnel, from its home addresses; the home
    agent what is for them and for the networks behind a mobile router."""
    homes = [home for home, _ in home_addresses(peering)]
    if peering.role is Role.MOBILE_NODE:
        return tuple(TunnelRoute(ANYWHERE[home.version], tunnel.key, home) for home in homes)
    networks = [host_network(home) for home in homes] + mobile_networks(peering, binding)
    return tuple(TunnelRoute(network, tunnel.key) for network in networks)
