"""Dynamic home agent address discovery over the wire (RFC 6275 §10.5, §11.4.1): who asks by
anycast, and the home agent that answers. In clear, since nobody knows whom to trust yet; IKE
authenticates whoever is found.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, IPv6Network

from dsmip_ipsec.errors import KernelError, MobilityError
from dsmip_ipsec.kernel.icmp_socket import IcmpSocket
from dsmip_ipsec.mobility.discovery_dhaad import AddressDiscovery
from dsmip_ipsec.mobility.home_agents_list import home_agents_anycast
from dsmip_ipsec.mobility.types import (
    HomeAgentsDiscovered,
    IcmpPacket,
    Output,
    SendIcmp,
)
from dsmip_ipsec.wire.icmp6 import (
    HOME_AGENT_ADDRESS_DISCOVERY_REPLY,
    HOME_AGENT_ADDRESS_DISCOVERY_REQUEST,
)

log = logging.getLogger(__name__)


async def ask_home_agents(
    home_prefix: IPv6Network,
    care_of_address: IPv6Address | None = None,
    *,
    mobile_router: bool = False,
    timeout: float = 45.0,
    random_bits: Callable[[int], int] = secrets.randbits,
) -> tuple[IPv6Address, ...]:
    """The home agents of the link with ``home_prefix``, the most preferred one first.

    ``care_of_address``: an address of this host to ask from, None for the one that the route
    there starts at. ``mobile_router``: ask for home agents that serve mobile routers (RFC 3963
    §7.1). ``timeout``: seconds; RFC 6275 §12's own retransmissions give up after 93. Raises
    :class:`MobilityError` when nobody answers, :class:`KernelError` when nothing can be sent.
    """
    source = care_of_address or _source(home_agents_anycast(home_prefix))
    discovery = AddressDiscovery(home_prefix, random_bits, mobile_router=mobile_router)
    loop = asyncio.get_running_loop()
    link = IcmpSocket([HOME_AGENT_ADDRESS_DISCOVERY_REPLY])
    arrived = asyncio.Event()
    loop.add_reader(link.fileno(), arrived.set)
    ends_at = loop.time() + timeout
    try:
        outputs = discovery.start(source, loop.time())
        while True:
            found = _carry_out(link, outputs)
            if found is not None:
                return found
            if not discovery.running or loop.time() >= ends_at:
                raise MobilityError(
                    f"no home agent answered at {home_agents_anycast(home_prefix)}",
                    hint="is that the home link's prefix, and does ICMPv6 pass from "
                    f"{source} to there and back? In an IPv4 network, ask the DNS",
                )
            arrived.clear()
            deadline = min(discovery.next_deadline() or ends_at, ends_at)
            try:
                async with asyncio.timeout(max(0.0, deadline - loop.time())):
                    await arrived.wait()
            except TimeoutError:
                outputs = discovery.tick(loop.time())
                continue
            outputs = []
            while (received := link.receive()) is not None:
                packet = IcmpPacket(
                    received.source, received.destination, received.message, protected=False
                )
                outputs += discovery.handle(packet)
    finally:
        loop.remove_reader(link.fileno())
        link.close()


def _carry_out(link: IcmpSocket, outputs: Iterable[Output]) -> tuple[IPv6Address, ...] | None:
    for output in outputs:
        if isinstance(output, HomeAgentsDiscovered):
            return output.home_agents
        if isinstance(output, SendIcmp):
            link.send(output.message, output.source, output.destination)
    return None


def _source(destination: IPv6Address) -> IPv6Address:
    """The address that the kernel would send from."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(destination), 9))
            return IPv6Address(probe.getsockname()[0])
        except OSError as error:
            raise KernelError(
                f"no way to {destination}: {error.strerror}",
                errno=error.errno or 0,
                hint="is there an IPv6 address and a route? In an IPv4 network, ask the DNS",
            ) from error


class HomeAgentAnswers:
    """The home agent's side: requests to the anycast address of each home prefix, and to its own
    address, go to ``handle``; :meth:`send` sends the answers. ``interface``: the home link."""

    def __init__(
        self,
        home_prefixes: Iterable[IPv6Network],
        interface: str | None,
        handle: Callable[[IcmpPacket], None],
    ) -> None:
        self._prefixes = tuple(home_prefixes)
        self._interface = interface
        self._handle = handle
        self._socket: IcmpSocket | None = None
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        """Raises KernelError."""
        self._socket = IcmpSocket([HOME_AGENT_ADDRESS_DISCOVERY_REQUEST])
        for prefix in self._prefixes:
            self._socket.join_anycast(home_agents_anycast(prefix), self._interface)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        """Idempotent, never raises."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        assert self._socket is not None, "the reader is removed before"
        while self._socket is not None and (received := self._socket.receive()) is not None:
            self.counters["discovery.requests"] += 1
            self._handle(
                IcmpPacket(received.source, received.destination, received.message, protected=False)
            )

    def send(self, answer: SendIcmp) -> None:
        """A failure is logged and counted: whoever asked asks again."""
        assert self._socket is not None, "open() comes first"
        try:
            self._socket.send(answer.message, answer.source, answer.destination)
        except KernelError as error:
            self.counters["discovery.send_failed"] += 1
            log.info("answer to %s: %s", answer.destination, error)
        else:
            self.counters["discovery.answers"] += 1
