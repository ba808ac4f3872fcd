"""Batches of rtnetlink requests: a namespace's links, addresses, routes and queues in one send.

The messages are pyroute2's; its :class:`IPRoute` would send and await them one by one, through an
event loop, which in a guest kernel costs ten times as much as the work itself.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
)
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    TC_H_ROOT,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_netem, tcmsg

from ..errors import LabError
from .routes import Route
from .spec_models import Impairment

Attributes = list[tuple[str, Any]]

IFF_UP = 1
IFA_F_NODAD = 2
NLMSG_ERROR = 2
RTPROT_STATIC = 4
RT_TABLE_MAIN = 254
RTN_UNICAST = 1

# struct nlmsghdr: length, type, flags, sequence, pid; then struct nlmsgerr's error.
_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
# Requests in one send. Their acknowledgements must fit the socket's receive buffer (about 800
# octets of kernel memory each, of 212 992 by default).
_CHUNK = 100

_CREATE = NLM_F_CREATE | NLM_F_EXCL
_REPLACE = NLM_F_CREATE | NLM_F_REPLACE


class Batch:
    """Requests to send together, each with the words that an error about it starts with."""

    def __init__(self) -> None:
        self._requests: list[tuple[str, bytes]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def _add(
        self,
        what: str,
        message: Any,
        kind: int,
        flags: int,
        fields: dict[str, int],
        attributes: Attributes,
    ) -> None:
        for field, value in fields.items():
            message[field] = value
        message["attrs"] = attributes
        message["header"] = {
            "type": kind,
            "flags": NLM_F_REQUEST | NLM_F_ACK | flags,
            "sequence_number": len(self._requests),
        }
        message.encode()
        self._requests.append((what, bytes(message.data)))

    def veth(
        self, name: str, index: int, peer: str, peer_index: int, peer_netns: int, **more: int
    ) -> None:
        """A veth pair, its other end in the namespace of the open file ``peer_netns``.

        ``more``: further attributes of this end (``IFLA_MASTER=…``).
        """
        there: Attributes = [("IFLA_IFNAME", peer), ("IFLA_NET_NS_FD", peer_netns)]
        data = {"attrs": [("VETH_INFO_PEER", {"index": peer_index, "attrs": there})]}
        self._link(name, index, "veth", data, more)

    def bridge(self, name: str, index: int) -> None:
        """A bridge without multicast snooping: neighbour discovery must pass at once."""
        self._link(name, index, "bridge", {"attrs": [("IFLA_BR_MCAST_SNOOPING", 0)]}, {})

    def _link(
        self, name: str, index: int, kind: str, data: dict[str, Any], more: dict[str, int]
    ) -> None:
        info: Attributes = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data)]
        attributes: Attributes = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})]
        attributes += more.items()
        fields = {"index": index}
        self._add(
            f"creating the {kind} '{name}'", ifinfmsg(), RTM_NEWLINK, _CREATE, fields, attributes
        )

    def set_link(self, index: int, *, up: bool | None = None, mtu: int | None = None) -> None:
        """Set an interface up or down, or its MTU in octets."""
        fields = {"index": index}
        if up is not None:
            fields |= {"flags": IFF_UP if up else 0, "change": IFF_UP}
        attributes: Attributes = [] if mtu is None else [("IFLA_MTU", mtu)]
        self._add(f"setting up interface {index}", ifinfmsg(), RTM_NEWLINK, 0, fields, attributes)

    def address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Add an address, usable at once (no duplicate address detection)."""
        self._address(index, address, RTM_NEWADDR, _REPLACE, f"adding the address {address}")

    def remove_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Remove an address."""
        self._address(index, address, RTM_DELADDR, 0, f"removing the address {address}")

    def _address(
        self, index: int, address: IPv4Interface | IPv6Interface, kind: int, flags: int, what: str
    ) -> None:
        network = address.network
        fields = {
            "family": _family(address.ip),
            "prefixlen": network.prefixlen,
            "index": index,
            "flags": IFA_F_NODAD if address.version == 6 else 0,
        }
        attributes: Attributes = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
        if address.version == 4 and network.prefixlen < 31:
            attributes.append(("IFA_BROADCAST", str(network.broadcast_address)))
        self._add(what, ifaddrmsg(), kind, flags, fields, attributes)

    def route(self, index: int, route: Route) -> None:
        """Add or replace a static route on interface ``index``."""
        fields = {
            "family": _family(route.gateway),
            "dst_len": route.destination.prefixlen,
            "table": RT_TABLE_MAIN,
            "proto": RTPROT_STATIC,
            "type": RTN_UNICAST,
        }
        attributes: Attributes = [("RTA_GATEWAY", str(route.gateway)), ("RTA_OIF", index)]
        if route.destination.prefixlen:
            attributes.insert(0, ("RTA_DST", str(route.destination.network_address)))
        what = f"adding the route {route.destination} via {route.gateway}"
        self._add(what, rtmsg(), RTM_NEWROUTE, _REPLACE, fields, attributes)

    def netem(self, index: int, impairment: Impairment) -> None:
        """Impair what leaves interface ``index``; the queue holds a second of full-size frames."""
        given: dict[str, Any] = {
            "delay": round(impairment.delay_ms * 1000),
            "jitter": round(impairment.jitter_ms * 1000),
            "loss": impairment.loss_percent,
            "limit": 10_000,
        }
        if impairment.rate_kbit is not None:
            given["rate"] = f"{impairment.rate_kbit}kbit"
        parameters = sched_netem.get_parameters(given)
        fields = {"index": index, "parent": TC_H_ROOT}
        attributes: Attributes = [("TCA_KIND", "netem"), ("TCA_OPTIONS", parameters)]
        what = f"impairing interface {index} (netem)"
        self._add(what, tcmsg(), RTM_NEWQDISC, _REPLACE, fields, attributes)

    def send(self) -> None:
        """Send everything to the kernel, in the calling thread's namespace, and clear the batch.

        :raises LabError: the first request that the kernel refused, in its own words. Those after
            it have been tried too.
        """
        requests, self._requests = self._requests, []
        if not requests:
            return
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.bind((0, 0))
            netlink.settimeout(10)
            refused: dict[int, int] = {}
            for start in range(0, len(requests), _CHUNK):
                chunk = requests[start : start + _CHUNK]
                netlink.sendto(b"".join(data for _, data in chunk), (0, 0))
                refused |= _acknowledgements(netlink, len(chunk))
        if refused:
            first = min(refused)
            raise LabError(
                f"{requests[first][0]} failed: {os.strerror(refused[first])}",
                hint="`dsmip-ipsec doctor` shows what this kernel can do",
            )


def _acknowledgements(netlink: socket.socket, count: int) -> dict[int, int]:
    """Read ``count`` acknowledgements: sequence number → errno of those that failed."""
    refused: dict[int, int] = {}
    while count > 0:
        try:
            data = netlink.recv(65536)
        except TimeoutError:
            raise LabError("the kernel doesn't answer netlink requests", hint="try again") from None
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            if kind == NLMSG_ERROR:
                count -= 1
                (error,) = _ERROR.unpack_from(data, offset + _HEADER.size)
                if error:
                    refused[sequence] = -error
            offset += (length + 3) & ~3
    return refused


def _family(address: IPv4Address | IPv6Address) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def indices(names: Sequence[str]) -> dict[str, int]:
    """Interface numbers for the links ``names``: the same in every namespace, so that one batch
    can name what it only just creates."""
    return {name: number for number, name in enumerate(names, start=100)}
