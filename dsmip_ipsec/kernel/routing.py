"""Addresses, routes and rules of the daemons. Everything here is undone by :meth:`close`.

A mobile node's table layout:

* each attachment has a table of its own, with the default route of the visited network, chosen by
  the rule ``from CARE_OF_ADDRESS``: a BU leaves by the new attachment while the tunnel still uses
  the old one (RFC 5555 §5.1);
* one host route in the main table leads to the home agent, with the care-of address in use as
  preferred source: it is what charon follows;
* payload's default routes lead to the TUN interface with the home addresses as preferred source.
  Policies take payload before it gets there; what none takes ends in the TUN, not on a link.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dsmip_ipsec.errors import KernelError

log = logging.getLogger(__name__)

# Tables and rule priorities of ours stand in one range each, before the main table's rule (32766).
SIGNALLING_TABLE = 5550
ATTACHMENT_TABLES = 5560
RULE_SIGNALLING = 5550
RULE_ATTACHMENT = 5560
PAYLOAD_METRIC = 55550

# IFA_F_NODAD: the home agent defends it (RFC 6275 §10.3). IFA_F_HOMEADDRESS: without it the kernel
# takes no type 2 routing header for the address, and with it prefers it as source (RFC 6724 §5).
_HOME_ADDRESS_FLAGS = 0x02 | 0x10

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Attachment:
    """A visited network: where the mobile node is, and the way out."""

    interface: str
    care_of_address: IPv4Address
    gateway: IPv4Address


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
        self._attachments: dict[str, Attachment] = {}

    async def open(self) -> None:
        self._ipr = AsyncIPRoute()
        await self._ipr.setup_endpoint()

    async def close(self) -> None:
        """Remove what was added. Never raises: what is gone already needs no removal."""
        if self._ipr is None:
            return
        for interface in list(self._attachments):
            await self._undo(self.detach(interface))
        for rule in self._rules:
            await self._undo(self._ipr.rule("del", **rule))
        for route in self._routes.values():
            await self._undo(self._ipr.route("del", **route))
        for address in self._addresses:
            await self._undo(self._ipr.addr("del", **address))
        self._rules, self._routes, self._addresses = [], {}, []
        self._ipr.close()
        self._ipr = None

    async def _undo(self, removal: Any) -> None:
        try:
            await removal
        except (NetlinkError, KernelError) as error:
            log.info("clean-up: %s", error)

    async def _index(self, interface: str) -> int:
        indices = await self._ipr.link_lookup(ifname=interface)
        if not indices:
            raise KernelError(
                f"no interface {interface}", hint="name an interface of this namespace"
            )
        return int(indices[0])

    async def signalling(self, tun: str, mark: int, mask: int) -> None:
        """Bring the TUN up and lead IPv6 packets with ``mark`` under ``mask`` into it."""
        async with _errors(f"can't set up {tun}"):
            index = await self._index(tun)
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

    async def home_addresses(self, tun: str, addresses: list[Address]) -> None:
        """Configure the home addresses on the TUN."""
        async with _errors(f"can't configure home addresses on {tun}"):
            index = await self._index(tun)
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

    async def payload(self, tun: str, addresses: list[Address]) -> None:
        """Lead payload into the TUN, hence under the policies: call this when they stand."""
        async with _errors(f"can't route payload to {tun}"):
            index = await self._index(tun)
            for address in addresses:
                await self._route(
                    f"payload {address}",
                    {"dst": "default", "family": _family(address), "oif": index,
                     "prefsrc": str(address), "priority": PAYLOAD_METRIC},
                )  # fmt: skip

    async def no_payload(self) -> None:
        """Take payload's routes away. Idempotent."""
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
            index = await self._index(tun)
            for route, address in wanted.items():
                await self._route(
                    route,
                    {"dst": f"{address}/{address.max_prefixlen}", "family": _family(address),
                     "oif": index},
                )  # fmt: skip

    async def attach(self, attachment: Attachment) -> None:
        """Make ``attachment`` usable beside the present one."""
        async with _errors(f"can't attach to {attachment.interface}"):
            index = await self._index(attachment.interface)
            table = ATTACHMENT_TABLES + index
            await self._route(
                f"attachment {attachment.interface}",
                {"dst": "default", "family": socket.AF_INET, "oif": index,
                 "gateway": str(attachment.gateway), "table": table},
            )  # fmt: skip
            rule = {"family": socket.AF_INET, "src": str(attachment.care_of_address),
                    "src_len": 32, "table": table, "priority": RULE_ATTACHMENT}  # fmt: skip
            if rule not in self._rules:
                await self._rule(rule)
            self._attachments[attachment.interface] = attachment
        _accept_ipv6(attachment.interface)

    async def detach(self, interface: str) -> None:
        """Forget the attachment on ``interface``. Idempotent."""
        attachment = self._attachments.pop(interface, None)
        if attachment is None:
            return
        mine = [r for r in self._rules if r.get("src") == str(attachment.care_of_address)]
        for rule in mine:
            self._rules.remove(rule)
            await self._undo(self._ipr.rule("del", **rule))
        route = self._routes.pop(f"attachment {interface}", None)
        if route is not None:
            await self._undo(self._ipr.route("del", **route))

    async def use(self, attachment: Attachment, home_agent: IPv4Address) -> None:
        """Lead traffic for the home agent's own address by ``attachment``; charon follows."""
        async with _errors(f"can't route to {home_agent} by {attachment.interface}"):
            await self._route(
                "home agent",
                {"dst": f"{home_agent}/32", "family": socket.AF_INET,
                 "oif": await self._index(attachment.interface),
                 "gateway": str(attachment.gateway),
                 "prefsrc": str(attachment.care_of_address)},
            )  # fmt: skip

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
