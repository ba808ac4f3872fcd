"""Addresses, routes and rules of the daemons. Everything here is undone by :meth:`close`.

A mobile node's table layout:

* each attachment has a table of its own, with the default route of the visited network, chosen by
  the rule ``from CARE_OF_ADDRESS``: a BU leaves by the new attachment while the tunnel still uses
  the old one (RFC 5555 §5.1). In a network with both families there are two attachments;
* one host route in the main table leads to the home agent's address of the family in use, with the
  care-of address in use as preferred source: it is what charon follows. For the other family
  there is none but "unreachable": charon is to change the family when we do;
* payload's default routes lead to the TUN interface with the home addresses as preferred source.
  They have a table of their own, looked at before the main one's default routes, which a router
  advertisement or a DHCP client may put there at any time; anything more special in the main table
  (links, host routes) goes first. Policies take payload before it gets to the TUN; what none takes
  ends there, not on a link;
* behind all that, what comes from a home address or from a network behind a mobile router is
  unreachable, unless the mobile node is at home: before the first binding and after the last one
  there are no policies, and a default route in the main table would lead it out in clear. What is
  for such a network itself goes there by the main table before;
* what comes by a visited network in the name of a network behind a mobile router goes nowhere:
  between two addresses of such networks policies ask for no ESP (ipsec.payload_policies). What is
  for the router itself has been taken by the local table before.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dsmip_ipsec.errors import KernelError

log = logging.getLogger(__name__)

# Tables and rule priorities of ours stand in one range each, before the main table's rule (32766).
SIGNALLING_TABLE = 5550
ATTACHMENT_TABLES = 5560
PAYLOAD_TABLE = 5551
# What leaves from a care-of address goes by its attachment, whatever mark it has kept.
RULE_ATTACHMENT = 5540
RULE_SIGNALLING = 5550
RULE_SPECIAL = 5570
RULE_PAYLOAD = 5571
RULE_FOREIGN = 5569
RULE_BEHIND = 5572
RULE_NOT_AT_HOME = 5573
UNREACHABLE_METRIC = 55550
# Behind routes into tunnels without IPsec (ipsec.plain_tunnels).
PAYLOAD_METRIC = 55550
# Behind a binding's routes (kernel.home_link).
KEPT_METRIC = 55561

# IFA_F_NODAD: the home agent defends it (RFC 6275 §10.3). IFA_F_HOMEADDRESS: without it the kernel
# takes no type 2 routing header for the address, and with it prefers it as source (RFC 6724 §5).
_HOME_ADDRESS_FLAGS = 0x02 | 0x10

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Attachment:
    """A visited network in one family: where the mobile node is, and the way out."""

    interface: str
    care_of_address: Address
    gateway: Address

    def __post_init__(self) -> None:
        if self.care_of_address.version != self.gateway.version:
            raise ValueError(f"{self.care_of_address} can't have the gateway {self.gateway}")


@contextlib.asynccontextmanager
async def _errors(what: str) -> AsyncIterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{what}: {error.args[-1]}", errno=int(error.code)) from error


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


class Routing:
    """Needs CAP_NET_ADMIN in this network namespace. All methods raise KernelError."""

    def __init__(self) -> None:
        self._ipr: Any = None
        self._rules: list[dict[str, Any]] = []
        self._routes: dict[str, dict[str, Any]] = {}
        self._addresses: list[dict[str, Any]] = []
        self._attachments: set[Attachment] = set()
        self._at_home: list[dict[str, Any]] = []
        self._mobile: list[Network] = []
        self._behind: tuple[Network, ...] = ()

    async def open(self) -> None:
        self._ipr = AsyncIPRoute()
        await self._ipr.setup_endpoint()

    async def close(self) -> None:
        """Remove what was added. Never raises: what is gone already needs no removal."""
        if self._ipr is None:
            return
        for attachment in list(self._attachments):
            await self.detach(attachment)
        for address in self._at_home:
            await self._undo(self._ipr.addr("del", **address))
        for rule in self._rules:
            await self._undo(self._ipr.rule("del", **rule))
        for route in self._routes.values():
            await self._undo(self._ipr.route("del", **route))
        for address in self._addresses:
            await self._undo(self._ipr.addr("del", **address))
        self._rules, self._routes, self._addresses, self._at_home = [], {}, [], []
        self._ipr.close()
        self._ipr = None

    async def _undo(self, removal: Any) -> None:
        try:
            await removal
        except (NetlinkError, KernelError) as error:
            log.info("clean-up: %s", error)

    def _index(self, interface: str) -> int:
        try:
            return socket.if_nametoindex(interface)
        except OSError as error:
            raise KernelError(
                f"no interface {interface}", hint="name an interface of this namespace"
            ) from error

    async def signalling(self, tun: str, mark: int, mask: int) -> None:
        """Bring the TUN up and lead IPv6 packets with ``mark`` under ``mask`` into it."""
        async with _errors(f"can't set up {tun}"):
            index = self._index(tun)
            await self._ipr.link("set", index=index, state="up")
            await self._route(
                "signalling",
                {"dst": "::/0", "family": socket.AF_INET6, "oif": index,
                 "table": SIGNALLING_TABLE},
            )  # fmt: skip
            await self._rule(
                {"family": socket.AF_INET6, "fwmark": mark, "fwmask": mask,
                 "table": SIGNALLING_TABLE, "priority": RULE_SIGNALLING},
            )  # fmt: skip

    async def up(self, interface: str, mtu: int) -> None:
        """Bring an interface of ours up."""
        async with _errors(f"can't bring {interface} up"):
            await self._ipr.link("set", index=self._index(interface), mtu=mtu, state="up")

    async def home_addresses(
        self, tun: str, addresses: list[Address], networks: Iterable[Network] = ()
    ) -> None:
        """Configure the home addresses on the TUN, and keep what comes from them off visited
        links, and what comes from ``networks``, which are behind a mobile router."""
        async with _errors(f"can't configure home addresses on {tun}"):
            index = self._index(tun)
            for address in addresses:
                spec: dict[str, Any] = {
                    "index": index,
                    "address": str(address),
                    "prefixlen": address.max_prefixlen,
                    "family": _family(address),
                }
                if address.version == 6:
                    spec["flags"] = _HOME_ADDRESS_FLAGS
                await self._ipr.addr("replace", **spec)
                self._addresses.append(spec)
            self._behind = tuple(networks)
            for network in self._behind:
                await self._rule(_behind(network))
            self._mobile = [*(ip_network(address) for address in addresses), *self._behind]
            for network in self._mobile:
                await self._rule(_not_at_home(network))

    async def payload(self, tun: str, addresses: list[Address]) -> None:
        """Lead payload into the TUN, hence under the policies: call this when they stand."""
        async with _errors(f"can't route payload to {tun}"):
            index = self._index(tun)
            for address in addresses:
                family = _family(address)
                await self._route(
                    f"payload {address}",
                    {"dst": _default(family), "family": family, "oif": index,
                     "prefsrc": str(address), "table": PAYLOAD_TABLE,
                     "priority": PAYLOAD_METRIC},
                )  # fmt: skip
                for rule in _payload_rules(family):
                    if rule not in self._rules:
                        await self._rule(rule)

    async def no_payload(self) -> None:
        """Take payload's routes away. Idempotent."""
        for rule in [rule for rule in self._rules if rule["priority"] in _PAYLOAD_RULES]:
            self._rules.remove(rule)
            await self._undo(self._ipr.rule("del", **rule))
        for name in [name for name in self._routes if name.startswith("payload ")]:
            await self._undo(self._ipr.route("del", **self._routes.pop(name)))

    async def deliver(self, tun: str, addresses: list[Address], name: str) -> None:
        """Lead packets for exactly these addresses of the mobile node ``name`` into the TUN, where
        user-space IPsec waits for them; none: no more."""
        wanted = {f"deliver {name} {address}": address for address in addresses}
        for known in [known for known in self._routes if known.startswith(f"deliver {name} ")]:
            if known not in wanted:
                await self._undo(self._ipr.route("del", **self._routes.pop(known)))
        async with _errors(f"can't route to the mobile node {name}"):
            index = self._index(tun)
            for route, address in wanted.items():
                await self._route(
                    route,
                    {"dst": f"{address}/{address.max_prefixlen}", "family": _family(address),
                     "oif": index},
                )  # fmt: skip

    async def keep(self, networks: Iterable[Network]) -> None:
        """At a home agent: what is for ``networks`` goes nowhere unless a binding leads it on. A
        default route would send it back to the router that it came from."""
        for network in networks:
            async with _errors(f"can't keep {network}"):
                await self._route(
                    f"kept {network}",
                    {"dst": str(network), "family": _family(network.network_address),
                     "type": "unreachable", "priority": KEPT_METRIC},
                )  # fmt: skip

    async def attach(self, attachment: Attachment) -> None:
        """Make ``attachment`` usable beside the present one."""
        address = attachment.care_of_address
        async with _errors(f"can't attach to {attachment.interface}"):
            index = self._index(attachment.interface)
            table = ATTACHMENT_TABLES + index
            await self._route(
                _name(attachment),
                {"dst": _default(_family(address)), "family": _family(address), "oif": index,
                 "gateway": str(attachment.gateway), "table": table},
            )  # fmt: skip
            rule = {"family": _family(address), "src": str(address),
                    "src_len": address.max_prefixlen, "table": table,
                    "priority": RULE_ATTACHMENT}  # fmt: skip
            if rule not in self._rules:
                await self._rule(rule)
            for network in self._behind:
                foreign = _foreign(network, attachment.interface)
                if foreign not in self._rules:
                    await self._rule(foreign)
            self._attachments.add(attachment)
        if address.version == 4:
            _accept_ipv6(attachment.interface)

    async def detach(self, attachment: Attachment) -> None:
        """Forget ``attachment``. Idempotent."""
        if attachment not in self._attachments:
            return
        self._attachments.remove(attachment)
        mine = [r for r in self._rules if r.get("src") == str(attachment.care_of_address)]
        if all(other.interface != attachment.interface for other in self._attachments):
            mine += [r for r in self._rules if r.get("iifname") == attachment.interface]
        for rule in mine:
            self._rules.remove(rule)
            await self._undo(self._ipr.rule("del", **rule))
        if any(_name(other) == _name(attachment) for other in self._attachments):
            return  # the same interface in another network: its route has replaced this one's
        route = self._routes.pop(_name(attachment), None)
        if route is not None:
            await self._undo(self._ipr.route("del", **route))

    async def use(self, attachment: Attachment, home_agent: Iterable[Address]) -> None:
        """Lead traffic for the home agent's own address by ``attachment``; charon follows.

        ``home_agent``: its addresses in all families.
        """
        for address in home_agent:
            family = _family(address)
            async with _errors(f"can't route to {address} by {attachment.interface}"):
                await self._route(
                    f"no home agent {address}",
                    {"dst": f"{address}/{address.max_prefixlen}", "family": family,
                     "type": "unreachable", "priority": UNREACHABLE_METRIC},
                )  # fmt: skip
                if address.version == attachment.gateway.version:
                    await self._route(
                        f"home agent {address}",
                        {"dst": f"{address}/{address.max_prefixlen}", "family": family,
                         "oif": self._index(attachment.interface),
                         "gateway": str(attachment.gateway),
                         "prefsrc": str(attachment.care_of_address)},
                    )  # fmt: skip
        for address in home_agent:
            if address.version != attachment.gateway.version:
                await self._remove_route(f"home agent {address}")

    async def on_link(self, interface: str, home_agent: Address) -> None:
        """The home agent is on this link: no gateway, whatever was used before."""
        async with _errors(f"can't route to {home_agent} on {interface}"):
            await self._route(
                f"home agent {home_agent}",
                {"dst": f"{home_agent}/{home_agent.max_prefixlen}",
                 "family": _family(home_agent), "oif": self._index(interface)},
            )  # fmt: skip

    async def at_home(self, interface: str, addresses: Iterable[tuple[Address, int]]) -> None:
        """Configure home addresses (with their prefix lengths) on the home link, without
        duplicate address detection: the home agent has defended them until now."""
        async with _errors(f"can't configure home addresses on {interface}"):
            index = self._index(interface)
            for away in map(_not_at_home, self._mobile):
                if away in self._rules:
                    self._rules.remove(away)
                    await self._ipr.rule("del", **away)
            for address, length in addresses:
                spec: dict[str, Any] = {
                    "index": index,
                    "address": str(address),
                    "prefixlen": length,
                    "family": _family(address),
                }
                if address.version == 6:
                    spec["flags"] = 0x02  # IFA_F_NODAD
                await self._ipr.addr("replace", **spec)
                self._at_home.append(spec)

    async def not_at_home(self) -> None:
        """Take them away again. Idempotent. Raises KernelError."""
        for network in self._mobile:
            away = _not_at_home(network)
            if away not in self._rules:
                async with _errors(f"can't keep {network} off visited links"):
                    await self._rule(away)
        at_home, self._at_home = self._at_home, []
        for spec in at_home:
            await self._undo(self._ipr.addr("del", **spec))

    async def leave(self) -> None:
        """Forget the routes to the home agent. Idempotent."""
        for name in [n for n in self._routes if n.startswith(("home agent ", "no home agent "))]:
            await self._remove_route(name)

    async def _remove_route(self, name: str) -> None:
        route = self._routes.pop(name, None)
        if route is not None:
            await self._undo(self._ipr.route("del", **route))

    async def _route(self, name: str, route: dict[str, Any]) -> None:
        await self._ipr.route("replace", **route)
        self._routes[name] = route

    async def _rule(self, rule: dict[str, Any]) -> None:
        try:
            await self._ipr.rule("add", **rule)
        except NetlinkError as error:
            if error.code != errno.EEXIST:  # that of a daemon that was killed
                raise
        self._rules.append(rule)


