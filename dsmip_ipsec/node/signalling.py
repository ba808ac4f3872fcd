"""The signalling path: UDP 4191 or IPv6 <-> kernel ESP <-> Mobility Headers, tokens and all.

Where payload isn't protected, it shares the UDP sockets: a NAT sees one flow (RFC 5555 §4.2). What
is signalling's is ESP, or should be, between a home address and the home agent.

Used by the mobile node and the home agent alike. Inbound, a datagram's inner packet goes into the
kernel's ESP input with a token that stands for its outer source; what ESP lets through comes back
with the token. Outbound, a message goes through the kernel's ESP output with a token that stands
for the outer addresses; the protected packet comes out of a TUN with it and is put into UDP
(RFC 5555 §4.2, §5.2.1).

Natively over IPv6 (RFC 6275) the kernel's MIPv6 sees to home address option and type 2 routing
header. Where the kernel has none, it is as with UDP, with these headers in its place
(:mod:`dsmip_ipsec.kernel.native_socket`). At home, where there is neither, messages pass straight
between the kernel's ESP and the wire.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from dsmip_ipsec.errors import KernelError, WireError
from dsmip_ipsec.kernel.mobility_socket import MobilitySocket, ReceivedMobility
from dsmip_ipsec.kernel.native_socket import NativePacket, NativeSocket, unwrap, wrap
from dsmip_ipsec.kernel.protected_socket import ProtectedSocket
from dsmip_ipsec.kernel.tun import MAX_PACKET, TUN_NAME, open_tun
from dsmip_ipsec.mobility.token import FLOW_LABEL_BITS, TokenTable
from dsmip_ipsec.mobility.types import (
    IcmpPacket,
    IPAddress,
    MobilityPacket,
    OuterAddress,
    SendIcmp,
    SendMobility,
    SendTunnelled,
)
from dsmip_ipsec.node.dsmip_port import DsmipPort, refusal
from dsmip_ipsec.wire.icmp6 import MOBILE_PREFIX_ADVERTISEMENT, MOBILE_PREFIX_SOLICITATION
from dsmip_ipsec.wire.ip import (
    IPPROTO_DSTOPTS,
    IPPROTO_ESP,
    IPPROTO_MH,
    IPPROTO_ROUTING,
    parse_ipv6,
)

log = logging.getLogger(__name__)

# Marks with these upper bits belong to the signalling path: one rule leads outgoing messages into
# the TUN, and the lower bits of an injected packet's mark are its token.
MARK_PATTERN = 0xD5000000
MARK_MASK = 0xFF000000
TOKEN_LIFETIME_S = 2.0
_PREFIX_MESSAGES = (MOBILE_PREFIX_SOLICITATION, MOBILE_PREFIX_ADVERTISEMENT)
# What may follow the IPv6 header of signalling in UDP, or should have been protected.
_SIGNALLING = (IPPROTO_ESP, IPPROTO_MH, IPPROTO_DSTOPTS, IPPROTO_ROUTING)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a protected message leaves: from the UDP socket of ``local`` to ``remote``; with the
    headers of Mobile IPv6, if any (RFC 5555 §2.2)."""

    local: IPAddress
    remote: OuterAddress
    home_address_option: IPv6Address | None = None
    type2_routing: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class NativeRoute:
    """How a protected message leaves natively: the addresses on the wire, and the headers."""

    source: IPv6Address
    destination: IPv6Address
    home_address_option: IPv6Address | None
    type2_routing: IPv6Address | None


@dataclass(frozen=True, slots=True)
class NativeArrival:
    """What ESP would lose of a packet with headers of Mobile IPv6; ``outer``: it came in UDP."""

    source: IPv6Address
    destination: IPv6Address
    home_address_option: IPv6Address | None
    type2_routing: IPv6Address | None
    outer: OuterAddress | None = None


