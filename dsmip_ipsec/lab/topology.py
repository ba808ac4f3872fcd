"""A lab's nodes and links in the kernel: namespaces, interfaces, addresses, delays, routes, NATs.

Built in three sweeps over the namespaces (make them; create links; bring them up and route), each
namespace getting one netlink batch a sweep.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from ..errors import LabError
from . import nat, netns, routes, rtnl
from .cleanup import Run
from .routes import LinkAttachment
from .spec_checks import SWITCH_NODE
from .spec_models import Impair, Lab, Link, MobileNode, Nat

_SYSCTL = Path("/proc/sys/net")
# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_SWITCH_PORTS = 10_000  # interface numbers of the switch's ports, away from those of the links

# In every namespace, for all interfaces that come. No router advertisements, solicitations or
# duplicate address detection: what a link carries is what the lab sends. No reverse path filter:
# a mobile node hears on one link while it sends on another, and the default of a new namespace
# is whatever the host has. keep_addr_on_down: a link that fails comes back as it was.
_SETTINGS = {
    "ipv4/conf/{}/rp_filter": "0",
    "ipv4/conf/{}/accept_redirects": "0",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/accept_redirects": "0",
    "ipv6/conf/{}/autoconf": "0",
    "ipv6/conf/{}/accept_dad": "0",
    "ipv6/conf/{}/dad_transmits": "0",
    "ipv6/conf/{}/router_solicitations": "0",
    "ipv6/conf/{}/keep_addr_on_down": "1",
}
# Where a router advertises, a mobile node takes its addresses from that.
# (2: one that forwards, a mobile router, does so, too.)
_HOST_SETTINGS = {"accept_ra": "2", "autoconf": "1", "router_solicitations": "3"}
_MOBILE_ROUTER = {"ipv6/conf/all/forwarding": "1"}
_FORWARDING = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}


@dataclass(frozen=True, slots=True)
class Port:
    """One end of a link: the interface ``interface`` of ``node``, in ``namespace``."""

    node: str
    link: str
    interface: str
    namespace: str


class Topology:
    """The nodes and links of ``lab``, under the names of ``run``.

    :meth:`up` builds them. Taking them away is :meth:`dsmip_ipsec.lab.cleanup.Run.finish`'s: it
    knows of every namespace before it is made.

    ``relayed``: links whose ends meet in the switch's namespace without being joined there: a relay
    (:mod:`dsmip_ipsec.lab.relay`) carries and impairs what they send, instead of the kernel.
    """

    def __init__(self, lab: Lab, run: Run, *, relayed: frozenset[str] = frozenset()) -> None:
        self.lab = lab
        self.run = run
        self.relayed = relayed
        self._indices = rtnl.indices(list(lab.links))

    def namespace(self, node: str) -> str:
        """Name of the network namespace of ``node``."""
        return f"{self.run.id}-{node}"

    def ports(self) -> list[Port]:
        """Every end of every link, in the file's order."""
        return [
            Port(node, name, name, self.namespace(node))
            for name, link in self.lab.links.items()
            for node in link.ends
        ]

    def relay_ports(self) -> dict[str, list[str]]:
        """Of each relayed link, its interfaces in the switch's namespace."""
        return {name: [f"port{port}" for port in self._switch_ports(name)] for name in self.relayed}

    def attachment(self, node: str, link: str) -> LinkAttachment:
        """What the mobile node ``node`` is given on ``link``: interface, addresses, gateways."""
        return routes.attachment(self.lab, node, link)

    def up(self) -> None:
        """Build everything. The mobile nodes' interfaces are up but have no addresses.

        :raises LabError: the kernel refused something; what was made so far is in the run's
            journal.
        """
        netns.isolated(self._build)

    def set_link(self, link: str, *, up: bool) -> None:
        """Plug a link in or out: the other ends go up or down, mobile nodes see their carrier go.

        :raises LabError: the kernel refused it.
        """
        netns.isolated(lambda: self._set_link(link, up))

    def impair(self, impair: Impair) -> None:
        """Change how a link is, at each of its ends.

        :raises LabError: the kernel refused it.
        """

        def change() -> None:
            for end in self.lab.links[impair.link].ends:
                netns.enter(self.namespace(end))
                batch = rtnl.Batch()
                batch.netem(self._indices[impair.link], impair)
                batch.send()

        netns.isolated(change)

    def _build(self) -> None:
        # Where IPv6 is a module this loads it: its sysctls must be there before the namespaces.
        with suppress(OSError):
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        nodes = list(self.lab.nodes)
        if any(map(self._is_switched, self.lab.links)):
            nodes.append(SWITCH_NODE)
        for node in nodes:
            self.run.add_namespace(self.namespace(node))
            netns.create(self.namespace(node))  # leaves this thread in it
            self._configure(node)
        with netns.descriptors(map(self.namespace, nodes)) as descriptors:
            for node in nodes:
                if batch := self._links(node, descriptors):
                    netns.enter(self.namespace(node))
                    batch.send()
        for node in nodes:
            netns.enter(self.namespace(node))
            if node == SWITCH_NODE:
                self._bring_up_switch()
            else:
                self._bring_up(node)
        # Neighbours are up by now: a route needs its gateway to be reachable.
        for node in self.lab.nodes:
            if batch := self._routes(node):
                netns.enter(self.namespace(node))
                batch.send()

    def _configure(self, node: str) -> None:
        settings = {
            name.format(scope): value
            for name, value in _SETTINGS.items()
            for scope in ("all", "default")
        }
        if node == SWITCH_NODE:
            settings = {"ipv6/conf/default/disable_ipv6": "1"}
        elif routes.forwards(self.lab, node):
            settings |= _FORWARDING
        elif (mobile := self.lab.mobile_nodes().get(node)) and mobile.mobile_networks:
            settings |= _MOBILE_ROUTER
        for name, value in settings.items():
            _write(name, value)

    def _links(self, node: str, descriptors: dict[str, int]) -> rtnl.Batch:
        """The links that ``node`` creates: those on which it's the first end, and the switch all
        that lead to it."""
        batch = rtnl.Batch()
        for name, link in self.lab.links.items():
            index, ends = self._indices[name], list(link.ends)
            if not self._is_switched(name):
                if node == ends[0]:
                    batch.veth(name, index, name, index, descriptors[self.namespace(ends[1])])
            elif node == SWITCH_NODE:
                # A link with a single end needs no bridge: its wire ends nowhere, but it has a
                # carrier, and what is sent on it can be seen. (A dummy interface would do as
                # well, where the kernel has it.)
                bridged = {"IFLA_MASTER": index} if self._is_bridged(name) else {}
                if bridged:
                    batch.bridge(name, index)
                for port, end in zip(self._switch_ports(name), ends, strict=True):
                    there = descriptors[self.namespace(end)]
                    batch.veth(f"port{port}", port, name, index, there, **bridged)
        return batch

    def _is_switched(self, link: str) -> bool:
        """Whether the link's ends meet in the switch's namespace rather than in one another."""
        return link in self.relayed or len(self.lab.links[link].ends) != 2

    def _is_bridged(self, link: str) -> bool:
        return link not in self.relayed and len(self.lab.links[link].ends) > 1

    def _switch_ports(self, link: str) -> range:
        """Interface numbers of the switch's ports for ``link``, one for each of its ends."""
        first = _SWITCH_PORTS + 100 * self._indices[link]
        return range(first, first + len(self.lab.links[link].ends))

    def _bring_up(self, node: str) -> None:
        batch = rtnl.Batch()
        batch.set_link(1, up=True)
        declared = self.lab.nodes[node]
        mobile = isinstance(declared, MobileNode)
        behind = declared.mobile_networks if isinstance(declared, MobileNode) else ()
        for name, link in self.lab.links.items():
            if node not in link.ends:
                continue
            index = self._indices[name]
            if not _has_ipv6(link):
                # An IPv4-only network: not even link-local IPv6 on it.
                _write(f"ipv6/conf/{name}/disable_ipv6", "1")
            if link.mtu is not None:
                batch.set_link(index, mtu=link.mtu)
            if link.impairs() and name not in self.relayed:
                batch.netem(index, link)
            if mobile and link.router_advertisements:
                for key, value in _HOST_SETTINGS.items():
                    _write(f"ipv6/conf/{name}/{key}", value)
            batch.set_link(index, up=_starts_up(self.lab, node, name))
            for address in link.ends[node] if name in behind or not mobile else ():
                batch.address(index, address)
            _disable_checksum_offload(name)
        batch.send()
        if isinstance(declared, Nat):
            inside = declared.forward_to and routes.address_on(
                self.lab, declared.forward_to, declared.inside, 4
            )
            hosts = routes.inside_addresses(self.lab, node)
            nat.install(
                declared,
                forward_to=inside.ip if isinstance(inside, IPv4Interface) else None,
                reach=hosts[0] if declared.filters_loosely() else None,
            )

    def _bring_up_switch(self) -> None:
        batch = rtnl.Batch()
        for name, link in self.lab.links.items():
            if self._is_switched(name):
                bridge = [self._indices[name]] if self._is_bridged(name) else []
                for port in [*self._switch_ports(name), *bridge]:
                    if link.mtu is not None:
                        batch.set_link(port, mtu=link.mtu)
                    batch.set_link(port, up=True)
        batch.send()

    def _routes(self, node: str, only: str | None = None) -> rtnl.Batch:
        batch = rtnl.Batch()
        for route in routes.routes(self.lab, node):
            if only in (None, route.link) and (only or self.lab.links[route.link].up):
                batch.route(self._indices[route.link], route)
        return batch

    def _set_link(self, name: str, up: bool) -> None:
        link = self.lab.links.get(name)
        if link is None:
            raise LabError(f"there is no link '{name}'", hint=f"links: {', '.join(self.lab.links)}")
        ends = [end for end in link.ends if not isinstance(self.lab.nodes[end], MobileNode)]
        for end in ends or link.ends:
            netns.enter(self.namespace(end))
            batch = rtnl.Batch()
            batch.set_link(self._indices[name], up=up)
            batch.send()
        if up:  # the kernel dropped the routes with the link
            for end in ends:
                netns.enter(self.namespace(end))
                self._routes(end, only=name).send()


