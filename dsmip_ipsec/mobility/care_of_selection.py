"""Which care-of address to register (RFC 5555 §4.4.1)."""

from __future__ import annotations

from ipaddress import IPv4Address

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.constants import IPV6_ATTEMPTS
from dsmip_ipsec.mobility.registration import is_care_of_address
from dsmip_ipsec.mobility.types import IPAddress


class CareOfSelection:
    """IPv6 first; IPv4 after three unanswered binding updates; and then IPv4 first, in network
    after network, until the administrative domain is known to be another.

    ``current`` is the care-of address to send from, None without any. ``ipv4_usable``: the IPv4
    address of the home agent in use is known.
    """

    __slots__ = ("_alternative", "_domain", "_fell_back", "current", "ipv4_usable")

    def __init__(self, *, ipv4_usable: bool) -> None:
        self.current: IPAddress | None = None
        self.ipv4_usable = ipv4_usable
        self._alternative: IPv4Address | None = None
        self._domain = ""
        self._fell_back = False

    def attach(
        self, address: IPAddress, alternative: IPv4Address | None = None, domain: str = ""
    ) -> None:
        """A new network with ``address``, and ``alternative`` if it has both families. ``domain``
        names its administrative domain, "" when unknown.

        Raises :class:`MobilityError` when an address can't be used. Nothing has changed then.
        """
        if not self.ipv4_usable:
            alternative = None
        for candidate in (address, alternative):
            if candidate is not None:
                self._check(candidate)
        if self._domain and domain and domain != self._domain:
            self._fell_back = False
        self._domain = domain or self._domain
        self.current = address
        self._alternative = alternative if address.version == 6 else None
        if self._fell_back and self._alternative is not None:
            self.current, self._alternative = self._alternative, None

    def leave(self, address: IPAddress | None = None) -> None:
        """No visited network any more: no care-of address, or the home address at home."""
        self.current = address
        self._alternative = None

    def fall_back(self, attempts: int = IPV6_ATTEMPTS) -> bool:
        """Change to IPv4 if there is one and IPv6 had its ``attempts``. True if it changed."""
        if self._alternative is None or not self.ipv4_usable or attempts < IPV6_ATTEMPTS:
            return False
        self.current, self._alternative = self._alternative, None
        self._fell_back = True
        return True

    def _check(self, address: IPAddress) -> None:
        if not is_care_of_address(address):
            raise MobilityError(
                f"{address} can't be a care-of address", hint="give a unicast address of the link"
            )
        if address.version == 4 and not self.ipv4_usable:
            raise MobilityError(
                f"the IPv4 care-of address {address} can't be used: "
                "the home agent's IPv4 address isn't known",
                hint="configure home_agent_ipv4",
            )
