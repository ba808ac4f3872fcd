"""IPv6 packets with a Home Address option or a type 2 routing header, in and out, by ourselves.

The kernel's own Mobile IPv6 wants an XFRM state for each home address before it lets such a packet
in, forgets the care-of address on the way, and needs its policies changed at each handover. Instead
our signalling leaves the two headers to this module: a packet socket sees them before the kernel
drops them for want of a state; what is inside goes into ESP as if it had come by UDP; and what
comes out of ESP gets the headers put around it and is sent by a raw socket. ESP in transport mode
authenticates neither of them (RFC 4303 §3.1.1), so nothing is lost.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.kernel import socket_filter as bpf
from dsmip_ipsec.wire.exthdr import (
    encode_home_address,
    encode_type2_routing,
    final_addresses,
    parse_extension_headers,
)
from dsmip_ipsec.wire.ip import (
    IPPROTO_DSTOPTS,
    IPPROTO_ROUTING,
    parse_ipv6,
)

# Not in Python's socket module: linux/if_ether.h, if_packet.h, in6.h.
_ETH_P_IPV6 = 0x86DD
_IPV6_TRANSPARENT = 75
_PKTINFO = struct.Struct("=16si")
_PACKET_HOST = 0
_MAX_PACKET = 65535

_FIXED_HEADER = 40

# What starts at the IPv6 header is addressed to this host, and has destination options or a routing
# header as its first one.
_FILTER = (
    (bpf.LOAD_WORD, 0, 0, bpf.PACKET_TYPE),
    (bpf.JUMP_EQUAL, 0, 4, _PACKET_HOST),
    (bpf.LOAD_OCTET, 0, 0, 6),
    (bpf.JUMP_EQUAL, 1, 0, IPPROTO_DSTOPTS),
    (bpf.JUMP_EQUAL, 0, 1, IPPROTO_ROUTING),
    (bpf.RETURN, 0, 0, bpf.ALL),
    (bpf.RETURN, 0, 0, 0),
)


@dataclass(frozen=True, slots=True)
class NativePacket:
    """A packet that came in by IPv6. ``source`` and ``destination`` are those of its header; the
    home addresses are of the option and the routing header. ``inner`` is the packet as upper
    layers are to see it: home addresses in their places, no such header; ``protocol`` is the
    header that it then begins with."""

    source: IPv6Address
    destination: IPv6Address
    protocol: int
    inner: bytes
    home_address_option: IPv6Address | None
    type2_routing: IPv6Address | None

    @property
    def inner_source(self) -> IPv6Address:
        return self.home_address_option or self.source

    @property
    def inner_destination(self) -> IPv6Address:
        return self.type2_routing or self.destination


def unwrap(packet: bytes) -> NativePacket | None:
    """Read an IPv6 packet. None for one without either header. Raises WireError."""
    header, payload = parse_ipv6(packet)
    extension, rest = parse_extension_headers(header.next_header, payload)
    if extension.home_address is None and extension.routing_home_address is None:
        return None
    source, destination = final_addresses(header, extension)
    inner = (
        packet[:4]
        + struct.pack("!HBB", len(rest), extension.protocol, header.hop_limit)
        + source.packed
        + destination.packed
        + rest
    )
    return NativePacket(
        header.source,
        header.destination,
        extension.protocol,
        inner,
        extension.home_address,
        extension.routing_home_address,
    )


def wrap(
    packet: bytes,
    source: IPv6Address,
    destination: IPv6Address,
    *,
    home_address_option: IPv6Address | None = None,
    type2_routing: IPv6Address | None = None,
) -> bytes:
    """``packet`` (IPv6 between home addresses, without extension headers) as it goes on the wire:
    with the other addresses, the headers, and a zero flow label. Raises EncodeError."""
    next_header = packet[6]
    headers = b""
    if home_address_option is not None:
        headers = encode_home_address(home_address_option, next_header)
        next_header = IPPROTO_DSTOPTS
    if type2_routing is not None:  # in front of the option (RFC 6275 §6.3)
        headers = encode_type2_routing(type2_routing, next_header) + headers
        next_header = IPPROTO_ROUTING
    payload = headers + packet[_FIXED_HEADER:]
    return (
        packet[:1]
        + bytes((packet[1] & 0xF0, 0, 0))
        + struct.pack("!HBB", len(payload), next_header, packet[7])
        + source.packed
        + destination.packed
        + payload
    )


class NativeSocket:
    """The packet socket and the raw one. Needs CAP_NET_RAW and CAP_NET_ADMIN in this network
    namespace. Raises KernelError."""

    def __init__(self) -> None:
        try:
            self._capture = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IPV6)
            )
        except OSError as error:
            raise KernelError(
                f"can't open a packet socket: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root (or with CAP_NET_RAW); the kernel needs CONFIG_PACKET",
            ) from error
        try:
            self._capture.setblocking(False)
            bpf.attach(self._capture, _FILTER)
            while self.receive() is not None:  # what came before the filter stood
                pass
            self._raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._raw.setblocking(False)
            self._raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        except OSError as error:
            self._capture.close()
            raise KernelError(
                f"can't set up a packet socket: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root (or with CAP_NET_RAW and CAP_NET_ADMIN)",
            ) from error

    def fileno(self) -> int:
        return self._capture.fileno()

    def close(self) -> None:
        self._capture.close()
        self._raw.close()

    def receive(self) -> bytes | None:
        """The next IPv6 packet with extension headers, None when none waits."""
        try:
            return self._capture.recv(_MAX_PACKET)
        except BlockingIOError:
            return None
        except OSError:  # an interface went away: ENETDOWN, once
            return b""

    def send(self, packet: bytes, source: IPv6Address, destination: IPv6Address) -> None:
        """Send a whole IPv6 packet, routed by ``source``. Raises KernelError."""
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(source.packed, 0))]
        try:
            self._raw.sendmsg([packet], ancillary, 0, (str(destination), 0))
        except OSError as error:
            raise KernelError(
                f"can't send from {source} to {destination}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the source an address of this host, and is there a route from it?",
            ) from error
