"""Movement detection of one interface: what the link, IPv6 and IPv4 tell, made into where the
mobile node is (RFC 6275 §11.5, RFC 5555 §4.4.4, RFC 4436).

IPv4 is used alone when IPv6 "fails to configure an IPv6 address" (RFC 5555 §4.4.4): when no router
answers, or none did within ``ipv6_patience`` of the link's coming up. Should IPv6 come later, the
node changes to it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network
from typing import Final

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.movement_ipv4 import IPv4Movement
from dsmip_ipsec.mobility.movement_ipv6 import IPv6Movement, Phase
from dsmip_ipsec.mobility.movement_types import (
    AddressGone,
    AddressUsable,
    ArpReply,
    AtHome,
    Lease,
    LeaseLost,
    LinkDown,
    LinkUp,
    MovementInput,
    MovementOutput,
    NoCareOf,
    RouterAdvertisement,
    RouterReachability,
    UseCareOf,
)

IPV6_PATIENCE: Final = 1.0


class MovementDetector:
    """Hand in what happens with :meth:`handle`, call :meth:`tick` at :meth:`next_deadline`, and do
    what the outputs say.

    Hints (a link that comes up, a router that is silent) change nothing by themselves: the old
    place is kept until it is known to be left. :class:`UseCareOf`, :class:`AtHome` and
    :class:`NoCareOf` come only when they differ from the last one.

    Raises :class:`MobilityError` for an ``ipv6_patience`` below zero.
    """

    def __init__(
        self,
        *,
        home_prefix: IPv6Network | None = None,
        ipv6_patience: float = IPV6_PATIENCE,
        reachability_test: bool = True,
        test_manual: bool = False,
    ) -> None:
        if not 0 <= ipv6_patience < float("inf"):
            raise MobilityError(
                f"{ipv6_patience} s of patience with IPv6", hint="give a time of zero or more"
            )
        self.ipv6 = IPv6Movement(home_prefix)
        self.ipv4 = IPv4Movement(reachability_test=reachability_test, test_manual=test_manual)
        self._patience = ipv6_patience
        self._ipv4_from: float | None = None  # when IPv4 alone will do
        self._up = False
        self._told: UseCareOf | AtHome | NoCareOf = NoCareOf()

    def handle(self, told: MovementInput, now: float) -> list[MovementOutput]:
        """Take note of ``told`` at time ``now`` (seconds of a monotonic clock)."""
        outputs: list[MovementOutput] = []
        if isinstance(told, LinkDown):
            self._up = False
            self._ipv4_from = None
            self.ipv6.link_down()
            self.ipv4.link_down()
        elif isinstance(told, LinkUp):
            self._up = True
            self._ipv4_from = now + self._patience
            outputs += self.ipv6.link_up(now)
            outputs += self.ipv4.link_up(now)
        elif isinstance(told, RouterAdvertisement):
            outputs += self.ipv6.advertisement(told, now)
        elif isinstance(told, RouterReachability):
            outputs += self.ipv6.reachability(told, now)
        elif isinstance(told, AddressUsable | AddressGone):
            self.ipv6.address(told)
        elif isinstance(told, ArpReply):
            self.ipv4.arp_reply(told, now)
        elif isinstance(told, Lease):
            self.ipv4.leased(told)
        elif isinstance(told, LeaseLost):
            self.ipv4.lost()
        return outputs + self._decide(now)

    def tick(self, now: float) -> list[MovementOutput]:
        """Do what is due at ``now``."""
        outputs: list[MovementOutput] = []
        if self._up:
            outputs += self.ipv6.tick(now)
            outputs += self.ipv4.tick(now)
        return outputs + self._decide(now)

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`, None if there is nothing to wait for."""
        if not self._up:
            return None
        deadlines = [self.ipv6.next_deadline(), self.ipv4.next_deadline(), self._ipv4_from]
        return min((each for each in deadlines if each is not None), default=None)

    def _decide(self, now: float) -> list[MovementOutput]:
        if self._ipv4_from is not None and self._ipv4_from <= now:
            self._ipv4_from = None
        place = self._place()
        if place is None or place == self._told:
            return []
        self._told = place
        return [place]

    def _place(self) -> UseCareOf | AtHome | NoCareOf | None:
        """Where the node is; None while that is being found out."""
        ipv6, ipv4 = self.ipv6, self.ipv4
        if not self._up:
            return NoCareOf()
        if ipv6.phase is Phase.DOUBTFUL:
            return None
        if ipv6.at_home:
            return AtHome()
        lease = ipv4.lease
        address = None if lease is None else IPv4Address(lease.address.ip)
        domain = "" if lease is None else lease.domain
        if ipv6.care_of_address is not None:
            told = self._told
            if (
                ipv4.testing
                and isinstance(told, UseCareOf)
                and told.care_of_address == ipv6.care_of_address
            ):
                # The alternative is still being tested; only the primary address counts now.
                return None
            return UseCareOf(ipv6.care_of_address, address, domain, lease)
        if address is not None:
            if self._ipv4_from is not None and not ipv6.failed:
                return None
            return UseCareOf(address, None, domain, lease)
        searching = ipv6.phase is Phase.SEARCHING and not ipv6.failed
        if ipv4.testing or searching or self._ipv4_from is not None:
            return None
        return NoCareOf()
