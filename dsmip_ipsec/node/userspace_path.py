"""The signalling and payload path where IPsec runs in this process: no kernel ESP, no tokens.

Takes the place of :class:`dsmip_ipsec.node.signalling.SignallingPath`, and carries payload too:

* payload comes out of the TUN that the home addresses are routed to, goes through the engine, and
  leaves as ESP or ESP in UDP; and the same backwards;
* a Mobility Header goes through the engine and, protected, into UDP 4191. The outer addresses stay
  with it all the way, since nothing here takes it out of our hands.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.kernel.tun import MAX_PACKET, TUN_NAME, open_tun
from dsmip_ipsec.mobility.types import MobilityPacket, OuterAddress, SendIcmp, SendMobility
from dsmip_ipsec.node.dsmip_port import DsmipPort, refusal
from dsmip_ipsec.userspace.engine import Engine, Mapping
from dsmip_ipsec.userspace.outcome import Drop
from dsmip_ipsec.userspace.outside import Outside
from dsmip_ipsec.wire.ip import (
    IPPROTO_MH,
    IPv6Header,
    build_ipv6,
    parse_ipv6,
)

log = logging.getLogger(__name__)
_BURST: Final = 64

# RFC 3948 §4: "A sensible default interval is 20 seconds."
KEEPALIVE_S = 20.0


class UserspacePath:
    """Owns the TUN and the sockets; opened and closed by the daemon.

    ``accepts`` and ``on_message``: as for the kernel's path. ``on_mapping`` hears of each SA whose
    authentic packets come from another outer source than before (a NAT rebinding, a handover).
    ``keeps_alive``: a NAT may be in front of us, not of the peer.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        accepts: Callable[[IPv6Address, IPv6Address], bool],
        on_message: Callable[[MobilityPacket], None],
        on_mapping: Callable[[Mapping], None] = lambda _: None,
        keeps_alive: bool = False,
    ) -> None:
        self._engine = engine
        self._accepts = accepts
        self._on_message = on_message
        self._on_mapping = on_mapping
        self._keeps_alive = keeps_alive
        self._outside = Outside(self._from_outside)
        self._port = DsmipPort(self._received, lambda why: self._drop("icmp_error", why))
        self._tun = -1
        self._keepalive: asyncio.TimerHandle | None = None
        self._counters: Counter[str] = Counter()

    @property
    def counters(self) -> dict[str, int]:
        """Counts by name: ``signalling.*`` as for the kernel's path, ``outside.*`` and, for what
        IPsec dropped, ``ipsec.<reason>``."""
        drops = {f"ipsec.{reason.value}": count for reason, count in self._engine.drops.items()}
        return {**self._counters, **self._outside.counters, **drops}

    def open(self) -> None:
        """Create the TUN interface and the raw socket. Raises KernelError."""
        self._tun = open_tun(TUN_NAME)
        try:
            self._outside.open()
        except KernelError:
            os.close(self._tun)
            self._tun = -1
            raise
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tun, self._read_tun)
        if self._keeps_alive:
            self._keepalive = loop.call_later(KEEPALIVE_S, self._keep_alive)

    def close(self) -> None:
        """Close everything. Idempotent."""
        loop = asyncio.get_running_loop()
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None
        self._port.close()
        self._outside.close()
        if self._tun >= 0:
            loop.remove_reader(self._tun)
            os.close(self._tun)
            self._tun = -1

    def bind(self, local: IPv4Address) -> None:
        """Use ports 4191 and 4500 of ``local``. Idempotent. Raises KernelError."""
        self._port.bind(local)
        try:
            self._outside.bind(local)
        except KernelError:
            self._port.unbind(local)
            raise

    def unbind(self, local: IPv4Address) -> None:
        """Stop using ``local``. Idempotent."""
        self._outside.unbind(local)
        self._port.unbind(local)

    def announce(self) -> None:
        """Send a dummy packet by each SA that may be used to send (RFC 4303 §2.6): it opens a NAT
        for ESP and tells the peer at once where ESP comes from now (RFC 5555 §5.1)."""
        for packet in self._engine.dummies():
            self._outside.send(packet)

    def send(self, output: SendMobility | SendIcmp) -> None:
        """Send what an engine wants sent. A failure is logged and counted: engines retransmit."""
        if isinstance(output, SendIcmp):
            self._drop("unsupported", "user-space IPsec has no SAs for prefix discovery")
            return
        if output.remote is None or not isinstance(output.local, IPv4Address):
            self._drop("native_unsupported", "user-space IPsec signals over IPv4 only")
            return
        header = IPv6Header(output.source, output.destination, IPPROTO_MH)
        protected = self._engine.outbound(build_ipv6(header, output.message))
        if isinstance(protected, Drop):
            self._drop("stopped_by_ipsec", f"{protected.reason.value} {protected.detail}")
            return
        try:
            for packet in protected:
                self._port.send(packet, output.local, output.remote)
        except KernelError as error:
            self._drop("local_gone", error.message)
        except OSError as error:
            self._drop("send_failed", f"from {output.local}: {error.strerror}")
        else:
            self._counters["signalling.sent"] += 1

    # Signalling, inbound -------------------------------------------------------------------------

    def _received(self, packet: bytes, outer: OuterAddress, traffic_class: int) -> None:
        self._counters["signalling.udp_received"] += 1
        refused = refusal(packet, self._accepts)
        if refused is not None:
            self._drop(refused[0], f"from {outer}: {refused[1]}")
            return
        plain = self._engine.inbound(packet)
        if isinstance(plain, Drop):
            self._drop("stopped_by_ipsec", f"{plain.reason.value} {plain.detail}")
            return
        header, message = parse_ipv6(plain)
        if header.next_header != IPPROTO_MH:
            self._drop("not_mobility", f"from {outer}: next header {header.next_header}")
            return
        self._counters["signalling.received"] += 1
        self._on_message(MobilityPacket(header.source, header.destination, message, outer))

    # Payload ------------------------------------------------------------------------------------

    def _read_tun(self) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(self._tun, MAX_PACKET)
            except BlockingIOError:
                return
            except OSError as error:
                # The interface is down or gone; reading on would spin.
                asyncio.get_running_loop().remove_reader(self._tun)
                log.error("no more payload from %s: %s", TUN_NAME, error.strerror)
                return
            result = self._engine.outbound(packet)
            if not isinstance(result, Drop):
                for outer in result:
                    self._outside.send(outer)

    def _from_outside(self, packet: bytes) -> None:
        result = self._engine.inbound(packet)
        for mapping in self._engine.take_mappings():
            self._on_mapping(mapping)
        if isinstance(result, Drop):
            return
        try:
            os.write(self._tun, result)
        except OSError as error:
            self._drop("tun_refused", str(error.strerror))

    def _keep_alive(self) -> None:
        """RFC 3948 §2.3: one octet of 0xFF keeps the NAT's mapping of the ESP flow."""
        self._keepalive = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._keep_alive)
        for entry in self._engine.associations:
            sa = entry.association
            if sa.encapsulation is not None and isinstance(sa.source, IPv4Address):
                self._outside.keep_alive(
                    sa.source, str(sa.destination), sa.encapsulation.destination_port
                )

    def _drop(self, what: str, detail: str) -> None:
        self._counters[f"signalling.{what}"] += 1
        log.info("dropped (%s): %s", what, detail)
