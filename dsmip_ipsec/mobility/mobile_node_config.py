"""What a mobile node knows about itself and its home."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network
from typing import Final

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.constants import (
    INITIAL_BINDACK_TIMEOUT_FIRST_REG,
    MAX_LIFETIME_UNITS,
    NATKATIMEOUT,
)
from dsmip_ipsec.mobility.discovery import HomeAgentAddresses
from dsmip_ipsec.wire.mobility import LIFETIME_UNIT

# Each takes 8 octets of a binding update; a mobile node with more has another problem.
MAX_PREFIXES: Final = 16


@dataclass(frozen=True, slots=True)
class MobileNodeConfig:
    """Configuration of :class:`~dsmip_ipsec.mobility.mobile_node.MobileNode`. Times in seconds.

    ``ipv4_home_address``: a static one. ``request_ipv4``: ask for a dynamic one instead.
    ``ipv4_prefix_lengths``: ask for IPv4 prefixes of these lengths too (RFC 5555 §3.1.1, P).
    ``lifetime``: to ask for. ``key_mobility``: this node moves its IKE end points (K).
    ``mobile_router`` sets R; ``mobile_network_prefixes`` then is explicit mode, none implicit
    (RFC 3963 §5.2). ``link_local_compatible``: the L bit (RFC 6275 §11.7.1). ``force_udp``: ask
    for UDP encapsulation in IPv4 networks from the start (F). ``nat_refresh_time``: when the
    home agent suggests none. ``first_registration_timeout``: InitialBindackTimeoutFirstReg.

    ``other_home_agents`` are tried in this order when ``home_agent`` refuses or doesn't answer.
    ``home_prefix``: with it, home agents may be looked for by DHAAD (RFC 6275 §11.4.1), and
    movement detection knows the home link. ``udp_over_ipv6``: UDP may be tried over IPv6, as the
    last resort of RFC 5555 §4.4.1.

    Raises :class:`MobilityError` for values that the protocol can't express.
    """

    home_address: IPv6Address
    home_agent: IPv6Address
    home_agent_ipv4: IPv4Address | None = None
    ipv4_home_address: IPv4Interface | None = None
    request_ipv4: bool = False
    ipv4_prefix_lengths: tuple[int, ...] = ()
    lifetime: int = 600
    key_mobility: bool = False
    mobile_router: bool = False
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()
    link_local_compatible: bool = False
    force_udp: bool = False
    nat_refresh_time: int = NATKATIMEOUT
    first_registration_timeout: float = INITIAL_BINDACK_TIMEOUT_FIRST_REG
    other_home_agents: tuple[HomeAgentAddresses, ...] = ()
    home_prefix: IPv6Network | None = None
    udp_over_ipv6: bool = False

    def __post_init__(self) -> None:
        longest = LIFETIME_UNIT * MAX_LIFETIME_UNITS
        if not LIFETIME_UNIT <= self.lifetime <= longest:
            raise MobilityError(
                f"a binding lifetime of {self.lifetime} s",
                hint=f"ask for {LIFETIME_UNIT} to {longest} s",
            )
        for length in self.ipv4_prefix_lengths:
            if not 1 <= length <= 32:
                raise MobilityError(f"an IPv4 prefix length of {length}", hint="ask for 1 to 32")
        if len(self.ipv4_prefix_lengths) > MAX_PREFIXES:
            raise MobilityError(
                f"{len(self.ipv4_prefix_lengths)} IPv4 prefixes", hint=f"ask for {MAX_PREFIXES}"
            )
        if self.home_prefix is not None and self.home_address not in self.home_prefix:
            raise MobilityError(
                f"the home address {self.home_address} isn't in the home prefix",
                hint="give the prefix of the home link",
            )
        if self.nat_refresh_time <= 0 or self.first_registration_timeout <= 0:
            raise MobilityError(
                "a refresh time or time-out that isn't above zero", hint="leave out the setting"
            )
        if self.mobile_network_prefixes and not self.mobile_router:
            raise MobilityError(
                "mobile network prefixes without mobile_router",
                hint="set mobile_router, or leave out the prefixes",
            )

    @property
    def wants_ipv4_address(self) -> bool:
        """True when the node has an IPv4 home address or needs one."""
        return self.ipv4_home_address is not None or self.request_ipv4
