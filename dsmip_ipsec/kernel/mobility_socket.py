"""Mobility Headers through the kernel's ESP, with a token that ESP would otherwise lose.

RFC 5555 §5.2.1 wants V4ADDR and the port Z of a BU's outer header passed along with the packet
into IPsec and out of it, and likewise for the BA. Two sockets do it on an unmodified kernel:

* inbound, the IPv6/ESP packet is injected by a raw socket towards this same host, with a
  per-message mark; after ESP a raw Mobility Header socket returns it with that mark
  (SO_RCVMARK, Linux 5.19);
* outbound, the Mobility Header is sent with a mark, by which a routing rule leads it into a TUN
  interface after ESP, and with a flow label, which ESP transport mode leaves as it is and by which
  the reader of the TUN knows the message again.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.wire.ip import IPPROTO_MH

# Not in Python's socket module: asm-generic/socket.h, linux/in6.h.
_SO_RCVMARK = 75
_IPV6_FLOWINFO = 11
_IPV6_TRANSPARENT = 75
_MARK = struct.Struct("=I")
_FLOWINFO = struct.Struct("!I")
_PKTINFO = struct.Struct("=16si")
_ANCILLARY = socket.CMSG_SPACE(_MARK.size) + socket.CMSG_SPACE(_PKTINFO.size)

MAX_MESSAGE = 2048  # a Mobility Header has at most 8 + 255 * 8 octets (RFC 6275 §6.1.1)


@dataclass(frozen=True, slots=True)
class ReceivedMobility:
    """A Mobility Header as it left ESP. ``mark`` is 0 when the packet wasn't injected by us."""

    source: IPv6Address
    destination: IPv6Address
    mark: int
    message: bytes


class MobilitySocket:
    """The pair of raw sockets. Needs CAP_NET_RAW and CAP_NET_ADMIN in this network namespace.

    Raises KernelError where the kernel lacks SO_RCVMARK or refuses a raw socket.
    """

    def __init__(self) -> None:
        try:
            self._mobility = socket.socket(socket.AF_INET6, socket.SOCK_RAW, IPPROTO_MH)
        except OSError as error:
            raise KernelError(
                f"can't open a raw Mobility Header socket: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root (or with CAP_NET_RAW and CAP_NET_ADMIN)",
            ) from error
        try:
            self._mobility.setblocking(False)
            self._mobility.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._mobility.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
            self._injection = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._injection.setblocking(False)
            # The kernel looks policies up by the flow's addresses before it sees the header; with
            # a source that isn't local it takes the packet's own and not one of ours.
            self._injection.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        except OSError as error:
            self._mobility.close()
            raise KernelError(
                f"the raw Mobility Header socket can't report marks: {error.strerror}",
                errno=error.errno or 0,
                hint="SO_RCVMARK came with Linux 5.19; `dsmip-ipsec doctor` tells what is there",
            ) from error

    def fileno(self) -> int:
        return self._mobility.fileno()

    def close(self) -> None:
        self._mobility.close()
        self._injection.close()

    def inject(
        self, packet: bytes, source: IPv6Address, destination: IPv6Address, mark: int
    ) -> None:
        """Hand ``packet`` (IPv6 and ESP, addressed to this host) to the kernel's input.

        ``source`` and ``destination`` are those of its header. Raises KernelError when the kernel
        refuses it.
        """
        ancillary = [
            (socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark)),
            (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(source.packed, 0)),
        ]
        try:
            self._injection.sendmsg(
                [packet],
                ancillary,
                0,
                (str(destination), 0),
            )
        except OSError as error:
            raise KernelError(
                f"can't inject a packet to {destination}: {error.strerror}",
                errno=error.errno or 0,
                hint=f"is {destination} an address of this host?",
            ) from error

    def send(
        self,
        message: bytes,
        source: IPv6Address,
        destination: IPv6Address,
        *,
        mark: int,
        flow_label: int,
    ) -> None:
        """Send a Mobility Header through the ESP policy and by the rule for ``mark``.

        Raises KernelError: EAGAIN or ENOENT mean that the policy found no SA.
        """
        ancillary = [
            (socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark)),
            (socket.IPPROTO_IPV6, _IPV6_FLOWINFO, _FLOWINFO.pack(flow_label)),
            (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(source.packed, 0)),
        ]
        try:
            self._mobility.sendmsg([message], ancillary, 0, (str(destination), 0))
        except OSError as error:
            raise KernelError(
                f"can't send a Mobility Header from {source} to {destination}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the signalling SA up, and is the source an address of this host?",
            ) from error

    def receive(self) -> ReceivedMobility | None:
        """Return the next message, None when none waits."""
        try:
            message, ancillary, _, sender = self._mobility.recvmsg(MAX_MESSAGE, _ANCILLARY)
        except BlockingIOError:
            return None
        mark, destination = 0, IPv6Address(0)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SO_MARK:
                (mark,) = _MARK.unpack(data)
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination = IPv6Address(_PKTINFO.unpack(data)[0])
        source = IPv6Address(sender[0].partition("%")[0])
        return ReceivedMobility(source, destination, mark, message)
