"""What a home agent asks of its driver on the home link. (A module of its own, so that
:mod:`dsmip_ipsec.mobility.types` can list the outputs.)
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Route: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class ProxyNeighbour:
    """An address that the home agent defends by proxy Neighbor Discovery (RFC 6275 §10.4.1).
    ``router`` is the R bit of the advertisements: of a mobile router (RFC 3963 §6.2) only."""

    address: IPv6Address
    router: bool = False


@dataclass(frozen=True, slots=True)
class HomeLinkDuties:
    """What must be so at the home agent while a mobile node is away.

    ``neighbours``: answer Neighbor Solicitations for them, and advertise each once when it is
    new. ``arp``: answer ARP requests for them (RFC 5555 §4.5). ``routes``: prefixes that are
    reached through the mobile node (RFC 3963 §6.3, RFC 5555 §4.5).
    """

    neighbours: tuple[ProxyNeighbour, ...] = ()
    arp: tuple[IPv4Address, ...] = ()
    routes: tuple[Route, ...] = ()

    def without(self, other: HomeLinkDuties) -> HomeLinkDuties:
        """Those of these duties that aren't in ``other``."""
        return HomeLinkDuties(
            tuple(each for each in self.neighbours if each not in other.neighbours),
            tuple(each for each in self.arp if each not in other.arp),
            tuple(each for each in self.routes if each not in other.routes),
        )


NO_DUTIES = HomeLinkDuties()


@dataclass(frozen=True, slots=True)
class HomeLinkChanged:
    """The duties for ``home_address`` were ``old`` and are ``new``. Comes after the
    ``BindingChanged`` that is its cause and before the acknowledgement."""

    home_address: IPv6Address
    old: HomeLinkDuties
    new: HomeLinkDuties

    @property
    def added(self) -> HomeLinkDuties:
        """What to begin with."""
        return self.new.without(self.old)

    @property
    def removed(self) -> HomeLinkDuties:
        """What to end."""
        return self.old.without(self.new)


@dataclass(frozen=True, slots=True)
class DetectDuplicateAddress:
    """Perform Duplicate Address Detection for ``addresses`` on the home link, and tell
    ``HomeAgent.duplicate_address_result`` what came of it (RFC 6275 §10.3.1). The binding update
    that wants it is answered only then."""

    home_address: IPv6Address
    addresses: tuple[IPv6Address, ...]
