"""The signalling path: UDP 4191 <-> kernel ESP <-> Mobility Headers, tokens and all.

Used by the mobile node and the home agent alike. Inbound, a datagram's inner packet goes into the
kernel's ESP input with a token that stands for its outer source; what ESP lets through comes back
with the token. Outbound, a message goes through the kernel's ESP output with a token that stands
for the outer addresses; the protected packet comes out of a TUN with it and is put into UDP
(RFC 5555 §4.2, §5.2.1).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.errors import KernelError, WireError
from dsmip_ipsec.kernel.mobility_socket import MobilitySocket
from dsmip_ipsec.kernel.tun import MAX_PACKET, TUN_NAME, open_tun
from dsmip_ipsec.mobility.token import FLOW_LABEL_BITS, TokenTable
from dsmip_ipsec.mobility.types import MobilityPacket, OuterAddress, SendMobility
from dsmip_ipsec.wire.ip import DSMIP_PORT, IPPROTO_ESP, IPPROTO_MH, parse_ipv6

log = logging.getLogger(__name__)

# Marks with these upper bits belong to the signalling path: one rule leads outgoing messages into
# the TUN, and the lower bits of an injected packet's mark are its token.
MARK_PATTERN = 0xD5000000
MARK_MASK = 0xFF000000
TOKEN_LIFETIME_S = 2.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a protected message leaves: from the UDP socket of ``local`` to ``remote``."""

    local: IPv4Address
    remote: OuterAddress