def _default(family: int) -> str:
    return "0.0.0.0/0" if family == socket.AF_INET else "::/0"


def _name(attachment: Attachment) -> str:
    return f"attachment {attachment.interface} IPv{attachment.gateway.version}"


_PAYLOAD_RULES = (RULE_SPECIAL, RULE_PAYLOAD)


def _payload_rules(family: int) -> list[dict[str, Any]]:
    """The main table without its default routes; then payload's."""
    return [
        {"family": family, "table": 254, "priority": RULE_SPECIAL, "suppress_prefixlen": 0},
        {"family": family, "table": PAYLOAD_TABLE, "priority": RULE_PAYLOAD},
    ]


def _behind(network: Network) -> dict[str, Any]:
    """By the main table without its default routes: from whomever, home address included."""
    return {
        "family": _family(network.network_address),
        "dst": str(network.network_address),
        "dst_len": network.prefixlen,
        "table": 254,
        "priority": RULE_BEHIND,
        "suppress_prefixlen": 0,
    }


def _foreign(network: Network, interface: str) -> dict[str, Any]:
    """Nobody there has an address behind this mobile router."""
    return {
        "family": _family(network.network_address),
        "iifname": interface,
        "src": str(network.network_address),
        "src_len": network.prefixlen,
        "action": "unreachable",
        "priority": RULE_FOREIGN,
    }


def _not_at_home(network: Network) -> dict[str, Any]:
    return {
        "family": _family(network.network_address),
        "src": str(network.network_address),
        "src_len": network.prefixlen,
        "action": "unreachable",
        "priority": RULE_NOT_AT_HOME,
    }


def _accept_ipv6(interface: str) -> None:
    """Let the kernel take decapsulated IPv6 packets on an interface of an IPv4-only network.

    They count as received there, and where IPv6 is switched off they are dropped. The interface
    gets no link-local address by it: nothing new is said on the link.
    """
    settings = Path("/proc/sys/net/ipv6/conf") / interface
    with contextlib.suppress(OSError):
        if (settings / "disable_ipv6").read_text(encoding="ascii").strip() == "1":
            (settings / "addr_gen_mode").write_text("1", encoding="ascii")
            (settings / "disable_ipv6").write_text("0", encoding="ascii")
