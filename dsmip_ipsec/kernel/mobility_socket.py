"""Mobility Headers, and ICMPv6 between the same two ends (RFC 6275 §6.7, §6.8), through the
kernel's ESP, with a token that ESP would otherwise lose.

RFC 5555 §5.2.1 wants V4ADDR and the port Z of a BU's outer header passed along with the packet
into IPsec and out of it, and likewise for the BA. Two sockets do it on an unmodified kernel:

* inbound, the IPv6/ESP packet is injected by a raw socket towards this same host, with a
  per-message mark; after ESP a raw Mobility Header socket returns it with that mark
  (SO_RCVMARK, Linux 5.19);
* outbound, the Mobility Header is sent with a mark, by which a routing rule leads it into a TUN
  interface after ESP, and with a flow label, which ESP transport mode leaves as it is and by which
  the reader of the TUN knows the message again.

Natively over IPv6 (RFC 6275) the kernel's MIPv6 does the rest: a state adds the home address option
to a BU (``ipsec.desired``), another takes it off at the home agent, and the option that the socket
then sees holds the care-of address, since the kernel has exchanged the two. The type 2 routing
header of a BA is given with the message: policies and SAs are those of the home address, the
route is the care-of address's.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv6Address

from dsmip_ipsec.errors import KernelError, WireError
from dsmip_ipsec.wire.exthdr import encode_type2_routing, parse_extension_headers
from dsmip_ipsec.wire.ip import IPPROTO_DSTOPTS, IPPROTO_ICMPV6, IPPROTO_MH

# Not in Python's socket module: asm-generic/socket.h, linux/in6.h.
_SO_RCVMARK = 75
_IPV6_FLOWINFO = 11
_IPV6_TRANSPARENT = 75
_ICMPV6_FILTER = 1  # linux/icmpv6.h
_MARK = struct.Struct("=I")
_FLOWINFO = struct.Struct("!I")
_PKTINFO = struct.Struct("=16si")
_MAX_EXTENSION = 8 + 255 * 8  # octets of an extension header
_ANCILLARY = (
    socket.CMSG_SPACE(_MARK.size)
    + socket.CMSG_SPACE(_PKTINFO.size)
    + 2 * socket.CMSG_SPACE(_MAX_EXTENSION)
)

MAX_MESSAGE = 2048  # a Mobility Header has at most 8 + 255 * 8 octets (RFC 6275 §6.1.1)


@dataclass(frozen=True, slots=True)
class ReceivedMobility:
    """A message as it left ESP. ``mark`` is 0 when the packet wasn't injected by us.

    ``care_of_address`` is where a packet with a home address option came from; ``source`` is then
    the home address. ``routed``: it had a routing header. The kernel lets neither header in
    without a policy that names it.
    """

    source: IPv6Address
    destination: IPv6Address
    mark: int
    message: bytes
    care_of_address: IPv6Address | None = None
    routed: bool = False


class MobilitySocket:
    """The pair of raw sockets. Needs CAP_NET_RAW and CAP_NET_ADMIN in this network namespace.

    ``icmpv6_types``: it is for these ICMPv6 messages instead of Mobility Headers.
    Raises KernelError where the kernel lacks SO_RCVMARK or refuses a raw socket.
    """

    def __init__(self, icmpv6_types: Collection[int] = ()) -> None:
        self._what = "ICMPv6 message" if icmpv6_types else "Mobility Header"
        try:
            self._mobility = socket.socket(
                socket.AF_INET6, socket.SOCK_RAW, IPPROTO_ICMPV6 if icmpv6_types else IPPROTO_MH
            )
        except OSError as error:
            raise KernelError(
                f"can't open a raw {self._what} socket: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root (or with CAP_NET_RAW and CAP_NET_ADMIN)",
            ) from error
        try:
            if icmpv6_types:
                self._mobility.setsockopt(IPPROTO_ICMPV6, _ICMPV6_FILTER, _filter(icmpv6_types))
            self._mobility.setblocking(False)
            self._mobility.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._mobility.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVDSTOPTS, 1)
            self._mobility.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVRTHDR, 1)
            self._mobility.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
            self._injection = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._injection.setblocking(False)
            # The kernel looks policies up by the flow's addresses before it sees the header; with
            # a source that isn't local it takes the packet's own and not one of ours.
            self._injection.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        except OSError as error:
            self._mobility.close()
            raise KernelError(
                f"the raw {self._what} socket can't report marks: {error.strerror}",
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
        """Send a message through the ESP policy and by the rule for ``mark``.

        Raises KernelError: EAGAIN or ENOENT mean that the policy found no SA.
        """
        ancillary = [
            (socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark)),
            (socket.IPPROTO_IPV6, _IPV6_FLOWINFO, _FLOWINFO.pack(flow_label)),
            (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(source.packed, 0)),
        ]
        self._send(message, ancillary, source, destination)

    def send_native(
        self,
        message: bytes,
        source: IPv6Address,
        destination: IPv6Address,
        *,
        care_of_address: IPv6Address | None = None,
        mark: int = 0,
    ) -> None:
        """Send a message through the ESP policy and over IPv6, between home address and
        home agent.

        ``care_of_address``: of the mobile node that a home agent answers: the message goes there,
        with a type 2 routing header. A mobile node's home address option comes from the state for
        it. ``mark``: by a rule for it, the packet finds some route from its home address; the state
        for the option then looks for the one from the care-of address.
        Raises KernelError as :meth:`send` does.
        """
        ancillary = [
            (socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark)),
            (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(source.packed, 0)),
        ]
        if care_of_address is not None:
            # The kernel exchanges this address with the destination before it looks for a route.
            header = encode_type2_routing(care_of_address, 0)
            ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header))
        self._send(message, ancillary, source, destination)

    def _send(
        self,
        message: bytes,
        ancillary: list[tuple[int, int, bytes]],
        source: IPv6Address,
        destination: IPv6Address,
    ) -> None:
        try:
            self._mobility.sendmsg([message], ancillary, 0, (str(destination), 0))
        except OSError as error:
            raise KernelError(
                f"can't send a {self._what} from {source} to {destination}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the signalling SA up, and is the source an address of this host?",
            ) from error

    def receive(self) -> ReceivedMobility | None:
        """Return the next message, None when none waits."""
        try:
            message, ancillary, _, sender = self._mobility.recvmsg(MAX_MESSAGE, _ANCILLARY)
        except BlockingIOError:
            return None
        mark, destination, care_of_address, routed = 0, IPv6Address(0), None, False
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SO_MARK:
                (mark,) = _MARK.unpack(data)
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination = IPv6Address(_PKTINFO.unpack(data)[0])
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_DSTOPTS:
                care_of_address = _home_address_option(data) or care_of_address
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_RTHDR:
                routed = True
        source = IPv6Address(sender[0].partition("%")[0])
        return ReceivedMobility(source, destination, mark, message, care_of_address, routed)


def _filter(types: Collection[int]) -> bytes:
    """``struct icmp6_filter``: a bit set for each type that is not to be passed (RFC 3542 §3.2)."""
    bits = bytearray(b"\xff" * 32)
    for number in types:
        word = memoryview(bits)[number // 32 * 4 :][:4]
        word[:] = (_MARK.unpack(word)[0] & ~(1 << number % 32)).to_bytes(4, sys.byteorder)
    return bytes(bits)


def _home_address_option(header: bytes) -> IPv6Address | None:
    """The address in the home address option of a destination options header (RFC 6275 §6.3)."""
    try:
        return parse_extension_headers(IPPROTO_DSTOPTS, header)[0].home_address
    except WireError:  # the kernel has checked it, and took it as having none
        return None
