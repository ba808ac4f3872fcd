"""What a home agent knows before the first binding update arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.constants import MAX_LIFETIME_UNITS, NATKATIMEOUT
from dsmip_ipsec.wire.mobility import LIFETIME_UNIT
from dsmip_ipsec.wire.options import REFRESH_NOT_NEEDED


@dataclass(frozen=True, slots=True)
class Subscriber:
    """What belongs to an IPv6 home address (RFC 5555 §4.5: the home agent MUST be able to find
    the IPv4 home address when given the IPv6 one; §5: that is what authorises it).

    ``ipv4_home_address`` has prefix length 32 unless the whole prefix is the mobile node's.
    Prefixes are those that a mobile router may register, or gets in implicit mode
    (RFC 3963 §6.2). ``mobile_router`` None: permitted when there is any prefix.
    ``dynamic_ipv4``: may be given an address from the pool; ``dynamic_ipv4_prefix``: prefixes
    from the pool of prefixes, once its own (``ipv4_prefixes``) are given.
    """

    ipv4_home_address: IPv4Interface | None = None
    ipv4_prefixes: tuple[IPv4Network, ...] = ()
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()
    mobile_router: bool | None = None
    dynamic_ipv4: bool = True
    dynamic_ipv4_prefix: bool = False

    @property
    def may_route(self) -> bool:
        """True when this subscriber may set the R flag."""
        if self.mobile_router is None:
            return bool(self.mobile_network_prefixes)
        return self.mobile_router


@dataclass(frozen=True, slots=True)
class HomeAgentConfig:
    """Configuration of :class:`~dsmip_ipsec.mobility.home_agent.HomeAgent`. Times in seconds.

    ``home_agent_ipv4``: the address that this node itself uses, also behind a static NAPT
    (RFC 5555 §1.3, scenario 3). ``home_prefixes``: home addresses elsewhere are "not home subnet"
    (132); empty: whoever is a subscriber is at home. ``accept_force_udp``: whether F is granted
    at an IPv4 care-of address, ``accept_force_udp_ipv6`` at an IPv6 one (a last resort, RFC 5555
    §4.4.1); refused with 144. ``force_udp``: UDP encapsulation even without NAT, for IPv4.
    ``key_mobility``: this home agent moves its IKE end points (K). ``refresh_advice``: suggest a
    refresh after so many seconds, 0 for no suggestion. ``ipv4_pool``: networks for dynamic IPv4
    home addresses, ``ipv4_prefix_pool``: for prefixes, none shorter than
    ``shortest_ipv4_prefix``; both with leases of ``ipv4_lease_time``.

    ``behind_napt``: the home agent is reached through port mapping. No NAT detection can see
    that (only the destination is rewritten), and without ports nothing would pass: UDP
    encapsulation is forced in IPv4 then.

    ``duplicate_address_detection``: ask the driver for it before a home address is served (RFC
    6275 §10.3.1). False where no home link has hosts of its own, or the driver can't.
    ``prefix_advertisements``: send and answer mobile prefix messages (§8.4: MUST be
    configurable). ``managed`` and ``other`` are their M and O flags. ``preference``: in answers
    of home agent address discovery.

    Raises :class:`MobilityError` for a lifetime or refresh time that the protocol can't express.
    """

    home_agent_address: IPv6Address
    home_agent_ipv4: IPv4Address | None = None
    subscribers: Mapping[IPv6Address, Subscriber] = field(default_factory=dict)
    home_prefixes: tuple[IPv6Network, ...] = ()
    max_lifetime: int = 3600
    max_bindings: int = 1_000_000
    nat_refresh_time: int = NATKATIMEOUT
    accept_force_udp: bool = True
    accept_force_udp_ipv6: bool = False
    force_udp: bool = False
    key_mobility: bool = False
    refresh_advice: int = 0
    ipv4_pool: tuple[IPv4Network, ...] = ()
    ipv4_lease_time: int = 3600
    ipv4_prefix_pool: tuple[IPv4Network, ...] = ()
    shortest_ipv4_prefix: int = 24
    behind_napt: bool = False
    duplicate_address_detection: bool = False
    prefix_advertisements: bool = True
    managed: bool = False
    other: bool = False
    preference: int = 0

    def __post_init__(self) -> None:
        for name in ("max_lifetime", "ipv4_lease_time"):
            value = getattr(self, name)
            if not LIFETIME_UNIT <= value <= LIFETIME_UNIT * MAX_LIFETIME_UNITS:
                raise MobilityError(
                    f"{name} is {value} s",
                    hint=f"give {LIFETIME_UNIT} to {LIFETIME_UNIT * MAX_LIFETIME_UNITS} s",
                )
        # All ones would say "no NAT was detected" (RFC 5555 §3.2.2).
        if not 0 <= self.nat_refresh_time < REFRESH_NOT_NEEDED:
            raise MobilityError(
                f"nat_refresh_time is {self.nat_refresh_time} s",
                hint=f"give a time below the NAT's UDP time-out, {NATKATIMEOUT} s if unknown",
            )
        if not 1 <= self.shortest_ipv4_prefix <= 32:
            raise MobilityError(
                f"shortest_ipv4_prefix is {self.shortest_ipv4_prefix}",
                hint="give a prefix length of 1 to 32",
            )
        # RFC 6275 §10.3.1: less than the lifetime that is returned.
        if self.refresh_advice and not LIFETIME_UNIT <= self.refresh_advice < self.max_lifetime:
            raise MobilityError(
                f"refresh_advice is {self.refresh_advice} s",
                hint=f"give 0, or {LIFETIME_UNIT} s and more but less than max_lifetime",
            )

    @property
    def forces_udp(self) -> bool:
        """True when UDP encapsulation is used at every IPv4 care-of address."""
        return self.force_udp or self.behind_napt

    @property
    def serves_mobile_routers(self) -> bool:
        """True when any subscriber may be a mobile router."""
        return any(subscriber.may_route for subscriber in self.subscribers.values())
