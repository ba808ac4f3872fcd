"""ICMPv6 in clear, of chosen types: home agent address discovery (RFC 6275 §6.5, §6.6)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from dsmip_ipsec.errors import KernelError

# linux/icmpv6.h, linux/in6.h: not in Python's socket module.
_ICMPV6_FILTER = 1
_IPV6_JOIN_ANYCAST = 27
_PKTINFO = struct.Struct("=16si")
_MREQ = struct.Struct("=16si")
MAX_MESSAGE: Final = 65535


@dataclass(frozen=True, slots=True)
class ReceivedIcmp:
    """``message`` with its checksum, which the kernel has verified."""

    source: IPv6Address
    destination: IPv6Address
    message: bytes


class IcmpSocket:
    """Hears ICMPv6 messages of ``types`` (0 to 255) and sends any. Needs CAP_NET_RAW in this
    network namespace. Raises KernelError."""

    def __init__(self, types: Collection[int]) -> None:
        blocked = [0xFFFFFFFF] * 8
        for kind in types:
            blocked[kind >> 5] &= ~(1 << (kind & 31))
        try:
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self._socket.setblocking(False)
            self._socket.setsockopt(
                socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *blocked)
            )
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            while self.receive() is not None:  # what came before the filter stood
                pass
        except OSError as error:
            raise KernelError(
                f"can't open a raw ICMPv6 socket: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root (or with CAP_NET_RAW)",
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Leaves the anycast groups, too."""
        self._socket.close()

    def join_anycast(self, address: IPv6Address, interface: str | None) -> None:
        """Take what is sent to ``address``, on the link of ``interface`` (None: wherever the route
        to it leads) as long as the socket is open. Needs CAP_NET_ADMIN. Raises KernelError."""
        try:
            index = socket.if_nametoindex(interface) if interface is not None else 0
            self._socket.setsockopt(
                socket.IPPROTO_IPV6, _IPV6_JOIN_ANYCAST, _MREQ.pack(address.packed, index)
            )
        except OSError as error:
            raise KernelError(
                f"can't take the anycast address {address}: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root; is there an interface with that prefix?",
            ) from error

    def receive(self) -> ReceivedIcmp | None:
        """The next message, None when none waits."""
        try:
            message, ancillary, _, sender = self._socket.recvmsg(
                MAX_MESSAGE, socket.CMSG_SPACE(_PKTINFO.size)
            )
        except BlockingIOError:
            return None
        destination = IPv6Address(0)
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination = IPv6Address(_PKTINFO.unpack(data)[0])
        return ReceivedIcmp(IPv6Address(sender[0].partition("%")[0]), destination, message)

    def send(self, message: bytes, source: IPv6Address, destination: IPv6Address) -> None:
        """Send a whole message, routed by ``source``. Raises KernelError."""
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(source.packed, 0))]
        try:
            self._socket.sendmsg([message], ancillary, 0, (str(destination), 0))
        except OSError as error:
            raise KernelError(
                f"can't send ICMPv6 from {source} to {destination}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the source an address of this host, and is there a route from it?",
            ) from error
