"""The Home Agents List, and the answers of dynamic home agent address discovery (RFC 6275 §10.1,
§10.5; RFC 3963 §7; the anycast address: RFC 2526)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from math import inf
from typing import Final

from dsmip_ipsec.mobility.home_prefixes import INFINITE_LIFETIME
from dsmip_ipsec.wire.icmp6 import (
    HomeAgentAddressDiscoveryReply,
    HomeAgentAddressDiscoveryRequest,
    PrefixInformation,
)

MAX_REPLY_ADDRESSES: Final = (1280 - 40 - 8) // 16
"""Addresses in a reply that fits the minimum IPv6 MTU (§10.5.1)."""

_MAX_HOME_AGENTS: Final = 256  # advertisements aren't authenticated; the bound is ours
_MAX_ADDRESSES: Final = 16  # of one of them, likewise
_HOME_AGENTS_ANYCAST: Final = 0x7E  # RFC 2526 §4


def home_agents_anycast(prefix: IPv6Network) -> IPv6Address:
    """The Mobile IPv6 Home-Agents anycast address of a subnet prefix (RFC 2526 §2): in a /64, the
    interface identifier fdff:ffff:ffff:fffe."""
    host_bits = 128 - prefix.prefixlen
    value = int(prefix.network_address) | ((1 << host_bits) - 1) & ~0x7F | _HOME_AGENTS_ANYCAST
    if host_bits == 64:
        value &= ~(1 << 57)  # an EUI-64 identifier, not universally unique
    return IPv6Address(value)


@dataclass(frozen=True, slots=True)
class HomeAgentAdvertisement:
    """What a router advertisement on the home link says of home agents.

    ``source`` is its link-local source address, ``home_agent`` the H bit. ``preference`` and
    ``lifetime`` (seconds) are of the Home Agent Information option, None without one;
    ``mobile_routers`` is the option's R flag (RFC 3963 §7.3).
    """

    source: IPv6Address
    home_agent: bool
    router_lifetime: int
    prefixes: tuple[PrefixInformation, ...] = ()
    preference: int | None = None
    lifetime: int | None = None
    mobile_routers: bool = False


@dataclass(slots=True)
class HomeAgentsListEntry:
    """Another home agent on the home link. ``addresses`` are its global ones, with the time
    until which the prefix of each is valid."""

    preference: int
    expires_at: float
    mobile_routers: bool
    addresses: dict[IPv6Address, float]


class HomeAgentsList:
    """The home agents of one home link, this one included. ``random_bits(n)`` gives an integer
    of n random bits."""

    __slots__ = ("_own", "_preference", "_random_bits", "entries", "mobile_routers")

    def __init__(
        self,
        own: IPv6Address,
        preference: int,
        mobile_routers: bool,
        random_bits: Callable[[int], int],
    ) -> None:
        self._own = own
        self._preference = preference
        self._random_bits = random_bits
        self.mobile_routers = mobile_routers
        self.entries: dict[IPv6Address, HomeAgentsListEntry] = {}

    def learn(self, advertisement: HomeAgentAdvertisement, now: float) -> None:
        """Take a valid router advertisement (§10.5.1, step by step)."""
        source = advertisement.source
        lifetime = advertisement.lifetime
        if lifetime is None:
            lifetime = advertisement.router_lifetime
        if not advertisement.home_agent or lifetime <= 0:
            self.entries.pop(source, None)
            return
        entry = self.entries.get(source)
        if entry is None:
            self.expire(now)
            if len(self.entries) >= _MAX_HOME_AGENTS:
                return
            entry = self.entries[source] = HomeAgentsListEntry(0, now, False, {})
        entry.preference = advertisement.preference or 0
        entry.expires_at = now + lifetime
        entry.mobile_routers = advertisement.mobile_routers
        for prefix in advertisement.prefixes:
            if not prefix.router_address:
                continue
            until = now + prefix.valid_lifetime
            if prefix.valid_lifetime == INFINITE_LIFETIME:
                until = inf
            if prefix.prefix in entry.addresses or len(entry.addresses) < _MAX_ADDRESSES:
                entry.addresses[prefix.prefix] = until

    def expire(self, now: float) -> None:
        """Forget entries whose lifetime, and addresses whose prefix's lifetime is over (§10.1).
        Called whenever the list is used: nobody else needs to see them go."""
        for source, entry in list(self.entries.items()):
            if entry.expires_at <= now:
                del self.entries[source]
                continue
            for address, until in list(entry.addresses.items()):
                if until <= now:
                    del entry.addresses[address]

    def answer(
        self, request: HomeAgentAddressDiscoveryRequest, now: float
    ) -> HomeAgentAddressDiscoveryReply:
        """The reply to a request: addresses by falling preference, those of equal preference
        and those of one home agent in random order, as many as fit (§10.5.1).

        With R, home agents for mobile routers only, if there are any (RFC 3963 §7.2).
        """
        self.expire(now)
        agents = [(self._preference, self.mobile_routers, [self._own])]
        agents += [
            (entry.preference, entry.mobile_routers, list(entry.addresses))
            for entry in self.entries.values()
        ]
        for_routers = False
        if request.mobile_router:
            able = [agent for agent in agents if agent[1] and agent[2]]
            for_routers = bool(able)
            agents = able or agents
        shuffled = sorted(agents, key=lambda agent: (-agent[0], self._random_bits(32)))
        addresses = [
            address
            for _, _, of_one in shuffled
            for address in sorted(of_one, key=lambda address: self._random_bits(32))
        ]
        return HomeAgentAddressDiscoveryReply(
            request.identifier, tuple(addresses[:MAX_REPLY_ADDRESSES]), for_routers
        )
