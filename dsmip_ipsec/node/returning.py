"""A mobile node on its home link (RFC 6275 §11.5.5).

While the home agent still defends the home address, the node must neither use nor defend it, but
the acknowledgement of its deregistration can only be delivered if the home agent learns where on
the link the node is. So it answers the home agent's solicitations for its home address, and nobody
else's; only with the acknowledgement in hand does it configure the address and tell all others.
"""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.errors import KernelError, WireError
from dsmip_ipsec.kernel.link_socket import LinkSocket
from dsmip_ipsec.mobility.home_link import proxy_advertisement
from dsmip_ipsec.mobility.home_link_types import ProxyNeighbour
from dsmip_ipsec.wire import neighbour
from dsmip_ipsec.wire.neighbour import ALL_NODES, NeighborSolicitation, multicast_link_address

log = logging.getLogger(__name__)


class HomeInterface:
    """The interface on the home link, from arrival to departure. Raises KernelError."""

    def __init__(
        self,
        interface: str,
        home_address: IPv6Address,
        ipv4_home_address: IPv4Address | None,
        home_agent: IPv6Address,
    ) -> None:
        self.interface = interface
        self._home_address = home_address
        self._ipv4 = ipv4_home_address
        self._home_agent = home_agent
        self._link = LinkSocket(interface)
        asyncio.get_running_loop().add_reader(self._link.filenos()[0], self._heard)
        self._answering = True

    def close(self) -> None:
        """Idempotent, never raises."""
        self.stop_answering()
        self._link.close()

    def stop_answering(self) -> None:
        """The kernel does it from now on, for everybody."""
        if self._answering:
            self._answering = False
            asyncio.get_running_loop().remove_reader(self._link.filenos()[0])

    def advertise(self) -> None:
        """Tell all nodes on the link: here it is, and no longer at the home agent."""
        link = self._link
        message = proxy_advertisement(ProxyNeighbour(self._home_address), link.link_address)
        packet = neighbour.unsolicited_advertisement(self._home_address, message)
        link.send(packet, multicast_link_address(ALL_NODES))
        if self._ipv4 is not None:
            link.send_arp(neighbour.arp_request(link.link_address, self._ipv4, self._ipv4))

    def _heard(self) -> None:
        while (received := self._link.receive()) is not None:
            packet, link_address = received
            try:
                heard = neighbour.read(packet)
                if (
                    isinstance(heard, NeighborSolicitation)
                    and heard.target == self._home_address
                    and (heard.source == self._home_agent or heard.source.is_link_local)
                ):
                    answer = neighbour.solicited_advertisement(
                        neighbour.link_local_of(self._link.link_address),
                        heard.source,
                        self._home_address,
                        self._link.link_address,
                    )
                    self._link.send(answer, link_address)
            except (WireError, KernelError) as error:
                log.debug("%s: %s", self.interface, error)
