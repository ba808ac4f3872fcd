"""A home agent's bindings, with all that lives and dies with them: leases of IPv4 addresses and
prefixes, duties on the home link, prefix advertisements (RFC 6275 §10.3.1; RFC 5555 §2.5, §4.5)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.mobility.binding_cache import BindingCache
from dsmip_ipsec.mobility.constants import REFRESH_TIME_IGNORE
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.home_agent_discovery import HomeAgentDiscovery, PrefixChange
from dsmip_ipsec.mobility.home_link import duties_of
from dsmip_ipsec.mobility.home_link_types import HomeLinkChanged
from dsmip_ipsec.mobility.ipv4_home import NO_GRANT, IPv4Grant, IPv4Pool, grant_ipv4
from dsmip_ipsec.mobility.ipv4_prefix_pool import IPv4PrefixPool
from dsmip_ipsec.mobility.registration import Registration
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    ChangeReason,
    Output,
    change_reason,
)
from dsmip_ipsec.wire.mobility import LIFETIME_UNIT


class HomeBindings:
    """The binding cache and what goes with it. Methods append to ``outputs`` what to do."""

    def __init__(self, config: HomeAgentConfig, discovery: HomeAgentDiscovery) -> None:
        self.config = config
        self.cache = BindingCache()
        static = (s.ipv4_home_address for s in config.subscribers.values())
        reserved = {IPv4Address(address.ip) for address in static if address is not None}
        if config.home_agent_ipv4 is not None:
            reserved.add(config.home_agent_ipv4)
        self.ipv4_pool = IPv4Pool(config.ipv4_pool, frozenset(reserved))
        self.ipv4_prefix_pool = IPv4PrefixPool(config.ipv4_prefix_pool, config.shortest_ipv4_prefix)
        self._discovery = discovery
        self._max_units = config.max_lifetime // LIFETIME_UNIT

    def establish(
        self,
        outputs: list[Output],
        registration: Registration,
        subscriber: Subscriber,
        old: Binding | None,
        now: float,
    ) -> tuple[Binding, IPv4Grant, bool]:
        """Create or replace a binding (RFC 6275 §10.3.1, from the point where everything is in
        order). Gives it, what it got in IPv4, and whether prefix discovery is necessary."""
        update = registration.update
        config = self.config
        home_address = registration.home_address
        outer = registration.packet.outer
        care_of = registration.care_of_address
        grant = self._grant(registration, subscriber)
        units = min(update.lifetime, self._max_units)
        if grant.leased or grant.leased_prefixes:  # RFC 5555 §2.5
            units = min(units, config.ipv4_lease_time // LIFETIME_UNIT)
        units, discover = self._discovery.prefixes.lifetime(home_address, units, now)
        # RFC 5555 §4.2: the outer source against the care-of address in the update.
        nat = outer is not None and outer.address != care_of
        forced = outer is not None and (
            update.force_udp or (config.forces_udp and care_of.version == 4)
        )
        if old is not None:
            # Equal objects are kept: it saves memory, and makes later comparisons short.
            care_of = old.care_of_address if old.care_of_address == care_of else care_of
            outer = old.outer if old.outer == outer else outer
        new = Binding(
            home_address,
            config.home_agent_address,
            care_of,
            update.sequence,
            units * LIFETIME_UNIT,
            now,
            now + units * LIFETIME_UNIT,
            config.home_agent_ipv4,
            grant.home_address,
            grant.prefixes,
            registration.mobile_network_prefixes,
            outer,
            nat,
            nat or forced,
            forced,
            update.key_mobility and config.key_mobility,
            update.mobile_router,
            config.nat_refresh_time if nat else REFRESH_TIME_IGNORE,
            # Only what was looked at for duplicates is defended: L stays as the binding began.
            update.link_local if old is None else old.link_local,
        )
        self.cache.put(new)
        reason = change_reason(old, new)
        outputs.append(BindingChanged(old, new, reason))
        if reason is not ChangeReason.REFRESHED:
            self._home_link(outputs, old, new)
        if self._discovery.advertises:
            if old is None:
                self._discovery.advertising.began(home_address, now)
            else:
                self._discovery.advertising.refreshed(home_address, now)
        return new, grant, discover

    def bury(self, outputs: list[Output], home_address: IPv6Address, until: float) -> None:
        """End a binding by deregistration, remembering its sequence number ``until`` then. A
        tombstone is one again: the acknowledgement was lost, the mobile node asked once more."""
        old = self.cache.bury(home_address, until)
        if old is not None:
            self._ended(outputs, old, ChangeReason.DEREGISTERED)

    def expire(self, outputs: list[Output], now: float) -> int:
        """End the bindings whose lifetime is over, and send the prefix advertisements that are
        due. Gives the number of bindings."""
        expired = self.cache.expire(now)
        for binding in expired:
            self._ended(outputs, binding, ChangeReason.EXPIRED)
        if self._discovery.advertises:
            for home_address in self._discovery.advertising.due(now):
                current = self.cache.get(home_address)
                if current is not None:
                    outputs.append(self._discovery.unsolicited(current, now))
        return len(expired)

    def follow_prefixes(self, outputs: list[Output], change: PrefixChange, now: float) -> None:
        """Shorten and end bindings with the validity of their prefix, and schedule
        advertisements (RFC 6275 §10.3.1, §10.6.2)."""
        known = self._discovery.prefixes
        for binding in list(self.cache):
            home_address = binding.home_address
            until = known.valid_until(home_address)
            if until <= now:
                self.cache.remove(home_address)
                self._ended(outputs, binding, ChangeReason.EXPIRED)
                continue
            if until < binding.expires_at:
                shorter = replace(binding, expires_at=until)
                self.cache.put(shorter)
                outputs.append(BindingChanged(binding, shorter, ChangeReason.REFRESHED))
            prefix = known.prefix_of(home_address)
            if self._discovery.advertises and change.concerns(prefix):
                preferred = 0.0 if prefix is None else prefix.preferred_until - now
                self._discovery.advertising.changed(home_address, preferred, now)

    def _grant(self, registration: Registration, subscriber: Subscriber) -> IPv4Grant:
        """IPv4 addresses and prefixes. Leases that the update doesn't name end (RFC 5555
        §4.4.2.1: it replaces what the one before had set)."""
        requests = registration.options.ipv4_home_addresses
        home_address = registration.home_address
        grant = NO_GRANT
        if requests:
            grant = grant_ipv4(
                requests, home_address, subscriber, self.ipv4_pool, self.ipv4_prefix_pool
            )
        if not grant.leased:
            self.ipv4_pool.release(home_address)
        self.ipv4_prefix_pool.keep(home_address, grant.leased_prefixes)
        return grant

    def _ended(self, outputs: list[Output], binding: Binding, reason: ChangeReason) -> None:
        """Do and tell what follows when ``binding`` has left the cache."""
        home_address = binding.home_address
        self.ipv4_pool.release(home_address)
        self.ipv4_prefix_pool.keep(home_address)
        self._discovery.advertising.ended(home_address)
        outputs.append(BindingChanged(binding, None, reason))
        self._home_link(outputs, binding, None)

    def _home_link(self, outputs: list[Output], old: Binding | None, new: Binding | None) -> None:
        binding = new or old
        assert binding is not None
        length = self._discovery.prefixes.prefix_length_of(binding.home_address)
        before, after = duties_of(old, length), duties_of(new, length)
        if before != after:
            outputs.append(HomeLinkChanged(binding.home_address, before, after))
