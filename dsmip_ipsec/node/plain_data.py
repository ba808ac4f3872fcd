"""Payload without IPsec: the tunnels and routes of the bindings (RFC 5555 §4.4.3, §4.5.1).

Tunnels in IPv4 and IPv6 are the kernel's; those in UDP are this process's, by the sockets that
signalling uses (docs/decisions.md). Both follow ``wanted``, make before break.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import UDP_TUNNELS, Tunnel
from dsmip_ipsec.ipsec.peering import Peering
from dsmip_ipsec.kernel.routing import PAYLOAD_TABLE, Routing
from dsmip_ipsec.kernel.tunnels import RT_TABLE_MAIN, PlainTunnels
from dsmip_ipsec.mobility.types import Binding
from dsmip_ipsec.node.signalling import SignallingPath
from dsmip_ipsec.userspace.udp_tunnels import Outgoing, UdpTunnels

log = logging.getLogger(__name__)

# RFC 5555 §4.1.1: what an Ethernet leaves behind IPv4 and UDP. A narrower path has fragments.
UDP_TUNNEL_MTU = 1500 - 20 - 8

# Nobody's home address, between addresses for documentation (RFC 5737, RFC 3849).
_TRIAL = DesiredState(
    tunnels=(
        Tunnel(IPv6Address("2001:db8::"), IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
        Tunnel(IPv6Address("2001:db8::"), IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")),
    )
)

Wanted = Callable[[], DesiredState]


class PlainData:
    """Keeps the tunnels and routes as ``wanted`` says, from :meth:`open` to :meth:`close`.

    ``home_agent``: this end is one, and checks what comes out of the tunnels (RFC 6275 §10.4.5).
    """

    def __init__(
        self, wanted: Wanted, path: SignallingPath, routing: Routing, *, home_agent: bool
    ) -> None:
        self._wanted = wanted
        self._path = path
        self._routing = routing
        self._udp = UdpTunnels(self._send)
        self._tunnels = PlainTunnels(
            default_table=RT_TABLE_MAIN if home_agent else PAYLOAD_TABLE,
            check_sources=home_agent,
        )
        self._standing = DesiredState()
        self._open = False
        self._again = False
        self._work: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None

    @property
    def counters(self) -> dict[str, int]:
        """Those of the tunnels in UDP; who counts for the others is the kernel."""
        return self._udp.counters

    async def open(self) -> None:
        """Take away what a killed daemon has left, and start. Raises KernelError."""
        self._failure = asyncio.get_running_loop().create_future()
        await self._tunnels.open()
        self._open = True
        self._udp.open()
        await self._routing.up(UDP_TUNNELS, UDP_TUNNEL_MTU)
        self._path.on_payload = self._udp.receive
        # Each kind once: a kernel that lacks one says so now, and none loads modules in a handover.
        await self._tunnels.reconcile(_TRIAL)
        await self._tunnels.reconcile(DesiredState())

    async def close(self) -> None:
        """Take everything away. Idempotent; never raises."""
        if not self._open:
            return
        self._open = False
        self._path.on_payload = None
        if self._work is not None:
            await asyncio.wait([self._work])
        await self._tunnels.close()
        self._udp.close()

    async def failed(self) -> None:
        """Wait for, and raise, the KernelError that ended reconciling in the background."""
        assert self._failure is not None, "open() comes first"
        await self._failure

    def trigger(self) -> None:
        """A binding has changed: follow, in the background. Of what comes in UDP, the next packet
        is judged by the new binding already."""
        if not self._open:
            return
        # Make before break: a tunnel in UDP lives until the routes lead elsewhere.
        self._udp.replace(self._standing + self._wanted())
        if self._work is not None and not self._work.done():
            self._again = True
        else:
            self._work = asyncio.ensure_future(self._reconcile())

    async def settled(self) -> None:
        """Wait until all triggers so far have had their effect."""
        if self._work is not None:
            await asyncio.wait([self._work])

    async def _reconcile(self) -> None:
        """Once for all triggers in the meantime: it reads all that there is."""
        try:
            while self._open:
                self._again = False
                wanted = self._wanted()
                await self._tunnels.reconcile(wanted)
                self._standing = wanted
                if not self._again:
                    self._udp.replace(wanted)
                    return
        except KernelError as error:
            if self._failure is not None and not self._failure.done():
                self._failure.set_exception(error)

    def _send(self, outgoing: Outgoing) -> None:
        self._path.send_payload(
            outgoing.packet, outgoing.local, outgoing.remote, outgoing.traffic_class
        )


def plain_state(bound: Iterable[tuple[Peering, Binding]]) -> DesiredState:
    """The tunnels and routes of these bindings."""
    states = [
        desired(peering, active=True, binding=binding, negotiated=()) for peering, binding in bound
    ]
    return DesiredState(
        tunnels=tuple(tunnel for state in states for tunnel in state.tunnels),
        routes=tuple(route for state in states for route in state.routes),
    )
