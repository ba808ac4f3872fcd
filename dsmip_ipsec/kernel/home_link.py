"""The kernel's side of a home agent's duties on the home link: proxy neighbours, and routes that
lead what they attract under the policies.

Requests are sent and acknowledged at once, without an event loop in between: the order of a
binding, its duties and its acknowledgement is part of the protocol (RFC 6275 §10.3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWNEIGH, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dsmip_ipsec.errors import KernelError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Weaker than what anybody else would add for the same prefix.
ROUTE_METRIC = 55560

_NTF_PROXY = 0x08
_NTF_ROUTER = 0x80
_NUD_PERMANENT = 0x80
_RT_TABLE_MAIN = 254
_RTPROT_STATIC = 4
_RTN_UNICAST = 1
_RT_SCOPE_LINK = 253
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
_ANSWER_S = 5.0


class HomeLinkTables:
    """Needs CAP_NET_ADMIN in this network namespace. ``interface``: the home link, None without
    one; ``tun``: where routes lead. All methods raise KernelError; :meth:`close` undoes all."""

    def __init__(self, interface: str | None, tun: str) -> None:
        self._interface = interface
        try:
            self._link = socket.if_nametoindex(interface) if interface is not None else 0
            self._tun = socket.if_nametoindex(tun)
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
        except OSError as error:
            raise KernelError(
                f"can't serve the home link: {error.strerror}",
                errno=error.errno or 0,
                hint=f"is there an interface {interface}?",
            ) from error
        self._netlink.settimeout(_ANSWER_S)
        self._neighbours: set[Address] = set()
        self._routes: set[Network] = set()
        self._settings: list[tuple[Path, str]] = []
        if interface is not None:
            # Per interface: elsewhere this node answers for nobody.
            self._set(f"ipv6/conf/{interface}/proxy_ndp", "1")
            # RFC 6275 §10.4.1: nobody else answers for these addresses, so there is no reason to
            # wait for somebody as a proxy otherwise does (RFC 4861 §7.2.8).
            self._set(f"ipv6/neigh/{interface}/proxy_delay", "0")
            self._set(f"ipv4/neigh/{interface}/proxy_delay", "0")

    def close(self) -> None:
        """Remove everything. Never raises."""
        for address in list(self._neighbours):
            with contextlib.suppress(KernelError):
                self.remove_neighbour(address)
        for route in list(self._routes):
            with contextlib.suppress(KernelError):
                self.remove_route(route)
        for path, value in reversed(self._settings):
            with contextlib.suppress(OSError):
                path.write_text(value, encoding="ascii")
        self._settings = []
        self._netlink.close()

    def _set(self, name: str, value: str) -> None:
        path = Path("/proc/sys/net") / name
        try:
            before = path.read_text(encoding="ascii").strip()
            if before != value:
                path.write_text(value, encoding="ascii")
                self._settings.append((path, before))
        except OSError as error:
            raise KernelError(
                f"can't set {name}: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root; is IPv6 switched on there?",
            ) from error

    def add_neighbour(self, address: Address, *, router: bool = False) -> None:
        """Answer Neighbor Solicitations or ARP requests for ``address``. Idempotent."""
        flags = _NTF_PROXY | (_NTF_ROUTER if router else 0)
        self._neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, address, flags)
        self._neighbours.add(address)

    def remove_neighbour(self, address: Address) -> None:
        """No longer. Idempotent."""
        if address in self._neighbours:
            self._neighbours.remove(address)
            self._neighbour(RTM_DELNEIGH, 0, address, _NTF_PROXY)

    def add_route(self, network: Network) -> None:
        """Lead ``network`` into the TUN: policies take it before it gets there. Idempotent."""
        self._route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, network)
        self._routes.add(network)

    def remove_route(self, network: Network) -> None:
        """No longer. Idempotent."""
        if network in self._routes:
            self._routes.remove(network)
            self._route(RTM_DELROUTE, 0, network)

    def _neighbour(self, kind: int, flags: int, address: Address, entry: int) -> None:
        fields = {
            "family": _family(address),
            "ifindex": self._link,
            "state": _NUD_PERMANENT,
            "flags": entry,
        }
        what = f"proxy neighbour {address} on {self._interface}"
        self._request(what, ndmsg(), kind, flags, fields, [("NDA_DST", str(address))])

    def _route(self, kind: int, flags: int, network: Network) -> None:
        fields = {
            "family": _family(network.network_address),
            "dst_len": network.prefixlen,
            "table": _RT_TABLE_MAIN,
            "proto": _RTPROT_STATIC,
            "type": _RTN_UNICAST,
            "scope": _RT_SCOPE_LINK if network.version == 4 else 0,
        }
        attributes = [
            ("RTA_DST", str(network.network_address)),
            ("RTA_OIF", self._tun),
            ("RTA_PRIORITY", ROUTE_METRIC),
        ]
        self._request(f"route to {network}", rtmsg(), kind, flags, fields, attributes)

    def _request(
        self,
        what: str,
        message: Any,
        kind: int,
        flags: int,
        fields: dict[str, int],
        attributes: list[tuple[str, Any]],
    ) -> None:
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = attributes
        message["header"] = {
            "type": kind,
            "flags": NLM_F_REQUEST | NLM_F_ACK | flags,
            "sequence_number": 1,
        }
        message.encode()
        try:
            self._netlink.send(bytes(message.data))
            data = self._netlink.recv(65536)
        except OSError as error:
            raise KernelError(f"{what}: {error}", errno=error.errno or 0) from error
        _, answer, _, _, _ = _HEADER.unpack_from(data)
        (code,) = _ERROR.unpack_from(data, _HEADER.size) if answer == _NLMSG_ERROR else (0,)
        if code:
            raise KernelError(f"{what}: {os.strerror(-code)}", errno=-code)


def _family(address: Address) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)
