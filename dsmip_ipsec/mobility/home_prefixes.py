"""The home link's prefixes as the home agent knows them: its Prefix List (RFC 6275 §10.3.1,
§10.6.1, §10.6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from math import inf
from typing import Final

from dsmip_ipsec.wire.icmp6 import PrefixInformation
from dsmip_ipsec.wire.mobility import LIFETIME_UNIT

INFINITE_LIFETIME: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class LinkPrefix:
    """A prefix of the home link. ``valid_until`` and ``preferred_until`` are points in time, so
    that they change only when someone changes them, not as time goes by; ``inf``: for ever.
    ``router_address``: the home agent's address in it, told by the R flag (§7.2)."""

    prefix: IPv6Network
    valid_until: float = inf
    preferred_until: float = inf
    on_link: bool = True
    autonomous: bool = True
    router_address: IPv6Address | None = None

    def information(self, now: float) -> PrefixInformation:
        """The Prefix Information option of it at time ``now``."""
        address = self.router_address
        return PrefixInformation(
            self.prefix.prefixlen,
            self.prefix.network_address if address is None else address,
            _seconds(self.valid_until - now),
            _seconds(self.preferred_until - now),
            self.on_link,
            self.autonomous,
            address is not None,
        )


def _seconds(remaining: float) -> int:
    if remaining == inf:
        return INFINITE_LIFETIME
    return max(0, min(int(remaining), INFINITE_LIFETIME - 1))


class PrefixList:
    """The prefixes of the home link. An empty list knows nothing: every address is at home."""

    __slots__ = ("_finite", "_masks", "prefixes")

    def __init__(self, prefixes: Sequence[LinkPrefix]) -> None:
        self.prefixes = tuple(prefixes)
        # Compared as integers: "address in network" costs several times as much.
        self._masks = tuple(
            (
                128 - each.prefix.prefixlen,
                int(each.prefix.network_address) >> (128 - each.prefix.prefixlen),
                each,
            )
            for each in sorted(self.prefixes, key=lambda each: -each.prefix.prefixlen)
        )
        self._finite = any(
            each.valid_until != inf or each.preferred_until != inf for each in self.prefixes
        )

    def prefix_of(self, home_address: IPv6Address) -> LinkPrefix | None:
        """The longest prefix that a home address is in."""
        value = int(home_address)
        for shift, network, prefix in self._masks:
            if value >> shift == network:
                return prefix
        return None

    def prefix_length_of(self, home_address: IPv6Address) -> int:
        """The length of a home address's subnet prefix, 64 if unknown."""
        prefix = self.prefix_of(home_address)
        return 64 if prefix is None else prefix.prefix.prefixlen

    def is_at_home(self, home_address: IPv6Address, now: float) -> bool:
        """True for "an on-link IPv6 address with respect to the current Prefix List"."""
        if not self._masks:
            return True
        prefix = self.prefix_of(home_address)
        return prefix is not None and prefix.valid_until - now >= LIFETIME_UNIT

    def lifetime(self, home_address: IPv6Address, units: int, now: float) -> tuple[int, bool]:
        """The lifetime to grant when ``units`` (of four seconds) are asked for, and whether to
        say status 1, "accepted but prefix discovery necessary" (§10.3.1).

        The valid lifetime bounds it, the preferred one doesn't.
        """
        if not self._finite:
            return units, False
        prefix = self.prefix_of(home_address)
        if prefix is None:
            return units, False
        valid = (prefix.valid_until - now) // LIFETIME_UNIT
        preferred = (prefix.preferred_until - now) // LIFETIME_UNIT
        granted = max(0, int(min(units, valid)))
        return granted, preferred < granted or preferred <= 0 or valid <= granted

    def valid_until(self, home_address: IPv6Address) -> float:
        """When an address stops being at home: ``-inf`` when it is in none of the prefixes."""
        if not self._masks:
            return inf
        prefix = self.prefix_of(home_address)
        return -inf if prefix is None else prefix.valid_until

    def information(self, now: float) -> tuple[PrefixInformation, ...]:
        """All of it for a mobile prefix advertisement: "the list of prefixes is sent in its
        entirety in all cases" (§10.6.2). Prefixes that aren't valid any more are left out."""
        return tuple(each.information(now) for each in self.prefixes if each.valid_until > now)
