"""Where a mobile node is: one visited network, with one family or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from dsmip_ipsec.errors import ConfigError, MobilityError
from dsmip_ipsec.kernel.routing import Address, Attachment


@dataclass(frozen=True, slots=True)
class Place:
    """``primary`` is what to register first: IPv6 where there is IPv6 (RFC 5555 §4.4.1).
    ``alternative`` is the IPv4 one of a network with both families. ``domain`` names the
    administrative domain, "" when unknown."""

    primary: Attachment
    alternative: Attachment | None = None
    domain: str = ""

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The primary one first."""
        return (self.primary,) if self.alternative is None else (self.primary, self.alternative)

    @property
    def ipv4_alternative(self) -> IPv4Address | None:
        """The care-of address of ``alternative``."""
        if self.alternative is None:
            return None
        address = self.alternative.care_of_address
        assert isinstance(address, IPv4Address), "read_place and movement see to it"
        return address

    def of(self, care_of_address: Address) -> Attachment | None:
        """The attachment that has this care-of address."""
        for attachment in self.attachments:
            if attachment.care_of_address == care_of_address:
                return attachment
        return None


@dataclass(frozen=True, slots=True)
class Home:
    """The home link, on ``interface``."""

    interface: str


def read_place(arguments: Mapping[str, Any]) -> Place:
    """The arguments of the command ``attach``: ``interface``, ``care_of_address``, ``gateway``
    (either family); with an IPv6 one optionally ``ipv4_care_of_address`` and ``ipv4_gateway``;
    ``domain``. Raises ConfigError."""
    try:
        interface = str(arguments["interface"])
        primary = Attachment(
            interface,
            ip_address(arguments["care_of_address"]),
            ip_address(arguments["gateway"]),
        )
        alternative = None
        if "ipv4_care_of_address" in arguments:
            if not isinstance(primary.care_of_address, IPv6Address):
                raise ValueError("ipv4_care_of_address is for networks with IPv6")
            alternative = Attachment(
                interface,
                IPv4Address(arguments["ipv4_care_of_address"]),
                IPv4Address(arguments["ipv4_gateway"]),
            )
        return Place(primary, alternative, str(arguments.get("domain", "")))
    except (KeyError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"not an attachment: {what}",
            hint="give interface, care_of_address and gateway; in a network with both families "
            "ipv4_care_of_address and ipv4_gateway beside them",
        ) from error


def unanswered(place: Place, limit_s: float) -> MobilityError:
    """No binding acknowledgement came for any care-of address of ``place``."""
    addresses = " or ".join(str(each.care_of_address) for each in place.attachments)
    way = "UDP port 4191" if place.primary.gateway.version == 4 else "ESP over IPv6"
    return MobilityError(
        f"no binding acknowledgement for {addresses} within {limit_s:g} s",
        hint=f"does {way} pass to the home agent and back, and is the home agent's "
        "daemon running? its log and counters tell whether the binding update arrived",
    )


def still_bound(limit_s: float) -> MobilityError:
    """No acknowledgement came for a deregistration."""
    return MobilityError(
        f"the home agent didn't acknowledge the deregistration within {limit_s:g} s",
        hint="the binding expires there by its lifetime; look at the home agent's log",
    )