def _starts_up(lab: Lab, node: str, link: str) -> bool:
    """A mobile node's interfaces are up, but for the one at home: it starts away from there."""
    if not isinstance(lab.nodes[node], MobileNode):
        return lab.links[link].up
    return not routes.is_home(lab, node, link)


def _has_ipv6(link: Link) -> bool:
    return any(isinstance(a, IPv6Interface) for ends in link.ends.values() for a in ends)


def _disable_checksum_offload(interface: str) -> None:
    """Have checksums computed before packets leave: a veth pair would leave it to a network card
    that never comes, and the captures would show wrong ones. (Segmentation offload ends with it,
    so that packets on the link are no larger than its MTU.)"""
    value = array("I", [_ETHTOOL_STXCSUM, 0])  # struct ethtool_value
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
        except OSError as error:
            raise LabError(
                f"checksum offload of '{interface}' can't be switched off: {error.strerror}",
                hint="`dsmip-ipsec doctor` shows what this kernel can do",
            ) from None


def _write(name: str, value: str) -> None:
    """Set a sysctl of the calling thread's namespace. One that this kernel hasn't got is off."""
    with suppress(FileNotFoundError):
        try:
            (_SYSCTL / name).write_text(value)
        except PermissionError as error:
            raise LabError(
                f"net/{name} can't be set: {error.strerror}",
                hint="run the lab in a guest (--kernel uml), or as root",
            ) from None
