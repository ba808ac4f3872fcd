"""Static routes of a lab, derived from its links: shortest paths in both families.

Pure: a :class:`Lab` in, routes out. Three rules make the routes those of a real internetwork:

- only routers, home agents and NATs forward;
- what is on a mobile network is behind the home agent, and goes there first;
- a NAT is passed from inside to outside only, so that nothing outside has a route to a private
  prefix, while everything inside has one to what is outside;
- a mobile node gets none: where it is, and what it routes there, is what the lab is about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Literal

from .spec_models import HomeAgent, Lab, MobileNode, Nat, Router
from .spec_types import Interface

Network = IPv4Network | IPv6Network
Family = Literal[4, 6]


@dataclass(frozen=True, slots=True)
class Route:
    """A static route: ``destination`` via ``gateway`` on the interface of ``link``."""

    destination: Network
    gateway: IPv4Address | IPv6Address
    link: str


@dataclass(frozen=True, slots=True)
class LinkAttachment:
    """What a mobile node is given on a link: its addresses there and the routers to use.

    ``interface`` is the node's interface on the link ``link``. At most one gateway per family.
    """

    link: str
    interface: str
    addresses: tuple[Interface, ...]
    gateways: tuple[IPv4Address | IPv6Address, ...]

    def address(self, family: Family) -> Interface | None:
        """The first address of ``family`` (4 or 6)."""
        return next((a for a in self.addresses if a.version == family), None)

    def gateway(self, family: Family) -> IPv4Address | IPv6Address | None:
        """The router of ``family`` (4 or 6)."""
        return next((g for g in self.gateways if g.version == family), None)


def forwards(lab: Lab, node: str) -> bool:
    """Whether ``node`` forwards packets."""
    return isinstance(lab.nodes[node], Router | HomeAgent | Nat)


def is_home(lab: Lab, node: str, link: str) -> bool:
    """Whether ``link`` is the home link of the mobile node ``node``."""
    return link in {agent.home_link for agent in lab.home_agents().values()} and isinstance(
        lab.nodes[node], MobileNode
    )


def address_on(lab: Lab, node: str, link: str, family: Family) -> Interface | None:
    """The first address of ``family`` that ``node`` has on ``link``."""
    ends = lab.links[link].ends.get(node, ())
    return next((address for address in ends if address.version == family), None)


def prefixes(lab: Lab, link: str, family: Family) -> list[Network]:
    """The prefixes of ``link``, one per distinct network, in the file's order."""
    found = dict.fromkeys(
        address.network
        for addresses in lab.links[link].ends.values()
        for address in addresses
        if address.version == family
    )
    return list(found)


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to a link: over ``via`` to the node ``gateway`` (None when the link is connected),
    ``delay_ms`` one way in total."""

    via: str
    gateway: str | None
    delay_ms: float


def ways(lab: Lab, origin: str, family: Family, start: str | None = None) -> dict[str, Hop]:
    """The shortest way (fewest hops; the file's order breaks ties) from ``origin`` to each link
    that it can reach in ``family``.

    ``start``: leave by this link only, where ``origin`` may get its address from a router.
    """
    reached: dict[str, Hop] = {}
    queue: deque[tuple[str, str]] = deque()  # (link, node that forwarded onto it)
    for link in lab.links:
        given = start == link and bool(prefixes(lab, link, family))
        if (address_on(lab, origin, link, family) or given) and start in (None, link):
            reached[link] = Hop(link, None, lab.links[link].delay_ms)
            queue.append((link, origin))
    while queue:
        link, sender = queue.popleft()
        hop = reached[link]
        for router in lab.links[link].ends:
            if router == sender or not address_on(lab, router, link, family):
                continue
            for onward in _forwarded(lab, router, link, family):
                if onward not in reached:
                    reached[onward] = Hop(
                        hop.via, hop.gateway or router, hop.delay_ms + lab.links[onward].delay_ms
                    )
                    queue.append((onward, router))
    return reached


def _forwarded(lab: Lab, router: str, link: str, family: Family) -> Iterator[str]:
    """Links that ``router`` forwards to what comes in from ``link``."""
    node = lab.nodes[router]
    if isinstance(node, MobileNode):
        # Its tunnel: from a mobile network to the home link, at whose home agent the way goes on.
        if family == 6 and link in node.mobile_networks:
            yield from (agent.home_link for agent in lab.home_agents().values())
        return
    if not forwards(lab, router):
        return
    if isinstance(node, HomeAgent) and family == 6:
        yield from (
            name for mobile in lab.mobile_nodes().values() for name in mobile.mobile_networks
        )
    for onward in lab.links:
        if onward == link or not address_on(lab, router, onward, family):
            continue
        # RFC 2663's traditional NAT: sessions start inside only.
        if isinstance(node, Nat) and family == 4 and onward == node.inside:
            continue
        yield onward


def routes(lab: Lab, node: str) -> list[Route]:
    """The static routes of ``node``, IPv4's first; none for a mobile node.

    At the edges (hosts, NATs, home agents) a family's routes become one default route where they
    all name the same gateway. Routers never get one: two that face each other would pass what
    neither knows to and fro.
    """
    if isinstance(lab.nodes[node], MobileNode):
        return []
    return [route for family in (4, 6) for route in _family_routes(lab, node, family)]


def _family_routes(lab: Lab, node: str, family: Family) -> list[Route]:
    own = {
        prefix
        for link in lab.links
        if address_on(lab, node, link, family)
        for prefix in prefixes(lab, link, family)
    }
    found: dict[Network, Route] = {}
    for link, hop in ways(lab, node, family).items():
        if hop.gateway is None:
            continue
        gateway = address_on(lab, hop.gateway, hop.via, family)
        assert gateway is not None  # ways() only passes nodes that have one
        for prefix in prefixes(lab, link, family):
            if prefix not in own:
                found.setdefault(prefix, Route(prefix, gateway.ip, hop.via))
    edge = not isinstance(lab.nodes[node], Router)
    if edge and len({(route.gateway, route.link) for route in found.values()}) == 1:
        route = next(iter(found.values()))
        return [
            Route(ip_network("0.0.0.0/0" if family == 4 else "::/0"), route.gateway, route.link)
        ]
    return list(found.values())


def gateway_node(lab: Lab, link: str, node: str) -> str | None:
    """The node that ``node`` uses as its router on ``link``; None when there is none, or no single
    one is named."""
    declared = lab.links[link]
    if declared.gateway:
        return declared.gateway
    candidates = [end for end in declared.ends if end != node and forwards(lab, end)]
    return candidates[0] if len(candidates) == 1 else None


def attachment(lab: Lab, node: str, link: str) -> LinkAttachment:
    """What the mobile node ``node`` is given on ``link``."""
    router = gateway_node(lab, link, node)
    gateways: list[IPv4Address | IPv6Address] = []
    if router is not None:
        found: Iterable[Interface | None] = (address_on(lab, router, link, f) for f in (4, 6))
        gateways = [address.ip for address in found if address is not None]
    return LinkAttachment(link, link, lab.links[link].ends[node], tuple(gateways))


def inside_addresses(lab: Lab, name: str) -> list[IPv4Address]:
    """The first IPv4 address of each node inside of the NAT ``name``."""
    nat = lab.nodes[name]
    if not isinstance(nat, Nat) or nat.inside not in lab.links:
        return []
    others = (end for end in lab.links[nat.inside].ends if end != name)
    found = (address_on(lab, end, nat.inside, 4) for end in others)
    return [address.ip for address in found if isinstance(address, IPv4Interface)]


def static_nat(lab: Lab, home_agent: str) -> str | None:
    """The NAT at whose outside address mobile nodes find ``home_agent``; None without one."""
    declared = lab.nodes.get(home_agent)
    outer = declared.outer_ipv4_address if isinstance(declared, HomeAgent) else None
    for name, node in lab.nodes.items():
        if outer is not None and isinstance(node, Nat) and node.forward_to == home_agent:
            outside = (
                lab.links[node.outside].ends.get(name, ()) if node.outside in lab.links else ()
            )
            if outer in [address.ip for address in outside]:
                return name
    return None


def visits(lab: Lab, node: str) -> list[str]:
    """The links that the mobile node ``node`` may be on: all but its mobile networks."""
    behind = lab.mobile_nodes()[node].mobile_networks
    return [name for name, link in lab.links.items() if node in link.ends and name not in behind]


def rtt_ms(lab: Lab, node: str, link: str, peer: str, family: Family = 4) -> float | None:
    """The round-trip time that the links' delays give between ``node``, when it is on ``link``,
    and the nearest link of ``peer``, in milliseconds; None when there is no way.

    The delay is that of the links only: what the kernel adds is not in it.
    """
    reached = ways(lab, node, family, start=link)
    delays = [reached[name].delay_ms for name in reached if peer in lab.links[name].ends]
    if family == 4 and (nat := static_nat(lab, peer)) is not None:
        # The way leads to the NAT's outside only; the rest is the NAT's doing.
        declared = lab.nodes[nat]
        assert isinstance(declared, Nat)  # static_nat finds nothing else
        if declared.outside in reached:
            inside = lab.links[declared.inside].delay_ms
            delays.append(reached[declared.outside].delay_ms + inside)
    return 2 * min(delays) if delays else None
