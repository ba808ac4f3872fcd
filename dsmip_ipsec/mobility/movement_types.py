"""What movement detection is told, and what it asks for (RFC 6275 §11.5, RFC 4436)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network
from typing import TypeAlias

# --- what a kernel, a DHCP client or a driver tells ---


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link layer is (again) attached to something: a hint that the node may have moved."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link layer has no carrier."""


@dataclass(frozen=True, slots=True)
class RouterAdvertisement:
    """From ``router``, a link-local address. ``lifetime`` as a default router, seconds (0: none).
    ``prefixes``: on-link or autonomous ones that are valid. ``global_address``: of a prefix
    information option with R (RFC 6275 §7.2). ``interval``: seconds, of the advertisement interval
    option (§7.3)."""

    router: IPv6Address
    lifetime: float
    prefixes: tuple[IPv6Network, ...]
    global_address: IPv6Address | None = None
    interval: float | None = None


@dataclass(frozen=True, slots=True)
class RouterReachability:
    """What neighbour unreachability detection found out, or the answer to :class:`ProbeRouter`."""

    router: IPv6Address
    reachable: bool


@dataclass(frozen=True, slots=True)
class AddressUsable:
    """An IPv6 address is configured and no longer tentative (or optimistic: RFC 4429)."""

    address: IPv6Address


@dataclass(frozen=True, slots=True)
class AddressGone:
    """An IPv6 address was removed, became deprecated, or failed duplicate address detection."""

    address: IPv6Address


@dataclass(frozen=True, slots=True)
class ArpReply:
    """The sender fields of an ARP reply, as they came (RFC 4436 §2.1.1)."""

    address: IPv4Address
    link_address: bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """A DHCP lease, or a manually assigned address (``expires_at`` None, ``manual``).

    ``gateway_link_address`` is b"" while it isn't known; tell again when it is. ``domain`` names
    the administrative domain, "" when unknown.
    """

    address: IPv4Interface
    gateway: IPv4Address
    gateway_link_address: bytes = b""
    expires_at: float | None = None
    manual: bool = False
    domain: str = ""


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """The DHCP client has no address on this link: expired, refused (NAK), or nobody answered."""


MovementInput: TypeAlias = (
    LinkUp
    | LinkDown
    | RouterAdvertisement
    | RouterReachability
    | AddressUsable
    | AddressGone
    | ArpReply
    | Lease
    | LeaseLost
)

# --- what it asks for ---


@dataclass(frozen=True, slots=True)
class ProbeRouter:
    """Send a unicast neighbour solicitation; tell :class:`RouterReachability` if the answer has
    the Solicited flag (RFC 6275 §11.5.1)."""

    router: IPv6Address


@dataclass(frozen=True, slots=True)
class SolicitRouters:
    """Multicast a router solicitation."""


@dataclass(frozen=True, slots=True)
class ProbeGateway:
    """Send a unicast ARP request for ``gateway`` to ``link_address``, sender protocol address
    ``sender`` (RFC 4436 §2.1.1: target hardware address 0)."""

    gateway: IPv4Address
    link_address: bytes
    sender: IPv4Address


@dataclass(frozen=True, slots=True)
class RequestLease:
    """Ask DHCP: for ``address`` again (INIT-REBOOT), or for any (RFC 4436 §2.2)."""

    address: IPv4Address | None


@dataclass(frozen=True, slots=True)
class UseCareOf:
    """The node is here: :meth:`MobileNode.attach` with these arguments. ``ipv4`` is the whole IPv4
    configuration to use, None without one."""

    care_of_address: IPv4Address | IPv6Address
    ipv4_alternative: IPv4Address | None
    administrative_domain: str
    ipv4: Lease | None


@dataclass(frozen=True, slots=True)
class NoCareOf:
    """The node is nowhere: :meth:`MobileNode.detach`."""


@dataclass(frozen=True, slots=True)
class AtHome:
    """The home prefix is on this link: :meth:`MobileNode.deregister` with ``at_home``."""


MovementOutput: TypeAlias = (
    ProbeRouter | SolicitRouters | ProbeGateway | RequestLease | UseCareOf | NoCareOf | AtHome
)