class SignallingPath:
    """Owns the TUN, the raw sockets and the UDP sockets; opened and closed by the daemon.

    ``on_message`` gets each Mobility Header that ESP has let through. ``accepts`` says whether the
    addresses of an inner packet are those of a peer of ours; everything else is dropped and
    counted in ``counters`` (names ``signalling.<what>``).
    """

    def __init__(
        self,
        *,
        random_bits: Callable[[int], int],
        accepts: Callable[[IPv6Address, IPv6Address], bool],
        on_message: Callable[[MobilityPacket], None],
    ) -> None:
        self._marks: TokenTable[OuterAddress] = TokenTable(
            random_bits, pattern=MARK_PATTERN, pattern_mask=MARK_MASK, lifetime=TOKEN_LIFETIME_S
        )
        self._labels: TokenTable[Route] = TokenTable(
            random_bits, width=FLOW_LABEL_BITS, lifetime=TOKEN_LIFETIME_S
        )
        self._accepts = accepts
        self._on_message = on_message
        self._udp: dict[IPv4Address, socket.socket] = {}
        self._tun = -1
        self._mobility: MobilitySocket | None = None
        self._counters: Counter[str] = Counter()

    @property
    def counters(self) -> dict[str, int]:
        """Counts by name. ``signalling.stopped_by_ipsec`` are injected packets that never came
        back from the kernel: no SA, another peer's SA, a bad ICV, a replay."""
        self._marks.expire(asyncio.get_running_loop().time())
        return {**self._counters, "signalling.stopped_by_ipsec": self._marks.expired}

    def open(self) -> None:
        """Create the TUN interface and the raw sockets. Raises KernelError."""
        self._tun = open_tun(TUN_NAME)
        try:
            self._mobility = MobilitySocket()
        except KernelError:
            os.close(self._tun)
            self._tun = -1
            raise
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tun, self._read_tun)
        loop.add_reader(self._mobility.fileno(), self._read_mobility)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for local in list(self._udp):
            self.unbind(local)
        if self._mobility is not None:
            loop.remove_reader(self._mobility.fileno())
            self._mobility.close()
            self._mobility = None
        if self._tun >= 0:
            loop.remove_reader(self._tun)
            os.close(self._tun)
            self._tun = -1

    def bind(self, local: IPv4Address) -> None:
        """Receive and send on port 4191 of ``local``. Idempotent. Raises KernelError."""
        if local in self._udp:
            return
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        try:
            udp.bind((str(local), DSMIP_PORT))
        except OSError as error:
            udp.close()
            raise KernelError(
                f"can't bind UDP {local}:{DSMIP_PORT}: {error.strerror}",
                errno=error.errno or 0,
                hint="is the address configured, and does no other daemon hold the port?",
            ) from error
        self._udp[local] = udp
        asyncio.get_running_loop().add_reader(udp.fileno(), self._read_udp, udp)

    def unbind(self, local: IPv4Address) -> None:
        """Stop using ``local``. Idempotent."""
        udp = self._udp.pop(local, None)
        if udp is not None:
            asyncio.get_running_loop().remove_reader(udp.fileno())
            udp.close()

    def send(self, output: SendMobility) -> None:
        """Send what an engine wants sent. A failure is logged and counted: engines retransmit."""
        if not isinstance(output.local, IPv4Address) or output.remote is None:
            self._drop("native_unsupported", "natively over IPv6: not built yet")
            return
        now = asyncio.get_running_loop().time()
        token = self._labels.issue(Route(output.local, output.remote), now)
        assert self._mobility is not None, "open() comes first"
        try:
            self._mobility.send(
                output.message,
                output.source,
                output.destination,
                mark=MARK_PATTERN,
                flow_label=token,
            )
        except KernelError as error:
            self._labels.redeem(token, now)
            self._drop("send_failed", error.message)

    def _read_udp(self, udp: socket.socket) -> None:
        while True:
            try:
                packet, (address, port) = udp.recvfrom(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error for something sent before
                self._drop("icmp_error", str(error.strerror))
                continue
            self._inject(packet, OuterAddress(IPv4Address(address), port))

    def _inject(self, packet: bytes, outer: OuterAddress) -> None:
        """Hand a received inner packet to ESP, or say why not."""
        self._counters["signalling.udp_received"] += 1
        try:
            header, _ = parse_ipv6(packet)
        except WireError as error:
            self._drop("not_ipv6", f"from {outer}: {error.message}")
            return
        if header.next_header != IPPROTO_ESP:
            # RFC 5555 §5: the binding update MUST be protected using ESP transport mode.
            what = "unprotected" if header.next_header == IPPROTO_MH else "not_esp"
            self._drop(what, f"from {outer}: next header {header.next_header}")
            return
        if not self._accepts(header.source, header.destination):
            self._drop("foreign", f"from {outer}: {header.source} -> {header.destination}")
            return
        token = self._marks.issue(outer, asyncio.get_running_loop().time())
        assert self._mobility is not None, "open() comes first"
        try:
            self._mobility.inject(packet, header.source, header.destination, token)
        except KernelError as error:
            self._drop("inject_failed", error.message)

    def _read_mobility(self) -> None:
        assert self._mobility is not None, "open() comes first"
        while (received := self._mobility.receive()) is not None:
            now = asyncio.get_running_loop().time()
            outer = self._marks.redeem(received.mark, now) if received.mark else None
            if outer is None:
                # Without a token of ours it didn't come by way of the injected ESP packet.
                self._drop("unprotected", f"{received.source} -> {received.destination}")
                continue
            self._counters["signalling.received"] += 1
            self._on_message(
                MobilityPacket(received.source, received.destination, received.message, outer)
            )

    def _read_tun(self) -> None:
        while True:
            try:
                packet = os.read(self._tun, MAX_PACKET)
            except BlockingIOError:
                return
            self._encapsulate(packet)

    def _encapsulate(self, packet: bytes) -> None:
        """Put one protected packet from the TUN into UDP, without its token."""
        try:
            header, _ = parse_ipv6(packet)
        except WireError:
            self._drop("stray", "not IPv6 on the TUN")
            return
        if header.destination.is_multicast:
            return  # the kernel's own group management on a new interface
        if header.next_header != IPPROTO_ESP:
            # Payload that no policy caught ends here instead of on a link.
            self._drop("stray", f"next header {header.next_header} on the TUN")
            return
        route = self._labels.redeem(header.flow_label, asyncio.get_running_loop().time())
        if route is None:
            self._drop("token_unknown", f"{header.source} -> {header.destination}")
            return
        udp = self._udp.get(route.local)
        if udp is None:
            self._drop("local_gone", f"{route.local} is no longer bound")
            return
        try:
            udp.sendto(_without_label(packet), (str(route.remote.address), route.remote.port))
        except OSError as error:
            self._drop("send_failed", f"from {route.local}: {error.strerror}")
        else:
            self._counters["signalling.sent"] += 1

    def _drop(self, what: str, detail: str) -> None:
        self._counters[f"signalling.{what}"] += 1
        log.info("dropped (%s): %s", what, detail)


def _without_label(packet: bytes) -> bytes:
    """The packet with a zero flow label: the token never reaches the wire."""
    return packet[:1] + bytes((packet[1] & 0xF0, 0, 0)) + packet[4:]
