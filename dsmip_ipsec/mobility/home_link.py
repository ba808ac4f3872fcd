"""The home link while mobile nodes are away: which addresses to defend, and with which
advertisements (RFC 6275 §10.3.1, §10.4.1; RFC 3963 §6.2, §6.3; RFC 5555 §4.5).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.mobility.home_link_types import NO_DUTIES, HomeLinkDuties, ProxyNeighbour, Route
from dsmip_ipsec.mobility.types import Binding
from dsmip_ipsec.wire.icmp6 import UnknownIcmp
from dsmip_ipsec.wire.options import octets6

NEIGHBOR_ADVERTISEMENT: Final = 136
ALL_NODES: Final = IPv6Address("ff02::1")

_ROUTER = 0x80
_SOLICITED = 0x40
_OVERRIDE = 0x20
_TARGET_LINK_LAYER_ADDRESS = 2


def link_local_of(home_address: IPv6Address, prefix_length: int = 64) -> IPv6Address:
    """The link-local address that goes with a home address when L is set: "by replacing the
    subnet prefix in the mobile node's home address with the link-local prefix" (RFC 6275
    §10.3.1)."""
    interface = int(home_address) & ((1 << (128 - prefix_length)) - 1)
    return IPv6Address(0xFE80 << 112 | interface)


def addresses_to_defend(
    home_address: IPv6Address, link_local: bool, prefix_length: int = 64
) -> tuple[IPv6Address, ...]:
    """The home address and, with the L bit, its link-local address (RFC 6275 §10.3.1)."""
    if not link_local:
        return (home_address,)
    return (home_address, link_local_of(home_address, prefix_length))


def duties_of(binding: Binding | None, prefix_length: int = 64) -> HomeLinkDuties:
    """What ``binding`` makes the home agent do on the home link: nothing without a binding."""
    if binding is None:
        return NO_DUTIES
    addresses = addresses_to_defend(binding.home_address, binding.link_local, prefix_length)
    routes: list[Route] = [*binding.mobile_network_prefixes, *binding.ipv4_prefixes]
    arp: tuple[IPv4Address, ...] = ()
    ipv4 = binding.ipv4_home_address
    if ipv4 is not None:
        if ipv4.network.prefixlen == 32:
            arp = (IPv4Address(ipv4.ip),)
        elif ipv4.network not in routes:  # the whole prefix is the mobile node's
            routes.append(ipv4.network)
    neighbours = tuple(ProxyNeighbour(address, binding.mobile_router) for address in addresses)
    return HomeLinkDuties(neighbours, arp, tuple(routes))


def proxy_advertisement(
    neighbour: ProxyNeighbour, link_layer_address: bytes, *, solicited: bool = False
) -> UnknownIcmp:
    """The Neighbor Advertisement that a home agent sends for a mobile node: to all nodes when
    it begins to serve, ``solicited`` in answer to a solicitation (RFC 6275 §10.4.1, RFC 4861
    §4.4). ``link_layer_address`` is the home agent's own, 6 octets for Ethernet.

    The Override bit makes the home link forget the mobile node's own link-layer address.
    """
    flags = (_ROUTER if neighbour.router else 0) | (_SOLICITED if solicited else 0) | _OVERRIDE
    option = bytes((_TARGET_LINK_LAYER_ADDRESS, (2 + len(link_layer_address) + 7) // 8))
    option += link_layer_address
    option += bytes(-len(option) % 8)
    return UnknownIcmp(
        NEIGHBOR_ADVERTISEMENT, 0, bytes((flags, 0, 0, 0)) + octets6(neighbour.address) + option
    )
