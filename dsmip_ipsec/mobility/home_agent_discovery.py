"""ICMPv6 at the home agent: dynamic home agent address discovery and mobile prefix messages
(RFC 6275 §10.5, §10.6; RFC 5555 §2.2; RFC 3963 §7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv6Address

from dsmip_ipsec.mobility.acknowledgement import local_address
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig
from dsmip_ipsec.mobility.home_agents_list import HomeAgentsList, home_agents_anycast
from dsmip_ipsec.mobility.home_prefixes import LinkPrefix, PrefixList
from dsmip_ipsec.mobility.prefix_advertising import PrefixAdvertising
from dsmip_ipsec.mobility.registration import is_routable_unicast
from dsmip_ipsec.mobility.types import Binding, DropReason, IcmpPacket, SendIcmp
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.errors import DecodeError


class HomeAgentDiscovery:
    """What mobile nodes can ask by ICMPv6, and the prefix advertisements they get unasked.

    ``prefixes`` is the Prefix List; ``home_agents`` the Home Agents List; ``advertising`` the
    schedule of unsolicited advertisements. ``random_bits(n)`` gives an integer of n random bits.
    """

    def __init__(self, config: HomeAgentConfig, random_bits: Callable[[int], int]) -> None:
        self._config = config
        self._random_bits = random_bits
        self.managed = config.managed
        self.other = config.other
        self.prefixes = PrefixList([LinkPrefix(prefix) for prefix in config.home_prefixes])
        self.advertising = PrefixAdvertising(random_bits)
        self.home_agents = HomeAgentsList(
            config.home_agent_address, config.preference, config.serves_mobile_routers, random_bits
        )

    @property
    def advertises(self) -> bool:
        """True when mobile nodes are to be told of prefixes."""
        return self._config.prefix_advertisements and bool(self.prefixes.prefixes)

    def answer(self, packet: IcmpPacket, now: float) -> SendIcmp | DropReason:
        """The answer to ``packet``, or why there is none."""
        home_address = packet.home_address_option or packet.source
        try:
            message = icmp6.decode(packet.message, home_address, packet.destination)
        except DecodeError:
            return DropReason.MALFORMED
        if isinstance(message, icmp6.HomeAgentAddressDiscoveryRequest):
            return self._home_agents(packet, message, now)
        if isinstance(message, icmp6.MobilePrefixSolicitation):
            return self._solicited(packet, home_address, message, now)
        return DropReason.UNEXPECTED_MESSAGE

    def _home_agents(
        self, packet: IcmpPacket, request: icmp6.HomeAgentAddressDiscoveryRequest, now: float
    ) -> SendIcmp | DropReason:
        """§10.5.1. Unprotected by nature: the mobile node doesn't know whom to trust yet."""
        own = self._config.home_agent_address
        anycast = (home_agents_anycast(each.prefix) for each in self.prefixes.prefixes)
        if packet.destination != own and packet.destination not in anycast:
            return DropReason.WRONG_DESTINATION
        if not is_routable_unicast(packet.source):
            return DropReason.WRONG_SOURCE
        reply = self.home_agents.answer(request, now)
        raw = icmp6.encode(reply, own, packet.source)
        return SendIcmp(own, packet.source, raw, own, protected=False)

    def _solicited(
        self,
        packet: IcmpPacket,
        home_address: IPv6Address,
        solicitation: icmp6.MobilePrefixSolicitation,
        now: float,
    ) -> SendIcmp | DropReason:
        """§10.6.2: "answer right away". It comes under ESP, like the answer (RFC 4877 §4.2)."""
        config = self._config
        if not packet.protected:
            return DropReason.UNPROTECTED
        if packet.destination != config.home_agent_address:
            return DropReason.WRONG_DESTINATION
        if packet.home_address_option is None:  # §11.4.2; RFC 5555 §2.2: in IPv4, too
            return DropReason.NO_HOME_ADDRESS_OPTION
        if home_address not in config.subscribers or not self.advertises:
            return DropReason.HOME_ADDRESS_INVALID
        self.advertising.acknowledged(home_address, now)
        raw = self._advertisement(home_address, solicitation.identifier, now)
        own = config.home_agent_address
        outer = packet.outer
        return SendIcmp(
            own,
            packet.source,
            raw,
            own if outer is None else local_address(config, outer),
            outer,
            udp=outer is not None and outer.port != 0,
            type2_routing=home_address,
        )

    def unsolicited(self, binding: Binding, now: float) -> SendIcmp:
        """An advertisement that nobody asked for, the way that the binding says (§10.6.3)."""
        own = self._config.home_agent_address
        home_address = binding.home_address
        raw = self._advertisement(home_address, self._random_bits(16), now)
        outer = binding.outer
        if outer is not None:
            local = local_address(self._config, outer)
            udp = binding.udp_encapsulation
            return SendIcmp(
                own, home_address, raw, local, outer, udp=udp, type2_routing=home_address
            )
        care_of = binding.care_of_address
        assert isinstance(care_of, IPv6Address)  # no outer address: native
        return SendIcmp(own, care_of, raw, own, type2_routing=home_address)

    def _advertisement(self, home_address: IPv6Address, identifier: int, now: float) -> bytes:
        message = icmp6.MobilePrefixAdvertisement(
            identifier, self.managed, self.other, self.prefixes.information(now)
        )
        return icmp6.encode(message, self._config.home_agent_address, home_address)

    def change(self, prefixes: Iterable[LinkPrefix], managed: bool, other: bool) -> PrefixChange:
        """Put new prefixes in place of the old ones. Gives what that means for mobile nodes."""
        old = {each.prefix: each for each in self.prefixes.prefixes}
        flags = (managed, other) != (self.managed, self.other)
        self.prefixes = PrefixList(tuple(prefixes))
        self.managed, self.other = managed, other
        new = {each.prefix: each for each in self.prefixes.prefixes}
        changed = {each for each in old.keys() | new.keys() if old.get(each) != new.get(each)}
        return PrefixChange(
            everyone=flags or bool(new.keys() - old.keys()), prefixes=frozenset(changed)
        )


class PrefixChange:
    """Whom a change of prefixes concerns: ``everyone`` (a prefix is new, a flag changed), or
    those whose home address is in one of ``prefixes`` (§10.6.2)."""

    __slots__ = ("everyone", "prefixes")

    def __init__(self, *, everyone: bool, prefixes: frozenset[object]) -> None:
        self.everyone = everyone
        self.prefixes = prefixes

    def concerns(self, prefix: LinkPrefix | None) -> bool:
        """True when a mobile node at home in ``prefix`` must be told."""
        return self.everyone or (prefix is not None and prefix.prefix in self.prefixes)
