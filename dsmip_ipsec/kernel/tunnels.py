"""Tunnels without IPsec, and the routes into them: read, planned, applied, as for XFRM.

It keeps no memory either: our interfaces are known by name and alias, which must agree, and our
routes by their metric and the interface they lead to. sit in mode "any" carries both families in
IPv4, ip6tnl in IPv6. Tunnels in UDP have no interface of their own: their packets come out of the
daemon's TUN, and only the routes into it are kept here (docs/decisions.md).
"""

from __future__ import annotations

import errno
import logging
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import UDP_TUNNELS, Network, Tunnel, TunnelKey, TunnelRoute
from dsmip_ipsec.ipsec.plain_tunnels import TUNNEL_METRIC, tunnel_alias, tunnel_of_alias
from dsmip_ipsec.ipsec.plan import Operation, Verb, plan
from dsmip_ipsec.kernel.source_filter import SourceFilters

log = logging.getLogger(__name__)

_KINDS = {4: "sit", 6: "ip6tnl"}
_HOP_LIMIT = 64
# RFC 2473 §6.6: without the tunnel encapsulation limit option, a destination options header.
_IP6_TNL_F_IGN_ENCAP_LIMIT = 0x1
# RFC 5555 §4.1.1: DSCP is copied outwards. (ECN the kernel copies anyway.)
_IP6_TNL_F_USE_ORIG_TCLASS = 0x2
_TOS_INHERIT = 1
RT_TABLE_MAIN = 254
# Someone else changed the same thing between our reading and our writing: read again.
_RACES = {errno.EEXIST, errno.ENODEV, errno.ESRCH, errno.ENOENT}
_ATTEMPTS = 5
_NOBODY = IPv6Address(0)
_NOTHING = DesiredState()


class PlainTunnels:
    """Keeps this namespace's tunnels and routes as desired. Needs CAP_NET_ADMIN."""

    def __init__(self, *, default_table: int = RT_TABLE_MAIN, check_sources: bool = False) -> None:
        """``default_table``: the routing table of default routes, where another than the main one
        is looked at for payload. ``check_sources``: let out of a tunnel only what comes from where
        its routes lead to, as a home agent must (RFC 6275 §10.4.5)."""
        self._ipr: Any = None
        self._default_table = default_table
        self._check_sources = check_sources
        self._filters = SourceFilters(None)

    async def open(self) -> None:
        self._ipr = AsyncIPRoute()
        await self._ipr.setup_endpoint()
        self._filters = SourceFilters(self._ipr)

    async def close(self) -> None:
        """Remove everything that is ours. Never raises: logs what it couldn't remove."""
        if self._ipr is None:
            return
        try:
            await self.reconcile(DesiredState())
        except KernelError as error:
            log.error("tunnels are left behind: %s", error)
        self.leave()

    def leave(self) -> None:
        """Close, and leave everything as it is. Idempotent."""
        if self._ipr is not None:
            self._ipr.close()
            self._ipr = None

    async def reconcile(self, wanted: DesiredState) -> tuple[Operation, ...]:
        """Make tunnels and routes those of ``wanted``; return what was done.

        Idempotent. Raises KernelError; what was applied before it stands, and the next run takes
        it from there.
        """
        done: list[Operation] = []
        refused: NetlinkError | None = None
        for _ in range(_ATTEMPTS):
            operations = plan(await self.read(wanted), wanted.plain())
            try:
                await self._admit(wanted)
            except NetlinkError as error:
                refused = error
                continue
            if not operations:
                return tuple(done)
            for operation in operations:
                try:
                    await self._apply(operation, wanted)
                except NetlinkError as error:
                    if error.code not in _RACES:
                        raise KernelError(
                            f"the kernel refused to {operation}: {error.args[-1]}",
                            errno=int(error.code),
                            hint="are the modules sit and ip6_tunnel there? "
                            "`dsmip-ipsec doctor` tells more",
                        ) from error
                    refused = error
                    break
                log.info("%s", operation)
                done.append(operation)
        raise KernelError(
            "tunnels don't settle" + (f": {refused.args[-1]}" if refused else ""),
            hint="another program changes the same interfaces; `ip monitor` shows which",
        )

    async def read(self, wanted: DesiredState = _NOTHING) -> DesiredState:
        """What is ours in the kernel. A tunnel in UDP exists when it is wanted: ``wanted`` also
        tells whose the routes into the TUN of those are."""
        tunnels: list[Tunnel] = []
        interfaces: dict[int, TunnelKey | None] = {}
        async for link in await self._ipr.get_links():
            name = link.get_attr("IFLA_IFNAME")
            if name == UDP_TUNNELS:
                interfaces[link["index"]] = None
                continue
            tunnel = _tunnel(name, link)
            if tunnel is not None:
                tunnels.append(tunnel)
                interfaces[link["index"]] = tunnel.key
        routes: list[TunnelRoute] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for table in {RT_TABLE_MAIN, self._default_table}:
                async for route in await self._ipr.get_routes(family=family, table=table):
                    index = route.get_attr("RTA_OIF")
                    if index not in interfaces or route.get_attr("RTA_PRIORITY") != TUNNEL_METRIC:
                        continue
                    if table == self._table(route["dst_len"]):
                        routes.append(_route(route, family, interfaces[index], wanted))
        udp = [tunnel for tunnel in wanted.tunnels if tunnel.encapsulation is not None]
        return DesiredState(tunnels=(*tunnels, *udp), routes=tuple(routes))

    def _table(self, prefix_length: int) -> int:
        return RT_TABLE_MAIN if prefix_length else self._default_table

    async def _admit(self, wanted: DesiredState) -> None:
        """Follow changes of the networks behind tunnels that there are already."""
        if self._check_sources:
            for tunnel in wanted.tunnels:
                name = tunnel.key.interface
                if not tunnel.key.udp and await self._ipr.link_lookup(ifname=name):
                    await self._filters.admit(
                        name, await self._index(name), sources(wanted, tunnel.key)
                    )

    async def _apply(self, operation: Operation, wanted: DesiredState) -> None:
        subject = operation.subject
        if isinstance(subject, TunnelRoute):
            await self._apply_route(operation.verb, subject)
            return
        assert isinstance(subject, Tunnel), "the rest is XFRM's"
        name = subject.key.interface
        if operation.verb is Verb.ADD_TUNNEL:
            await self._ipr.link("add", ifname=name, **_parameters(subject))
            index = await self._index(name)
            await self._ipr.link("set", index=index, ifalias=tunnel_alias(subject))
            self._filters.forget(name)
            if self._check_sources:
                await self._filters.admit(name, index, sources(wanted, subject.key))
            await self._ipr.link("set", index=index, state="up")
        elif operation.verb is Verb.UPDATE_TUNNEL:
            await self._ipr.link("set", index=await self._index(name), **_parameters(subject))
        else:
            self._filters.forget(name)
            await self._ipr.link("del", index=await self._index(name))

    async def _apply_route(self, verb: Verb, route: TunnelRoute) -> None:
        spec: dict[str, Any] = {
            "dst": str(route.destination),
            "family": socket.AF_INET if route.destination.version == 4 else socket.AF_INET6,
            "oif": await self._index(route.tunnel.interface),
            "priority": TUNNEL_METRIC,
            "table": self._table(route.destination.prefixlen),
        }
        if route.source is not None:
            spec["prefsrc"] = str(route.source)
        await self._ipr.route("del" if verb is Verb.DELETE_ROUTE else "replace", **spec)

    async def _index(self, name: str) -> int:
        indices = await self._ipr.link_lookup(ifname=name)
        if not indices:
            raise NetlinkError(errno.ENODEV, f"no interface {name}")
        return int(indices[0])


