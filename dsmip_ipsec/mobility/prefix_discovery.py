"""Mobile prefix discovery, the mobile node's side (RFC 6275 §11.4.2, §11.4.3; in IPv4 networks:
RFC 5555 §2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

from dsmip_ipsec.mobility.constants import INITIAL_SOLICIT_TIMER, MAX_BINDACK_TIMEOUT
from dsmip_ipsec.mobility.types import (
    Binding,
    HomePrefix,
    HomePrefixesLearned,
    IcmpPacket,
    OuterAddress,
    Output,
    SendIcmp,
)
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.errors import DecodeError
from dsmip_ipsec.wire.ip import DSMIP_PORT

INFINITE: Final = 0xFFFFFFFF
# RFC 6275 §11.4.2 wants a solicitation when the home address is "about to become invalid"; at which
# part of its valid lifetime that is, is ours.
SOLICIT_FRACTION: Final = 0.75


class PrefixDiscovery:
    """Solicits the prefixes of the home link and takes the advertisements.

    It follows the binding (:meth:`binding_changed`): solicitations go to the home agent that
    accepted last, the way of that binding. Unanswered ones are repeated after 3, 6, 12, 24 and
    then every 32 s (RFC 6275 §11.8), without end, until the binding is gone.
    """

    def __init__(self, home_address: IPv6Address, random_bits: Callable[[int], int]) -> None:
        self._home_address = home_address
        self._random_bits = random_bits
        self._binding: Binding | None = None
        # The identifier of the solicitation that is out, None when none is.
        self._identifier: int | None = None
        self._timeout = INITIAL_SOLICIT_TIMER
        self._due_at: float | None = None
        self._not_before = 0.0
        self.home_valid_until: float | None = None
        """When the home address ends to be valid, as far as was advertised."""

    @property
    def pending(self) -> bool:
        """True while an advertisement is waited for."""
        return self._identifier is not None

    def binding_changed(self, binding: Binding | None) -> None:
        """Follow the binding in force."""
        self._binding = binding
        if binding is None:
            self._identifier = None
            self._due_at = None

    def solicit(self, now: float) -> list[Output]:
        """Ask now, with a new identifier. Nothing without a binding."""
        if self._binding is None:
            return []
        self._identifier = self._random_bits(16)  # "MUST ... to a random value"
        self._timeout = INITIAL_SOLICIT_TIMER
        return self._send(now)

    def tick(self, now: float) -> list[Output]:
        """Ask again, or ask because the home address will soon be invalid."""
        if self._due_at is None or self._due_at > now:
            return []
        if self._identifier is None:
            return self.solicit(now)
        self._timeout = min(2 * self._timeout, MAX_BINDACK_TIMEOUT)
        # The same identifier: a late answer to the first transmission is an answer.
        return self._send(now)

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`."""
        return self._due_at

    def handle(self, packet: IcmpPacket, now: float) -> list[Output]:
        """Take an ICMPv6 message. What fails a test of RFC 6275 §11.4.3 is ignored, except that
        an unsolicited advertisement makes us solicit (SHOULD)."""
        binding = self._binding
        if (
            binding is None
            or not packet.protected
            or packet.source != binding.home_agent
            or packet.type2_routing != self._home_address
        ):
            return []
        try:
            message = icmp6.decode(packet.message, packet.source, self._home_address)
        except DecodeError:
            return []
        if not isinstance(message, icmp6.MobilePrefixAdvertisement):
            return []
        if message.identifier != self._identifier:
            # One that is out will be answered. And nobody makes us send one after the other.
            if self._identifier is not None or now < self._not_before:
                return []
            return self.solicit(now)
        self._identifier = None  # "no other advertisement has yet been received for this value"
        prefixes = tuple(
            _home_prefix(option)
            for option in message.options
            if isinstance(option, icmp6.PrefixInformation)
        )
        self._learn(prefixes, now)
        return [HomePrefixesLearned(prefixes, message.managed, message.other)]

    def _learn(self, prefixes: tuple[HomePrefix, ...], now: float) -> None:
        self.home_valid_until = self._due_at = None
        for each in prefixes:
            if self._home_address not in each.prefix or each.valid_lifetime is None:
                continue
            until = now + each.valid_lifetime
            self.home_valid_until = max(until, self.home_valid_until or until)
        if self.home_valid_until is not None:
            left = SOLICIT_FRACTION * (self.home_valid_until - now)
            self._due_at = now + max(left, MAX_BINDACK_TIMEOUT)

    def _send(self, now: float) -> list[Output]:
        binding = self._binding
        assert binding is not None  # who calls has looked
        assert self._identifier is not None
        self._due_at = now + self._timeout
        self._not_before = now + INITIAL_SOLICIT_TIMER
        home, agent = self._home_address, binding.home_agent
        raw = icmp6.encode(icmp6.MobilePrefixSolicitation(self._identifier), home, agent)
        care_of = binding.care_of_address
        if isinstance(care_of, IPv6Address) and not binding.udp_encapsulation:
            return [SendIcmp(care_of, agent, raw, care_of, home_address_option=home)]
        # RFC 5555 §2.2: "MUST use its home address in the source address field of the IPv6 packet,
        # in addition to using the home address option".
        remote: IPv6Address | IPv4Address | None = agent
        if isinstance(care_of, IPv4Address):
            remote = binding.home_agent_ipv4
        assert remote is not None
        return [
            SendIcmp(
                home,
                agent,
                raw,
                care_of,
                OuterAddress(remote, DSMIP_PORT),
                udp=binding.udp_encapsulation,
                home_address_option=home,
            )
        ]


def _home_prefix(option: icmp6.PrefixInformation) -> HomePrefix:
    return HomePrefix(
        IPv6Network((option.prefix, option.prefix_len), strict=False),
        None if option.valid_lifetime == INFINITE else option.valid_lifetime,
        None if option.preferred_lifetime == INFINITE else option.preferred_lifetime,
        option.on_link,
        option.autonomous,
    )
