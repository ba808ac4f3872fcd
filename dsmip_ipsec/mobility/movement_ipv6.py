"""Movement detection by IPv6 Neighbor Discovery (RFC 6275 §11.5.1 to §11.5.4).

The current default router decides: while it is there, the node hasn't moved. What it is::

    state        what brings it about                          what follows
    ---------    ------------------------------------------    -------------------------------
    NONE         start; link down                              nothing
    SEARCHING    link up without a router; router gone         router solicitations, three at most
    CURRENT      an advertisement of a router                  care-of address of its prefixes
    DOUBTFUL     link up; advertisements missed; a router      neighbour solicitations to it, three
                 with other prefixes is heard                  at most -> CURRENT or SEARCHING
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from dsmip_ipsec.mobility.movement_types import (
    AddressGone,
    AddressUsable,
    MovementOutput,
    ProbeRouter,
    RouterAdvertisement,
    RouterReachability,
    SolicitRouters,
)
from dsmip_ipsec.mobility.registration import is_routable_unicast

# RFC 4861 §10: MAX_MULTICAST_SOLICIT and RETRANS_TIMER; MAX_RTR_SOLICITATIONS at
# RTR_SOLICITATION_INTERVAL. RFC 6275 leaves to us how many lost advertisements are a hint.
PROBES: Final = 3
PROBE_INTERVAL: Final = 1.0
SOLICITATIONS: Final = 3
SOLICITATION_INTERVAL: Final = 4.0
LOST_ADVERTISEMENTS: Final = 3

_MAX_ROUTERS = 16
_MAX_ADDRESSES = 64


class Phase(StrEnum):
    """See the module."""

    NONE = "none"
    SEARCHING = "searching"
    CURRENT = "current"
    DOUBTFUL = "doubtful"


@dataclass(slots=True)
class _Router:
    address: IPv6Address
    global_address: IPv6Address | None
    prefixes: tuple[IPv6Network, ...]
    heard_at: float
    valid_until: float
    interval: float | None


class IPv6Movement:
    """One interface in IPv6. ``care_of_address`` is the primary one, None without.
    ``failed`` says that nobody answered the router solicitations: there is no IPv6 here."""

    def __init__(self, home_prefix: IPv6Network | None = None) -> None:
        self.phase = Phase.NONE
        self.failed = False
        self.care_of_address: IPv6Address | None = None
        self._home_prefix = home_prefix
        self._router: _Router | None = None
        self._others: dict[IPv6Address, _Router] = {}
        self._addresses: dict[IPv6Address, None] = {}
        self._tries = 0
        self._due_at: float | None = None

    @property
    def router(self) -> IPv6Address | None:
        """The current default router's link-local address."""
        return None if self._router is None else self._router.address

    @property
    def at_home(self) -> bool:
        """§11.5.2: "the home prefix matches one of the prefixes received in the RA"."""
        router = self._router
        return router is not None and self._home_prefix in router.prefixes

    def link_up(self, now: float) -> list[MovementOutput]:
        """A hint: ask the router, or for one."""
        self.failed = False
        if self._router is None:
            return self._search(now)
        return self._doubt(now)

    def link_down(self) -> None:
        """What was heard on the link is kept: it may be the same one that comes back."""
        if self._router is None:
            self.phase = Phase.NONE
        self._due_at = None

    def advertisement(self, heard: RouterAdvertisement, now: float) -> list[MovementOutput]:
        """§11.5.1: a new router, even with a new prefix, needn't be a movement."""
        router = _Router(
            heard.router,
            heard.global_address,
            heard.prefixes,
            now,
            now + heard.lifetime,
            heard.interval if heard.interval is not None and heard.interval > 0 else None,
        )
        current = self._router
        if current is not None and _same_router(current, router):
            if heard.lifetime <= 0:
                return self._lost(now)
            self._settle(router, now)
            return []
        if heard.lifetime <= 0:
            self._others.pop(heard.router, None)
            return []
        if current is None or current.address == router.address:
            # With the same link-local address but nothing else in common, it is another router on
            # another link, and asking that address would only bring an answer of the new one.
            self._others.clear()
            self._settle(router, now)
            return []
        if heard.router in self._others or len(self._others) < _MAX_ROUTERS:
            self._others[heard.router] = router
        if self.phase is Phase.CURRENT and not set(current.prefixes) & set(router.prefixes):
            return self._doubt(now)
        return []

    def reachability(self, told: RouterReachability, now: float) -> list[MovementOutput]:
        """NUD's word on a router, or an answer to a probe."""
        if self._router is None or told.router != self._router.address:
            if not told.reachable:
                self._others.pop(told.router, None)
            return []
        if not told.reachable:
            return self._lost(now)
        # (Its prefixes still count: §11.5.1 "should generally continue to use the old router".)
        self.phase = Phase.CURRENT
        self._router.heard_at = now
        self._wait_for_advertisements(now)
        return []

    def address(self, told: AddressUsable | AddressGone) -> None:
        """The kernel formed a care-of address (§11.5.3), or took it away."""
        if isinstance(told, AddressGone):
            self._addresses.pop(told.address, None)
        elif is_routable_unicast(told.address) and len(self._addresses) < _MAX_ADDRESSES:
            self._addresses[told.address] = None
        self._choose()

    def tick(self, now: float) -> list[MovementOutput]:
        """Do what is due."""
        router = self._router
        if router is not None and router.valid_until <= now:
            return self._lost(now)
        if self._due_at is None or self._due_at > now:
            return []
        if self.phase is Phase.CURRENT:
            return self._doubt(now)
        if self.phase is Phase.DOUBTFUL:
            if self._tries >= PROBES:
                return self._lost(now)
            return self._probe(now)
        if self._tries >= SOLICITATIONS:
            self.failed = True
            self._due_at = None
            return []
        return self._solicit(now)

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`."""
        deadlines = [] if self._due_at is None else [self._due_at]
        if self._router is not None:
            deadlines.append(self._router.valid_until)
        return min(deadlines, default=None)

    # --- from phase to phase ---

    def _settle(self, router: _Router, now: float) -> None:
        self.phase = Phase.CURRENT
        self.failed = False
        self._router = router
        self._others.pop(router.address, None)
        self._wait_for_advertisements(now)
        self._choose()

    def _wait_for_advertisements(self, now: float) -> None:
        router = self._router
        assert router is not None  # CURRENT has one
        self._due_at = None
        if router.interval is not None:
            lost_at = router.heard_at + LOST_ADVERTISEMENTS * router.interval
            # Whatever intervals it tells, and however long ago: no more than a probe a second.
            self._due_at = max(lost_at, now + PROBE_INTERVAL)

    def _doubt(self, now: float) -> list[MovementOutput]:
        self.phase = Phase.DOUBTFUL
        self._tries = 0
        return self._probe(now)

    def _probe(self, now: float) -> list[MovementOutput]:
        assert self._router is not None  # DOUBTFUL has one
        self._tries += 1
        self._due_at = now + PROBE_INTERVAL
        return [ProbeRouter(self._router.address)]

    def _lost(self, now: float) -> list[MovementOutput]:
        """The router is gone: the one heard last instead, or a search."""
        self._router = None
        heard = [each for each in self._others.values() if each.valid_until > now]
        self._others = {each.address: each for each in heard}
        if heard:
            self._settle(max(heard, key=lambda each: each.heard_at), now)
            return []
        self._choose()
        return self._search(now)

    def _search(self, now: float) -> list[MovementOutput]:
        self.phase = Phase.SEARCHING
        self.failed = False
        self._tries = 0
        return self._solicit(now)

    def _solicit(self, now: float) -> list[MovementOutput]:
        self._tries += 1
        self._due_at = now + SOLICITATION_INTERVAL
        return [SolicitRouters()]

    def _choose(self) -> None:
        """§11.5.4: the primary care-of address "always has a prefix that is advertised by its
        current default router". The present one is kept while it may be."""
        prefixes = () if self._router is None else self._router.prefixes
        fit = [each for each in self._addresses if any(each in prefix for prefix in prefixes)]
        if self.care_of_address not in fit:
            self.care_of_address = fit[0] if fit else None


def _same_router(a: _Router, b: _Router) -> bool:
    """§11.5.1: "The link-local addresses of routers are not globally unique"; R gives a global
    one. Without it, prefixes in common tell, or an advertisement without any."""
    if a.address != b.address:
        return False
    if a.global_address is not None and b.global_address is not None:
        return a.global_address == b.global_address
    return not a.prefixes or not b.prefixes or bool(set(a.prefixes) & set(b.prefixes))