def sources(wanted: DesiredState, tunnel: TunnelKey) -> list[Network]:
    """Where packets that come out of ``tunnel`` at the home agent may come from: whatever it
    sends into it."""
    return [route.destination for route in wanted.routes if route.tunnel == tunnel]


def _parameters(tunnel: Tunnel) -> dict[str, Any]:
    kind = _KINDS[tunnel.key.version]
    parameters: dict[str, Any] = {
        "kind": kind,
        f"{kind}_local": str(tunnel.local),
        f"{kind}_remote": str(tunnel.remote),
        f"{kind}_ttl": _HOP_LIMIT,
        f"{kind}_proto": 0,  # any: IPv4 and IPv6
    }
    if kind == "sit":
        parameters |= {"sit_pmtudisc": 1, "sit_tos": _TOS_INHERIT}
    else:
        parameters["ip6tnl_flags"] = _IP6_TNL_F_IGN_ENCAP_LIMIT | _IP6_TNL_F_USE_ORIG_TCLASS
    return parameters


def _tunnel(name: str, link: Any) -> Tunnel | None:
    """The model of an interface, None of one that isn't ours."""
    home_address = tunnel_of_alias(link.get_attr("IFLA_IFALIAS") or "")
    info = link.get_attr("IFLA_LINKINFO")
    if home_address is None or info is None:
        return None
    kind = info.get_attr("IFLA_INFO_KIND")
    data = info.get_attr("IFLA_INFO_DATA")
    if kind not in _KINDS.values() or data is None:
        return None
    prefix = "IFLA_SIT" if kind == "sit" else "IFLA_IP6TNL"
    try:
        local = ip_address(data.get_attr(f"{prefix}_LOCAL") or "")
        remote = ip_address(data.get_attr(f"{prefix}_REMOTE") or "")
        tunnel = Tunnel(home_address, local, remote)
    except ValueError:  # without ends: none that we could have made
        return None
    return tunnel if tunnel.key.interface == name else None


def _route(route: Any, family: int, key: TunnelKey | None, wanted: DesiredState) -> TunnelRoute:
    """The model of a route; ``key`` None: into the TUN that tunnels in UDP share, where the wanted
    routes tell whose it is. One that nobody wants is nobody's, and goes."""
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104
    prefix = f"{route.get_attr('RTA_DST') or anywhere}/{route['dst_len']}"
    destination = ip_network(prefix)
    source = route.get_attr("RTA_PREFSRC")
    if key is None:
        owners = [r.tunnel for r in wanted.routes if r.destination == destination]
        udp = [owner for owner in owners if owner.udp]
        owner = owners[0].home_address if owners else _NOBODY
        key = udp[0] if udp else TunnelKey(owner, 4, udp=True)
    return TunnelRoute(destination, key, None if source is None else _address(source))


def _address(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)