class SignallingPath:
    """Owns the TUN, the raw sockets and the UDP sockets; opened and closed by the daemon.

    ``on_message`` gets each Mobility Header that ESP has let through. ``accepts`` says whether the
    addresses of an inner packet are those of a peer of ours; everything else is dropped and
    counted in ``counters`` (names ``signalling.<what>``). ``kernel_headers``: the kernel has MIPv6,
    and desired state its states. ``on_icmp`` gets mobile prefix solicitations and advertisements
    that ESP has let through (None: there are none).
    """

    def __init__(
        self,
        *,
        random_bits: Callable[[int], int],
        accepts: Callable[[IPv6Address, IPv6Address], bool],
        on_message: Callable[[MobilityPacket], None],
        kernel_headers: bool,
        on_icmp: Callable[[IcmpPacket], None] | None = None,
    ) -> None:
        self._kernel_headers = kernel_headers
        self._on_icmp = on_icmp
        self._marks: TokenTable[OuterAddress | NativeArrival] = TokenTable(
            random_bits, pattern=MARK_PATTERN, pattern_mask=MARK_MASK, lifetime=TOKEN_LIFETIME_S
        )
        self._labels: TokenTable[Route | NativeRoute] = TokenTable(
            random_bits, width=FLOW_LABEL_BITS, lifetime=TOKEN_LIFETIME_S
        )
        self._accepts = accepts
        self._on_message = on_message
        self._port = DsmipPort(self._received, lambda why: self._drop("icmp_error", why))
        self._tun = -1
        self._mobility: MobilitySocket | None = None
        self._icmp: MobilitySocket | None = None
        self._protected: ProtectedSocket | None = None
        self._native: NativeSocket | None = None
        self._counters: Counter[str] = Counter()
        self.on_payload: Callable[[bytes, OuterAddress, int], None] | None = None
        """Takes an IP packet that came in UDP and isn't signalling, its outer source and its outer
        TOS or traffic class. None: such packets are dropped."""

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
            self._protected = ProtectedSocket()
            self._native = None if self._kernel_headers else NativeSocket()
            self._icmp = MobilitySocket(_PREFIX_MESSAGES) if self._on_icmp is not None else None
        except KernelError:
            self._close_sockets()
            raise
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tun, self._read_tun)
        loop.add_reader(self._mobility.fileno(), self._read_mobility)
        loop.add_reader(self._protected.fileno(), self._read_protected)
        if self._native is not None:
            loop.add_reader(self._native.fileno(), self._read_native)
        if self._icmp is not None:
            loop.add_reader(self._icmp.fileno(), self._read_icmp)

    def close(self) -> None:
        self._port.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        loop = asyncio.get_running_loop()
        for each in (self._mobility, self._protected, self._native, self._icmp):
            if each is not None:
                loop.remove_reader(each.fileno())
                each.close()
        self._mobility = self._protected = self._native = self._icmp = None
        if self._tun >= 0:
            loop.remove_reader(self._tun)
            os.close(self._tun)
            self._tun = -1

    def bind(self, local: IPAddress) -> None:
        """Receive and send on port 4191 of ``local``. Idempotent. Raises KernelError."""
        self._port.bind(local)

    def unbind(self, local: IPAddress) -> None:
        """Stop using ``local``. Idempotent."""
        self._port.unbind(local)

    def send(self, output: SendMobility | SendIcmp) -> None:
        """Send what an engine wants sent. A failure is logged and counted: engines retransmit."""
        icmp = isinstance(output, SendIcmp)
        sender = self._icmp if icmp else self._mobility
        if sender is None or (
            isinstance(output, SendIcmp)
            and (not output.protected or (output.remote is not None and not output.udp))
        ):
            self._drop("unsupported", f"{output.source} -> {output.destination}")
            return
        now = asyncio.get_running_loop().time()
        source, destination = output.source, output.destination
        way: Route | NativeRoute | None = None
        if output.remote is not None:
            assert output.local is not None, "UDP leaves from somewhere"
            way = Route(output.local, output.remote)
            if icmp:
                way = replace(
                    way,
                    home_address_option=output.home_address_option,
                    type2_routing=output.type2_routing,
                )
        elif output.home_address_option is not None or output.type2_routing is not None:
            way = NativeRoute(source, destination, output.home_address_option, output.type2_routing)
            # RFC 6275 §11.3.2, §6.4: ESP sees the home addresses.
            source = output.home_address_option or source
            destination = output.type2_routing or destination
            if self._kernel_headers:
                self._send_by_kernel(sender, output, source, destination)
                return
        token = self._labels.issue(way, now) if way is not None else 0
        try:
            sender.send(
                output.message,
                source,
                destination,
                mark=MARK_PATTERN if way is not None else 0,
                flow_label=token,
            )
        except KernelError as error:
            if way is not None:
                self._labels.redeem(token, now)
            self._drop("send_failed", error.message)
            return
        if way is None:
            self._counters["signalling.sent"] += 1

    def _send_by_kernel(
        self,
        sender: MobilitySocket,
        output: SendMobility | SendIcmp,
        source: IPv6Address,
        destination: IPv6Address,
    ) -> None:
        care_of_address = output.destination if output.type2_routing is not None else None
        try:
            sender.send_native(
                output.message,
                source,
                destination,
                care_of_address=care_of_address,
                # The home agent may be unreachable from the home address, but from the care-of
                # address it isn't (kernel.routing).
                mark=MARK_PATTERN if output.home_address_option is not None else 0,
            )
        except (KernelError, WireError) as error:
            self._drop("send_failed", error.message)
        else:
            self._counters["signalling.sent"] += 1

    def _received(self, packet: bytes, outer: OuterAddress, traffic_class: int) -> None:
        if self.on_payload is not None and self._is_payload(packet):
            self.on_payload(packet, outer, traffic_class)
            return
        self._counters["signalling.udp_received"] += 1
        try:
            wrapped = unwrap(packet) if self._on_icmp is not None else None
        except WireError:
            wrapped = None  # what it is instead is said below
        if wrapped is None:
            self._inject(packet, outer)
        else:
            self._inject(wrapped.inner, _arrival(wrapped, outer))

    def _is_payload(self, packet: bytes) -> bool:
        """RFC 5555 §4.2: the first four bits tell the family of what follows the UDP header."""
        version = packet[0] >> 4 if packet else 0
        if version != 6:
            return version == 4
        try:
            header, _ = parse_ipv6(packet)
        except WireError:
            return False
        return header.next_header not in _SIGNALLING or not self._accepts(
            header.source, header.destination
        )

    def send_payload(
        self, packet: bytes, local: IPAddress, remote: OuterAddress, traffic_class: int
    ) -> None:
        """Send an IP packet as it is in UDP, with that TOS or traffic class outside. Raises
        OSError, KernelError if ``local`` isn't bound."""
        self._port.send(packet, local, remote, traffic_class)

    def send_tunnelled(self, output: SendTunnelled) -> None:
        """Send a Mobility Header as payload of the home address: its routes and policies lead it
        into the tunnel. A failure is logged and counted."""
        assert self._mobility is not None, "open() comes first"
        try:
            self._mobility.send(
                output.message, output.source, output.destination, mark=0, flow_label=0
            )
        except KernelError as error:
            self._drop("send_failed", error.message)
        else:
            self._counters["signalling.sent_tunnelled"] += 1

    def _read_native(self) -> None:
        assert self._native is not None, "the reader is removed before"
        while (packet := self._native.receive()) is not None:
            try:
                native = unwrap(packet)
            except WireError:
                continue  # the kernel answers what is wrong with extension headers
            if native is None or not self._accepts(native.inner_source, native.inner_destination):
                continue  # somebody else's: this socket sees all
            self._counters["signalling.native_received"] += 1
            self._inject(native.inner, _arrival(native, None))

    def _inject(self, packet: bytes, outer: OuterAddress | NativeArrival) -> None:
        """Hand a received inner packet to ESP, or say why not."""
        refused = refusal(packet, self._accepts)
        if refused is not None:
            self._drop(refused[0], f"from {outer}: {refused[1]}")
            return
        header, _ = parse_ipv6(packet)
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
            if not received.mark:
                self._received_by_kernel(received)
                continue
            arrival = self._marks.redeem(received.mark, now)
            source, destination = received.source, received.destination
            if arrival is None:
                # Without a token of ours it didn't come by way of the injected ESP packet.
                self._drop("unprotected", f"{source} -> {destination}")
                continue
            if isinstance(arrival, NativeArrival) and arrival.outer is not None:
                # RFC 5555 §4.1: in UDP, a binding update is from its home address.
                self._drop("native_in_udp", f"{source} -> {destination}")
                continue
            self._counters["signalling.received"] += 1
            if isinstance(arrival, NativeArrival):
                packet = MobilityPacket(
                    arrival.source,
                    arrival.destination,
                    received.message,
                    None,
                    arrival.home_address_option,
                )
            else:
                packet = MobilityPacket(source, destination, received.message, arrival)
            self._on_message(packet)

    def _read_icmp(self) -> None:
        assert self._icmp is not None, "the reader is removed before"
        while (received := self._icmp.receive()) is not None:
            source, destination = received.source, received.destination
            if received.mark:
                now = asyncio.get_running_loop().time()
                arrival = self._marks.redeem(received.mark, now)
            else:  # as with Mobility Headers: with a header of MIPv6 it came under ESP
                option = source if received.care_of_address is not None else None
                arrival = NativeArrival(
                    received.care_of_address or source,
                    destination,
                    option,
                    destination if received.routed else None,
                )
            if not isinstance(arrival, NativeArrival) or not self._accepts(source, destination):
                self._drop("unprotected", f"{source} -> {destination}")
                continue
            if arrival.home_address_option is None and arrival.type2_routing is None:
                self._drop("unprotected", f"{source} -> {destination}")
                continue
            self._counters["signalling.icmp_received"] += 1
            assert self._on_icmp is not None, "else there is no such socket"
            self._on_icmp(
                IcmpPacket(
                    arrival.source,
                    arrival.destination,
                    received.message,
                    arrival.outer,
                    arrival.home_address_option,
                    arrival.type2_routing,
                )
            )

    def _received_by_kernel(self, received: ReceivedMobility) -> None:
        """Straight from a link. With a header of MIPv6 it came under a policy that wants ESP;
        without one, the other socket has it if it came under ESP."""
        source, destination = received.source, received.destination
        if received.care_of_address is None and not received.routed:
            return
        if not self._accepts(source, destination):
            self._drop("foreign", f"{source} -> {destination}")
            return
        self._counters["signalling.received"] += 1
        self._counters["signalling.native_received"] += 1
        care_of_address = received.care_of_address
        option = source if care_of_address is not None else None
        self._on_message(
            MobilityPacket(care_of_address or source, destination, received.message, None, option)
        )

    def _read_protected(self) -> None:
        assert self._protected is not None, "open() comes first"
        while (received := self._protected.receive()) is not None:
            source, destination = received.source, received.destination
            if not self._accepts(source, destination):
                self._drop("foreign", f"{source} -> {destination}")
                continue
            self._counters["signalling.received"] += 1
            self._on_message(MobilityPacket(source, destination, received.message, None))

    def _read_tun(self) -> None:
        while True:
            try:
                packet = os.read(self._tun, MAX_PACKET)
            except BlockingIOError:
                return
            self._encapsulate(packet)

    def _encapsulate(self, packet: bytes) -> None:
        """Send one protected packet from the TUN on its way, without its token."""
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
        if isinstance(route, NativeRoute):
            self._send_native(packet, route)
            return
        try:
            self._port.send(_on_the_wire(packet, route), route.local, route.remote)
        except KernelError as error:
            self._drop("local_gone", error.message)
        except OSError as error:
            self._drop("send_failed", f"from {route.local}: {error.strerror}")
        else:
            self._counters["signalling.sent"] += 1

    def _send_native(self, packet: bytes, route: NativeRoute) -> None:
        assert self._native is not None, "open() comes first"
        try:
            whole = wrap(
                packet,
                route.source,
                route.destination,
                home_address_option=route.home_address_option,
                type2_routing=route.type2_routing,
            )
            self._native.send(whole, route.source, route.destination)
        except (KernelError, WireError) as error:
            self._drop("send_failed", error.message)
        else:
            self._counters["signalling.sent"] += 1

    def _drop(self, what: str, detail: str) -> None:
        self._counters[f"signalling.{what}"] += 1
        log.info("dropped (%s): %s", what, detail)


def _arrival(packet: NativePacket, outer: OuterAddress | None) -> NativeArrival:
    option, routing = packet.home_address_option, packet.type2_routing
    return NativeArrival(packet.source, packet.destination, option, routing, outer)


def _on_the_wire(packet: bytes, route: Route) -> bytes:
    """The packet with a zero flow label: the token never reaches the wire."""
    if route.home_address_option is not None or route.type2_routing is not None:
        header, _ = parse_ipv6(packet)
        return wrap(
            packet,
            header.source,
            header.destination,
            home_address_option=route.home_address_option,
            type2_routing=route.type2_routing,
        )
    return packet[:1] + bytes((packet[1] & 0xF0, 0, 0)) + packet[4:]
