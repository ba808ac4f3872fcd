"""UDP port 4191 of our outer addresses (RFC 5555 §4.2), and what may come by it as signalling."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final

from dsmip_ipsec.errors import KernelError, WireError
from dsmip_ipsec.mobility.types import IPAddress, OuterAddress
from dsmip_ipsec.wire.ip import DSMIP_PORT, IPPROTO_ESP, IPPROTO_MH, parse_ipv6

_MAX_PACKET: Final = 65535
_INT = struct.Struct("i")
# By family: level, option to ask for it, ancillary data to set it.
_TRAFFIC_CLASS: Final = {
    4: (socket.IPPROTO_IP, socket.IP_RECVTOS, socket.IP_TOS),
    6: (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS),
}
_ANCILLARY: Final = socket.CMSG_SPACE(_INT.size)


class DsmipPort:
    """The sockets, one an address. ``on_packet`` gets each datagram's payload, where it came from,
    and the TOS or traffic class that it arrived with; ``on_error`` the ICMP errors that came for
    something sent before."""

    def __init__(
        self,
        on_packet: Callable[[bytes, OuterAddress, int], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._on_packet = on_packet
        self._on_error = on_error
        self._sockets: dict[IPAddress, socket.socket] = {}

    def bind(self, local: IPAddress) -> None:
        """Receive and send on ``local``. Idempotent. Raises KernelError."""
        if local in self._sockets:
            return
        family = socket.AF_INET if local.version == 4 else socket.AF_INET6
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.setblocking(False)
        try:
            level, option, _ = _TRAFFIC_CLASS[local.version]
            udp.setsockopt(level, option, 1)
            udp.bind((str(local), DSMIP_PORT))
        except OSError as error:
            udp.close()
            raise KernelError(
                f"can't bind UDP {local} port {DSMIP_PORT}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the address configured, and does no other daemon hold the port?",
            ) from error
        self._sockets[local] = udp
        asyncio.get_running_loop().add_reader(udp.fileno(), self._read, udp)

    def unbind(self, local: IPAddress) -> None:
        """Stop using ``local``. Idempotent."""
        udp = self._sockets.pop(local, None)
        if udp is not None:
            asyncio.get_running_loop().remove_reader(udp.fileno())
            udp.close()

    def close(self) -> None:
        """Stop using all. Idempotent."""
        for local in list(self._sockets):
            self.unbind(local)

    def send(
        self, packet: bytes, local: IPAddress, remote: OuterAddress, traffic_class: int = 0
    ) -> None:
        """Send ``packet`` as a datagram's payload, with that TOS or traffic class outside. Raises
        OSError, and KernelError if ``local`` isn't bound."""
        udp = self._sockets.get(local)
        if udp is None:
            raise KernelError(f"{local} is no longer bound", hint="the next binding has another")
        to = str(remote.address), remote.port
        if not traffic_class:
            udp.sendto(packet, to)
            return
        level, _, option = _TRAFFIC_CLASS[local.version]
        udp.sendmsg([packet], [(level, option, _INT.pack(traffic_class))], 0, to)

    def _read(self, udp: socket.socket) -> None:
        while True:
            try:
                packet, ancillary, _, (address, port, *_) = udp.recvmsg(_MAX_PACKET, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError as error:
                self._on_error(str(error.strerror))
                continue
            # The one kind that was asked for: an octet in IPv4, an int in IPv6; none when zero.
            traffic_class = int.from_bytes(ancillary[0][2], sys.byteorder) if ancillary else 0
            self._on_packet(packet, OuterAddress(ip_address(address), port), traffic_class)


def refusal(
    packet: bytes, accepts: Callable[[IPv6Address, IPv6Address], bool]
) -> tuple[str, str] | None:
    """Why a packet can't be protected signalling of a peer of ours (``accepts``: whether these
    addresses may be): a word for a counter, and details; None: ESP may look at it."""
    try:
        header, _ = parse_ipv6(packet)
    except WireError as error:
        return "not_ipv6", error.message
    if header.next_header != IPPROTO_ESP:
        # RFC 5555 §5: the binding update MUST be protected using ESP transport mode.
        what = "unprotected" if header.next_header == IPPROTO_MH else "not_esp"
        return what, f"next header {header.next_header}"
    if not accepts(header.source, header.destination):
        return "foreign", f"{header.source} -> {header.destination}"
    return None
