"""Dynamic home agent address discovery, the mobile node's side (RFC 6275 §11.4.1, §6.5, §6.6;
R flag: RFC 3963 §7). It rests on IPv6 anycast, so it isn't for IPv4 networks (RFC 5555 §2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network

from dsmip_ipsec.mobility.constants import DHAAD_RETRIES, INITIAL_DHAAD_TIMEOUT
from dsmip_ipsec.mobility.discovery import MAX_HOME_AGENTS
from dsmip_ipsec.mobility.home_agents_list import home_agents_anycast
from dsmip_ipsec.mobility.registration import is_routable_unicast
from dsmip_ipsec.mobility.types import (
    Event,
    EventKind,
    HomeAgentsDiscovered,
    IcmpPacket,
    Output,
    SendIcmp,
)
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.errors import DecodeError


class AddressDiscovery:
    """One search at a time: a request to the home agents' anycast address of ``home_prefix``, sent
    again after 3, 6, 12 and 24 s, and the first reply that matches.

    The reply is a :class:`HomeAgentsDiscovered`; silence an event of kind ``DISCOVERY_FAILED``.
    Nobody authenticates a reply: whoever is listed there still has to prove himself to IKE.
    """

    def __init__(
        self,
        home_prefix: IPv6Network,
        random_bits: Callable[[int], int],
        *,
        mobile_router: bool = False,
    ) -> None:
        self._anycast = home_agents_anycast(home_prefix)
        self._random_bits = random_bits
        self._mobile_router = mobile_router
        self._care_of: IPv6Address | None = None
        self._identifier = 0
        self._attempts = 0
        self._due_at: float | None = None

    @property
    def running(self) -> bool:
        """True while a reply is waited for."""
        return self._due_at is not None

    def start(self, care_of_address: IPv6Address, now: float) -> list[Output]:
        """Search from ``care_of_address``; an earlier search is over."""
        self._care_of = care_of_address
        self._identifier = self._random_bits(16)
        self._attempts = 0
        return [self._request(now)]

    def stop(self) -> None:
        """The answer is of no use any more (no IPv6 care-of address, say)."""
        self._due_at = None

    def tick(self, now: float) -> list[Output]:
        """Send again, or give up."""
        if self._due_at is None or self._due_at > now:
            return []
        if self._attempts > DHAAD_RETRIES:
            self._due_at = None
            return [Event(EventKind.DISCOVERY_FAILED, None, {"anycast": str(self._anycast)})]
        return [self._request(now)]

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`."""
        return self._due_at

    def handle(self, packet: IcmpPacket) -> list[Output]:
        """Take an ICMPv6 message. What isn't the reply that is waited for is ignored."""
        if self._due_at is None or packet.destination != self._care_of:
            return []
        try:
            reply = icmp6.decode(packet.message, packet.source, packet.destination)
        except DecodeError:
            return []
        if (
            not isinstance(reply, icmp6.HomeAgentAddressDiscoveryReply)
            or reply.identifier != self._identifier
            # RFC 3963 §7.2: R in the reply says that the listed ones serve mobile routers.
            or (self._mobile_router and not reply.mobile_router)
        ):
            return []
        addresses = tuple(
            dict.fromkeys(each for each in reply.addresses if is_routable_unicast(each))
        )
        if not addresses:
            return []
        self._due_at = None
        return [HomeAgentsDiscovered(addresses[:MAX_HOME_AGENTS])]

    def _request(self, now: float) -> SendIcmp:
        assert self._care_of is not None  # start() comes first
        # "Each retransmission MUST be delayed by twice the time interval of the previous".
        self._due_at = now + INITIAL_DHAAD_TIMEOUT * 2**self._attempts
        self._attempts += 1
        message = icmp6.HomeAgentAddressDiscoveryRequest(self._identifier, self._mobile_router)
        raw = icmp6.encode(message, self._care_of, self._anycast)
        return SendIcmp(self._care_of, self._anycast, raw, self._care_of, protected=False)
