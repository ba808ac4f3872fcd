"""A home agent's duties on the home link: defending the addresses of mobile nodes that are away,
and looking for duplicates before it begins to (RFC 6275 §10.3.1, §10.4.1; RFC 5555 §4.5)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from dsmip_ipsec.errors import KernelError, WireError
from dsmip_ipsec.kernel.home_link import HomeLinkTables
from dsmip_ipsec.kernel.link_socket import LinkSocket
from dsmip_ipsec.mobility.home_agents_list import HomeAgentAdvertisement
from dsmip_ipsec.mobility.home_link import proxy_advertisement
from dsmip_ipsec.mobility.home_link_types import (
    DetectDuplicateAddress,
    HomeLinkChanged,
    ProxyNeighbour,
)
from dsmip_ipsec.wire import neighbour
from dsmip_ipsec.wire.icmp6 import PrefixInformation
from dsmip_ipsec.wire.neighbour import (
    ALL_NODES,
    UNSPECIFIED,
    NeighborAdvertisement,
    NeighborSolicitation,
    RouterAdvertisementHeard,
    multicast_link_address,
)

log = logging.getLogger(__name__)

# RFC 4862 §5.1, RFC 4861 §10: DupAddrDetectTransmits, RetransTimer.
PROBES = 1
PROBE_INTERVAL_S = 1.0


class HomeLink:
    """``interface``: the home link, None without one: then there are only routes to see to.

    ``own``: this node's own address on it, the source of advertisements (RFC 6275 §10.4.1).
    ``detected`` hears what came of a :class:`DetectDuplicateAddress`, ``advertised`` what router
    advertisements say of home agents on the link.
    """

    def __init__(
        self,
        interface: str | None,
        tun: str,
        own: IPv6Address,
        detected: Callable[[IPv6Address, bool], None],
        advertised: Callable[[HomeAgentAdvertisement], None],
    ) -> None:
        self._interface = interface
        self._tun = tun
        self._own = own
        self._detected = detected
        self._advertised = advertised
        self._tables: HomeLinkTables | None = None
        self._link: LinkSocket | None = None
        self._tests: dict[IPv6Address, tuple[DetectDuplicateAddress, asyncio.TimerHandle]] = {}
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        """Raises KernelError."""
        self._tables = HomeLinkTables(self._interface, self._tun)
        if self._interface is not None:
            self._link = LinkSocket(self._interface)
            asyncio.get_running_loop().add_reader(self._link.filenos()[0], self._heard)

    def close(self) -> None:
        """Nothing is left behind. Idempotent, never raises."""
        for _, timer in self._tests.values():
            timer.cancel()
        self._tests.clear()
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.filenos()[0])
            self._link.close()
            self._link = None
        if self._tables is not None:
            self._tables.close()
            self._tables = None

    # Duties -------------------------------------------------------------------------------------

    def change(self, changed: HomeLinkChanged) -> None:
        """Begin and end duties. A failure is logged and counted: the binding stands all the
        same, and whoever looks for the mobile node on the home link finds out."""
        assert self._tables is not None, "open() comes first"
        for address in (n.address for n in changed.removed.neighbours):
            self._try(self._tables.remove_neighbour, address)
            self._try(self._tables.remove_route, _host(address))
        for ipv4 in changed.removed.arp:
            self._try(self._tables.remove_neighbour, ipv4)
            self._try(self._tables.remove_route, _host(ipv4))
        for route in changed.removed.routes:
            self._try(self._tables.remove_route, route)
        for route in changed.added.routes:
            self._try(self._tables.add_route, route)
        if self._link is None:
            return
        for entry in changed.added.neighbours:
            self._defend(entry)
        for ipv4 in changed.added.arp:
            self._defend_ipv4(ipv4)

    def _defend(self, entry: ProxyNeighbour) -> None:
        assert self._tables is not None, "open() comes first"
        assert self._link is not None, "there is a home link"
        link, tables = self._link, self._tables

        def defend() -> None:
            if not entry.address.is_link_local:
                tables.add_route(_host(entry.address))
            tables.add_neighbour(entry.address, router=entry.router)
            message = proxy_advertisement(entry, link.link_address)
            packet = neighbour.unsolicited_advertisement(self._own, message)
            link.send(packet, multicast_link_address(ALL_NODES))

        self._try(defend)

    def _defend_ipv4(self, address: IPv4Address) -> None:
        assert self._tables is not None, "open() comes first"
        assert self._link is not None, "there is a home link"
        link, tables = self._link, self._tables

        def defend() -> None:
            # Proxy ARP answers only for what is routed elsewhere.
            tables.add_route(_host(address))
            tables.add_neighbour(address)
            link.send_arp(neighbour.arp_request(link.link_address, address, address))

        self._try(defend)

    def _try(self, action: Callable[..., None], *arguments: object) -> None:
        try:
            action(*arguments)
        except (KernelError, WireError) as error:
            self.counters["home_link.failed"] += 1
            log.warning("home link: %s", error)

    # Duplicate address detection ---------------------------------------------------------------

    def detect(self, wanted: DetectDuplicateAddress) -> None:
        """RFC 4862 §5.4 for the mobile node's addresses. Without a home link nobody can have
        them."""
        if self._link is None:
            asyncio.get_running_loop().call_soon(self._detected, wanted.home_address, False)
            return
        timer = asyncio.get_running_loop().call_later(
            PROBES * PROBE_INTERVAL_S, self._unique, wanted.home_address
        )
        self._tests[wanted.home_address] = (wanted, timer)
        for address in wanted.addresses:
            probe = neighbour.duplicate_address_probe(address)
            group = multicast_link_address(neighbour.solicited_node(address))
            self._try(self._link.send, probe, group)

    def _unique(self, home_address: IPv6Address) -> None:
        if self._tests.pop(home_address, None) is not None:
            self._detected(home_address, False)

    def _heard(self) -> None:
        assert self._link is not None, "the reader is removed before"
        while (received := self._link.receive()) is not None:
            try:
                heard = neighbour.read(received[0])
            except WireError:
                continue
            if isinstance(heard, NeighborAdvertisement):
                self._claimed(heard.target)
            elif isinstance(heard, NeighborSolicitation) and heard.source == UNSPECIFIED:
                # Somebody else is about to take the same address (RFC 4862 §5.4.3).
                self._claimed(heard.target)
            elif isinstance(heard, RouterAdvertisementHeard):
                self._advertised(_advertisement(heard))

    def _claimed(self, address: IPv6Address) -> None:
        for home_address, (wanted, timer) in list(self._tests.items()):
            if address in wanted.addresses:
                timer.cancel()
                del self._tests[home_address]
                self.counters["home_link.duplicates"] += 1
                self._detected(home_address, True)


def _advertisement(heard: RouterAdvertisementHeard) -> HomeAgentAdvertisement:
    return HomeAgentAdvertisement(
        heard.source,
        heard.home_agent,
        heard.lifetime,
        tuple(
            PrefixInformation(
                each.prefix.prefixlen,
                each.router,
                each.valid_lifetime,
                each.valid_lifetime,  # the preferred one doesn't matter for the list
                each.on_link,
                each.autonomous,
                router_address=True,
            )
            for each in heard.prefixes
            if each.router is not None
        ),
        heard.preference,
        heard.home_agent_lifetime,
        heard.mobile_routers,
    )


def _host(address: IPv4Address | IPv6Address) -> IPv4Network | IPv6Network:
    if isinstance(address, IPv4Address):
        return IPv4Network(address)
    return IPv6Network(address)
