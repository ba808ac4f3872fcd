"""Movement detection of a mobile node's interfaces: what kernel and links tell goes into the
engines of :mod:`dsmip_ipsec.mobility.movement`, and what they decide becomes one place to be at.

Addresses come from the system's own SLAAC and DHCP client; here is only looked at what they do.
Where there is more than one interface, the first in the configuration that has a network is used,
and one on the home link before all others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network

from dsmip_ipsec.errors import DsmipError, KernelError, WireError
from dsmip_ipsec.kernel.link_events import (
    DefaultRoute,
    IPv4AddressState,
    IPv6AddressState,
    LinkEvent,
    LinkEvents,
    LinkState,
)
from dsmip_ipsec.kernel.link_socket import LinkSocket
from dsmip_ipsec.kernel.routing import Attachment
from dsmip_ipsec.mobility.movement import IPV6_PATIENCE, MovementDetector
from dsmip_ipsec.mobility.movement_types import (
    AddressGone,
    AddressUsable,
    ArpReply,
    AtHome,
    Lease,
    LeaseLost,
    LinkDown,
    LinkUp,
    MovementInput,
    MovementOutput,
    NoCareOf,
    ProbeGateway,
    ProbeRouter,
    RequestLease,
    RouterAdvertisement,
    RouterReachability,
    SolicitRouters,
    UseCareOf,
)
from dsmip_ipsec.node.place import Home, Place
from dsmip_ipsec.node.timer import DeadlineTimer
from dsmip_ipsec.wire import neighbour
from dsmip_ipsec.wire.neighbour import (
    ALL_ROUTERS,
    UNSPECIFIED,
    NeighborAdvertisement,
    RouterAdvertisementHeard,
    multicast_link_address,
)

log = logging.getLogger(__name__)

Where = Place | Home | None


class InterfaceMovement:
    """One interface. ``changed`` is called when :attr:`where` did."""

    def __init__(
        self,
        interface: str,
        *,
        home_prefix: IPv6Network | None,
        own: Sequence[IPv4Address | IPv6Address],
        ipv6_patience: float,
        changed: Callable[[], None],
    ) -> None:
        """``own``: the home addresses, which are never care-of addresses."""
        self.where: Where = None
        self._link = LinkSocket(interface)
        self._own = own
        self._changed = changed
        self._detector = MovementDetector(home_prefix=home_prefix, ipv6_patience=ipv6_patience)
        self._timer = DeadlineTimer(self._detector.next_deadline, self._tick)
        self._up = False
        self._link_local = UNSPECIFIED
        self._routers: dict[IPv6Address, bytes] = {}  # link-layer addresses
        self._probed: set[IPv6Address] = set()
        self._addresses: dict[IPv4Interface, float | None] = {}
        self._gateways: list[IPv4Address] = []
        self._gateway_links: dict[IPv4Address, bytes] = {}
        self._lease: Lease | None = None
        loop = asyncio.get_running_loop()
        nd, arp = self._link.filenos()
        loop.add_reader(nd, self._heard)
        loop.add_reader(arp, self._heard_arp)

    @property
    def index(self) -> int:
        return self._link.index

    def close(self) -> None:
        self._timer.cancel()
        loop = asyncio.get_running_loop()
        for fileno in self._link.filenos():
            loop.remove_reader(fileno)
        self._link.close()

    # What the kernel tells ----------------------------------------------------------------------

    def tell(self, event: LinkEvent) -> None:
        """An event of this interface."""
        if isinstance(event, LinkState):
            self._link_changed(event.up)
        elif isinstance(event, IPv6AddressState):
            self._ipv6_address(event)
        elif isinstance(event, IPv4AddressState):
            if event.there:
                self._addresses[event.address] = event.expires_at
            else:
                self._addresses.pop(event.address, None)
            self._ipv4_changed()
        elif isinstance(event, DefaultRoute):
            if event.there and event.gateway not in self._gateways:
                self._gateways.append(event.gateway)
            elif not event.there and event.gateway in self._gateways:
                self._gateways.remove(event.gateway)
            self._ipv4_changed()
        elif isinstance(event.address, IPv4Address):
            if event.reachable and self._gateway_links.get(event.address) != event.link_address:
                self._gateway_links[event.address] = event.link_address
                self._ipv4_changed()
        elif not event.reachable and event.address in self._routers:
            # RFC 6275 §11.5.1: neighbour unreachability detection's word.
            self._into(RouterReachability(event.address, False))

    def _link_changed(self, up: bool) -> None:
        if up == self._up:
            return
        self._up = up
        self._into(LinkUp() if up else LinkDown())
        if up and self._lease is not None and self._lease.manual:
            # Nobody will tell of a manual address again.
            self._into(self._lease)

    def _ipv6_address(self, event: IPv6AddressState) -> None:
        if event.address.is_link_local:
            if event.usable:
                self._link_local = event.address
            elif event.address == self._link_local:
                self._link_local = UNSPECIFIED
        elif event.address not in self._own:
            told = AddressUsable(event.address) if event.usable else AddressGone(event.address)
            self._into(told)

    def _ipv4_changed(self) -> None:
        """An address with a gateway on its network is a lease."""
        lease = None
        for address, expires_at in self._addresses.items():
            gateway = next((each for each in self._gateways if each in address.network), None)
            if gateway is not None and address.ip not in self._own:
                link_address = self._gateway_links.get(gateway, b"")
                manual = expires_at is None
                lease = Lease(address, gateway, link_address, expires_at, manual)
                break
        if lease == self._lease:
            return
        self._lease = lease
        self._into(LeaseLost() if lease is None else lease)

    # What the link tells ------------------------------------------------------------------------

    def _heard(self) -> None:
        while (received := self._link.receive()) is not None:
            packet, link_address = received
            try:
                heard = neighbour.read(packet)
            except WireError:
                continue
            if isinstance(heard, RouterAdvertisementHeard):
                self._routers[heard.source] = link_address
                self._into(_advertisement(heard))
            elif (
                isinstance(heard, NeighborAdvertisement)
                and heard.solicited
                and heard.target in self._probed
            ):
                self._probed.discard(heard.target)
                self._into(RouterReachability(heard.target, True))

    def _heard_arp(self) -> None:
        while (packet := self._link.receive_arp()) is not None:
            try:
                heard = neighbour.read_arp(packet)
            except WireError:
                continue
            if heard.is_reply:
                self._into(ArpReply(heard.sender, heard.sender_link_address))

    # The engine ---------------------------------------------------------------------------------

    def _into(self, told: MovementInput) -> None:
        self._carry_out(self._detector.handle(told, asyncio.get_running_loop().time()))

    def _tick(self) -> None:
        self._carry_out(self._detector.tick(asyncio.get_running_loop().time()))

    def _carry_out(self, outputs: Sequence[MovementOutput]) -> None:
        for output in outputs:
            try:
                self._one(output)
            except (KernelError, WireError) as error:
                log.info("%s: %s", self._link.interface, error)
        self._timer.rearm()

    def _one(self, output: MovementOutput) -> None:
        link = self._link
        if isinstance(output, SolicitRouters):
            packet = neighbour.router_solicitation(self._link_local, link.link_address)
            link.send(packet, multicast_link_address(ALL_ROUTERS))
        elif isinstance(output, ProbeRouter):
            source = self._link_local
            if source != UNSPECIFIED and output.router in self._routers:
                self._probed.add(output.router)
                packet = neighbour.neighbor_solicitation(source, output.router, link.link_address)
                link.send(packet, self._routers[output.router])
        elif isinstance(output, ProbeGateway):
            packet = neighbour.arp_request(link.link_address, output.sender, output.gateway)
            link.send_arp(packet, output.link_address)
        elif isinstance(output, RequestLease):
            # The DHCP client sees the carrier come back, too.
            log.debug("%s: a lease is wanted", link.interface)
        else:
            self._place(output)

    def _place(self, output: UseCareOf | AtHome | NoCareOf) -> None:
        interface = self._link.interface
        if isinstance(output, AtHome):
            self.where = Home(interface)
        elif isinstance(output, NoCareOf):
            self.where = None
        else:
            self.where = self._visited(output)
        log.info("%s: %s", interface, self.where)
        self._changed()

    def _visited(self, output: UseCareOf) -> Place | None:
        interface = self._link.interface
        ipv4 = None
        if output.ipv4 is not None:
            address = IPv4Address(output.ipv4.address.ip)
            ipv4 = Attachment(interface, address, output.ipv4.gateway)
        if isinstance(output.care_of_address, IPv4Address):
            return None if ipv4 is None else Place(ipv4, None, output.administrative_domain)
        router = self._detector.ipv6.router
        assert router is not None, "an IPv6 care-of address is of a router's prefix"
        primary = Attachment(interface, output.care_of_address, router)
        return Place(primary, ipv4, output.administrative_domain)


def _advertisement(heard: RouterAdvertisementHeard) -> RouterAdvertisement:
    valid = [each for each in heard.prefixes if each.valid_lifetime]
    return RouterAdvertisement(
        heard.source,
        heard.lifetime,
        tuple(each.prefix for each in valid if each.on_link or each.autonomous),
        next((each.router for each in valid if each.router is not None), None),
        heard.interval,
    )


class Movement:
    """All interfaces of a mobile node. ``moved`` hears where the node is, whenever that changes;
    None: nowhere."""

    def __init__(
        self,
        interfaces: Sequence[str],
        *,
        home_prefix: IPv6Network | None,
        own: Sequence[IPv4Address | IPv6Address],
        moved: Callable[[Where], None],
        ipv6_patience: float = IPV6_PATIENCE,
    ) -> None:
        self._names = interfaces
        self._home_prefix = home_prefix
        self._own = own
        self._patience = ipv6_patience
        self._moved = moved
        self._interfaces: dict[int, InterfaceMovement] = {}
        self._events: LinkEvents | None = None
        self._told: Where = None
        self._starting = False

    def open(self) -> None:
        """Raises KernelError, for an interface that isn't there too. Nothing is left open then."""
        try:
            for name in self._names:
                watched = InterfaceMovement(
                    name,
                    home_prefix=self._home_prefix,
                    own=self._own,
                    ipv6_patience=self._patience,
                    changed=self._choose,
                )
                self._interfaces[watched.index] = watched
            self._events = LinkEvents(self._tell)
            self._starting = True
            self._events.tell_all()
        except DsmipError:
            self.close()
            raise
        self._starting = False
        self._choose()
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._events.read)

    def close(self) -> None:
        """Idempotent, never raises."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None
        for watched in self._interfaces.values():
            watched.close()
        self._interfaces = {}

    def _tell(self, event: LinkEvent) -> None:
        watched = self._interfaces.get(event.index)
        if watched is not None:
            watched.tell(event)

    def _choose(self) -> None:
        if self._starting:
            return
        places = [watched.where for watched in self._interfaces.values()]
        home = next((place for place in places if isinstance(place, Home)), None)
        where = home or next((place for place in places if place is not None), None)
        if where != self._told:
            self._told = where
            self._moved(where)
