"""The network side of user-space IPsec: ESP by itself and ESP in UDP, over IPv4 sockets.

For kernels without ESP. A raw socket receives packets of protocol 50; a UDP socket on port 4500 of
each care-of address receives what is encapsulated (RFC 3948), and keeps the kernel from answering
it with ICMP errors. Another raw socket of each care-of address sends whole IPv4 packets: bound to
it, so that the packets go by that address's routes. Without that, what was sent between an SA's
move and the route's left by the old network with the new one's address, past the NAT.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.wire.esp import KEEPALIVE
from dsmip_ipsec.wire.ip import (
    IKE_NATT_PORT,
    IPPROTO_ESP,
    build_udp4,
)

_log = logging.getLogger(__name__)
_MAX_PACKET: Final = 65535
_BURST: Final = 64
"""Packets read in a row before other tasks get their turn."""
_ANCILLARY: Final = socket.CMSG_SPACE(1)
_HINT: Final = "run as root (CAP_NET_RAW) in the node's network namespace"


class Outside:
    """``on_packet`` gets each whole IPv4 packet that may be ESP's.

    ``counters``: ``outside.sent``, ``outside.received``, and what could not be sent:
    ``outside.too_big``, ``outside.send_failed``, ``outside.not_ipv4``.
    """

    def __init__(self, on_packet: Callable[[bytes], None]) -> None:
        self._on_packet = on_packet
        self._raw: socket.socket | None = None
        self._udp: dict[IPv4Address, socket.socket] = {}
        self._senders: dict[bytes, socket.socket] = {}  # by the packed source address
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        """Begin, in the running loop. Raises KernelError."""
        try:
            self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_ESP)
        except OSError as error:
            raise KernelError(
                f"can't open a raw socket for ESP: {error.strerror}",
                errno=error.errno or 0,
                hint=_HINT,
            ) from error
        self._raw.setblocking(False)
        self._raw.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        asyncio.get_running_loop().add_reader(self._raw.fileno(), self._read_raw, self._raw)

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        for local in list(self._udp):
            self.unbind(local)
        if self._raw is not None:
            asyncio.get_running_loop().remove_reader(self._raw.fileno())
            self._raw.close()
            self._raw = None

    def bind(self, local: IPv4Address) -> None:
        """Receive on port 4500 of ``local``. Idempotent. Raises KernelError."""
        if local in self._udp:
            return
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)  # ECN counts (RFC 6040)
        try:
            udp.bind((str(local), IKE_NATT_PORT))
            self._senders[local.packed] = _sender(local)
        except OSError as error:
            udp.close()
            raise KernelError(
                f"can't bind UDP {local}:{IKE_NATT_PORT}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the address configured, and is no IKE daemon running here? it would "
                "hold the port",
            ) from error
        self._udp[local] = udp
        asyncio.get_running_loop().add_reader(udp.fileno(), self._read_udp, udp, local)

    def unbind(self, local: IPv4Address) -> None:
        """Stop using ``local``. Idempotent."""
        udp = self._udp.pop(local, None)
        if udp is not None:
            asyncio.get_running_loop().remove_reader(udp.fileno())
            udp.close()
            self._senders.pop(local.packed).close()

    def send(self, packet: bytes) -> None:
        """Send a whole IPv4 packet. Failures are counted: IP promises no delivery."""
        if self._raw is None or packet[0] >> 4 != 4:
            self.counters["outside.not_ipv4"] += 1
            return
        destination = socket.inet_ntoa(packet[16:20])
        # A source that isn't ours any more: whatever way there is.
        sender = self._senders.get(packet[12:16], self._raw)
        try:
            sender.sendto(packet, (destination, 0))
        except OSError as error:
            too_big = error.errno == errno.EMSGSIZE
            self.counters["outside.too_big" if too_big else "outside.send_failed"] += 1
            _log.debug("not sent to %s: %s", destination, error.strerror)
        else:
            self.counters["outside.sent"] += 1

    def keep_alive(self, local: IPv4Address, remote: str, port: int) -> None:
        """Send a NAT keepalive (RFC 3948 §2.3), if ``local`` is one of our addresses."""
        udp = self._udp.get(local)
        if udp is not None:
            with suppress(OSError):  # the next one may get through
                udp.sendto(KEEPALIVE, (remote, port))

    def _read_raw(self, raw: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                packet = raw.recv(_MAX_PACKET)
            except BlockingIOError:
                return
            except OSError as error:
                _log.debug("raw socket: %s", error.strerror)
                continue
            self._received(packet)

    def _read_udp(self, udp: socket.socket, local: IPv4Address) -> None:
        for _ in range(_BURST):
            try:
                payload, ancillary, _, (address, port) = udp.recvmsg(_MAX_PACKET, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error for something sent before
                _log.debug("UDP socket of %s: %s", local, error.strerror)
                continue
            source = IPv4Address(address)
            if len(payload) + 28 > _MAX_PACKET:
                continue  # longer than any IPv4 packet could have brought
            # The engine wants what was on the wire; what the socket took off can be put back.
            tos = next((data[0] for _, kind, data in ancillary if kind == socket.IP_TOS), 0)
            self._received(
                build_udp4(source, port, local, IKE_NATT_PORT, payload, tos=tos, checksum=False)
            )

    def _received(self, packet: bytes) -> None:
        self.counters["outside.received"] += 1
        self._on_packet(packet)


def _sender(local: IPv4Address) -> socket.socket:
    """A socket that sends whole packets by the routes of ``local``, and receives nothing. Raises
    OSError."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    try:
        raw.setblocking(False)
        raw.bind((str(local), 0))
    except OSError:
        raw.close()
        raise
    return raw
