"""What happens to links, addresses, default routes and neighbours, as the kernel tells it.

:class:`LinkEvents` first tells what is there, then what changes. After a loss (the kernel's queue
overran) everything is told anew.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any, TypeAlias

from pyroute2.netlink.rtnl import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from dsmip_ipsec.errors import KernelError

_GROUPS = RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE
_REQUEST = struct.Struct("=IHHIIB15x")
_REQUEST_DUMP = 0x301
_NLMSG_DONE = 3
_RECEIVE = 65536  # larger buffers are slow in a UML guest

_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40
_SCOPE_UNIVERSE = 0
_SCOPE_LINK = 253
_RT_TABLE_MAIN = 254
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
_NUD_FAILED = 0x20
_FOREVER = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class LinkState:
    """Whether the interface is up and attached to something."""

    index: int
    up: bool


@dataclass(frozen=True, slots=True)
class IPv4AddressState:
    """``expires_at`` is monotonic time, None for a permanent (manual) address."""

    index: int
    address: IPv4Interface
    there: bool
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class IPv6AddressState:
    """``usable``: it may be a source address for something new (optimistic ones too)."""

    index: int
    address: IPv6Address
    usable: bool


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """An IPv4 default route of the main table came or went."""

    index: int
    gateway: IPv4Address
    there: bool


@dataclass(frozen=True, slots=True)
class NeighbourState:
    """What neighbour unreachability detection or ARP found out; ``link_address`` b"" unless
    ``reachable``."""

    index: int
    address: IPv4Address | IPv6Address
    reachable: bool
    link_address: bytes


LinkEvent: TypeAlias = (
    LinkState | IPv4AddressState | IPv6AddressState | DefaultRoute | NeighbourState
)


class LinkEvents:
    """``tell`` hears the events, from :meth:`read` and :meth:`tell_all`. Raises KernelError."""

    def __init__(self, tell: Callable[[LinkEvent], None]) -> None:
        self._tell = tell
        self._marshal = MarshalRtnl()
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _GROUPS))
            self._socket.setblocking(False)
        except OSError as error:
            raise KernelError(
                f"can't listen to the kernel's links: {error.strerror}", errno=error.errno or 0
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> None:
        """Tell what has happened."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        f"listening to the kernel's links: {error.strerror}",
                        errno=error.errno or 0,
                    ) from error
                self.tell_all()
                continue
            for message in self._marshal.parse(data):
                for event in _events(message):
                    self._tell(event)

    def tell_all(self) -> None:
        """Tell everything that is there."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
            asking.bind((0, 0))
            asking.settimeout(5)
            for kind, family in (
                (RTM_GETLINK, socket.AF_UNSPEC),
                (RTM_GETADDR, socket.AF_INET),
                (RTM_GETADDR, socket.AF_INET6),
                (RTM_GETROUTE, socket.AF_INET),
                (RTM_GETNEIGH, socket.AF_INET),
            ):
                try:
                    for event in self._dump(asking, kind, family):
                        self._tell(event)
                except OSError as error:
                    raise KernelError(
                        f"can't list the kernel's links: {error}", errno=error.errno or 0
                    ) from error

    def _dump(self, asking: socket.socket, kind: int, family: int) -> Iterator[LinkEvent]:
        asking.send(_REQUEST.pack(_REQUEST.size, kind, _REQUEST_DUMP, 1, 0, family))
        while True:
            data = asking.recv(_RECEIVE)
            for message in self._marshal.parse(data):
                if message["header"]["type"] == _NLMSG_DONE:
                    return
                yield from _events(message)


def _events(message: Any) -> Iterator[LinkEvent]:
    kind = message.get("event")
    if kind in ("RTM_NEWLINK", "RTM_DELLINK"):
        flags = message["flags"]
        up = bool(flags & _IFF_UP and flags & _IFF_LOWER_UP) and kind == "RTM_NEWLINK"
        yield LinkState(message["index"], up)
    elif kind in ("RTM_NEWADDR", "RTM_DELADDR"):
        yield from _address(message, kind == "RTM_NEWADDR")
    elif kind in ("RTM_NEWROUTE", "RTM_DELROUTE"):
        gateway, index = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF")
        table = message.get_attr("RTA_TABLE") or message["table"]
        if (
            message["family"] == socket.AF_INET
            and not message["dst_len"]
            and table == _RT_TABLE_MAIN
            and gateway
            and index
        ):
            yield DefaultRoute(index, IPv4Address(gateway), kind == "RTM_NEWROUTE")
    elif kind in ("RTM_NEWNEIGH", "RTM_DELNEIGH"):
        yield from _neighbour(message)


def _address(message: Any, there: bool) -> Iterator[LinkEvent]:
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    index = message["index"]
    if message["family"] == socket.AF_INET:
        text = message.get_attr("IFA_LOCAL")
        if text and message["scope"] == _SCOPE_UNIVERSE:
            lifetimes = message.get_attr("IFA_CACHEINFO") or {}
            valid = lifetimes.get("ifa_valid", _FOREVER)
            expires_at = None if valid == _FOREVER else time.monotonic() + valid
            address = IPv4Interface(f"{text}/{message['prefixlen']}")
            yield IPv4AddressState(index, address, there, expires_at)
    elif message["family"] == socket.AF_INET6:
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        waiting = flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC
        bad = waiting or flags & (_IFA_F_DADFAILED | _IFA_F_DEPRECATED)
        if text and message["scope"] in (_SCOPE_UNIVERSE, _SCOPE_LINK):
            yield IPv6AddressState(index, IPv6Address(text), there and not bad)


def _neighbour(message: Any) -> Iterator[LinkEvent]:
    text, state = message.get_attr("NDA_DST"), message["state"]
    if not text or message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return
    address = IPv4Address(text) if message["family"] == socket.AF_INET else IPv6Address(text)
    link_address = message.get_attr("NDA_LLADDR")
    if state & _NUD_VALID and link_address:
        octets = bytes.fromhex(link_address.replace(":", ""))
        yield NeighbourState(message["ifindex"], address, True, octets)
    elif state & _NUD_FAILED:
        yield NeighbourState(message["ifindex"], address, False, b"")
