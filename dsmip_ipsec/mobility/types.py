"""What goes into the mobility engines, what comes out, and the binding that both sides share.

The engines do no input or output. A driver hands them a :class:`MobilityPacket` and the time,
and does what the returned outputs say:

* :class:`SendMobility`: send this Mobility Header;
* :class:`SendIcmp`: send this ICMPv6 message;
* :class:`BindingChanged`: make the kernel agree with the new binding;
* :class:`Event`: something to tell a person or a log.

Times (``now``, ``registered_at``, ``expires_at``) are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from dsmip_ipsec.mobility.constants import REFRESH_TIME_IGNORE
from dsmip_ipsec.mobility.home_link_types import DetectDuplicateAddress, HomeLinkChanged

IPAddress: TypeAlias = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class OuterAddress:
    """A UDP end point outside the IPv6 packet (RFC 5555 §5.2.1).

    At the home agent this is V4ADDR and the port Z of a received binding update: the mobile
    node's care-of address, or what a NAT made of it. At the mobile node it is the home agent's
    IPv4 address and the DSMIPv6 port.
    """

    address: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class MobilityPacket:
    """A received Mobility Header, after ESP.

    ``source`` and ``destination`` are those of the IPv6 header on the wire: natively, a binding
    update comes from the care-of address and names the home address in
    ``home_address_option``. (A driver whose kernel has already swapped them back swaps them
    again, or leaves ``home_address_option`` unset only when the packet had none.) For a binding
    acknowledgement with a type 2 routing header, ``destination`` may be either the care-of
    address or the home address.

    ``outer`` is the source of the UDP datagram that carried the packet, None when it came
    natively over IPv6. ``protected`` says that ESP with the SA of this home address was
    verified; the engines discard everything else.
    """

    source: IPv6Address
    destination: IPv6Address
    message: bytes
    outer: OuterAddress | None
    home_address_option: IPv6Address | None = None
    protected: bool = True


@dataclass(frozen=True, slots=True)
class SendMobility:
    """Send ``message``, a whole Mobility Header with its checksum.

    ``remote`` set: as IPv6 (``source``, ``destination`` are home address and home agent) through
    ESP, then in UDP to ``remote``, from the DSMIPv6 port of ``local``: the mobile node's care-of
    address (the new one, while the old tunnel still stands; RFC 5555 §5.1), or the home agent's
    own outer address.

    ``remote`` None: natively. ``source`` and ``destination`` are those of the IPv6 header on the
    wire; ``home_address_option`` goes into a destination options header, ``type2_routing`` into a
    type 2 routing header (both are home addresses). ``local`` repeats the source address.
    """

    source: IPv6Address
    destination: IPv6Address
    message: bytes
    local: IPAddress | None
    remote: OuterAddress | None
    home_address_option: IPv6Address | None = None
    type2_routing: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """One registration, as mobile node and home agent both describe it.

    ``care_of_address`` is the one *in* the binding update (behind a NAT: the private address).
    ``outer`` is where this node sends UDP to the other one: at the home agent V4ADDR and Z, at
    the mobile node the home agent's IPv4 address and the DSMIPv6 port; None when the binding
    update travelled natively over IPv6. ``udp_encapsulation`` says that data without ESP is put
    into UDP too (NAT detected, or forced: RFC 5555 §4.2); signalling in an IPv4 network always
    is. ``nat_refresh_time`` is in seconds (0: no suggestion). ``link_local`` (the L bit): the home
    agent defends the link-local address with the same interface identifier, too.

    ``lifetime`` is the granted one in seconds, counted from ``registered_at`` (home agent: when
    the update was accepted; mobile node: when the acknowledged update was sent, RFC 6275
    §11.7.3), so that the mobile node never believes longer than the home agent.
    """

    home_address: IPv6Address
    home_agent: IPv6Address
    care_of_address: IPAddress
    sequence: int
    lifetime: int
    registered_at: float
    expires_at: float
    home_agent_ipv4: IPv4Address | None = None
    ipv4_home_address: IPv4Interface | None = None
    ipv4_prefixes: tuple[IPv4Network, ...] = ()
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()
    outer: OuterAddress | None = None
    nat_detected: bool = False
    udp_encapsulation: bool = False
    force_udp: bool = False
    key_mobility: bool = False
    mobile_router: bool = False
    nat_refresh_time: int = REFRESH_TIME_IGNORE
    link_local: bool = False

    def same_path(self, other: Binding) -> bool:
        """True when packets take the same way under both bindings: a mere refresh."""
        return (
            self.care_of_address == other.care_of_address
            and self.outer == other.outer
            and self.udp_encapsulation is other.udp_encapsulation
            and self.nat_detected is other.nat_detected
        )

    def same_addresses(self, other: Binding) -> bool:
        """True when both bindings serve the same home addresses and prefixes."""
        return (
            self.home_address == other.home_address
            and self.ipv4_home_address == other.ipv4_home_address
            and self.ipv4_prefixes == other.ipv4_prefixes
            and self.mobile_network_prefixes == other.mobile_network_prefixes
        )


class ChangeReason(StrEnum):
    """Why a binding changed."""

    CREATED = "created"
    MOVED = "moved"  # another care-of address, or another outer address, port or encapsulation
    CHANGED = "changed"  # the same path for other home addresses or prefixes, or another K bit
    REFRESHED = "refreshed"  # only the sequence number and the times differ
    DEREGISTERED = "deregistered"
    EXPIRED = "expired"
    REFUSED = "refused"  # the home agent says it has no such binding


def change_reason(old: Binding | None, new: Binding) -> ChangeReason:
    """What made ``new`` out of ``old``."""
    if old is None:
        return ChangeReason.CREATED
    if not new.same_path(old):
        return ChangeReason.MOVED
    if not new.same_addresses(old) or new.key_mobility is not old.key_mobility:
        return ChangeReason.CHANGED
    return ChangeReason.REFRESHED


@dataclass(frozen=True, slots=True)
class BindingChanged:
    """``old`` is no longer in force, ``new`` is. None stands for no binding.

    The mobile node reports this only when the home agent has acknowledged, so state that
    follows it honours RFC 5555 §5.1. A consumer may skip ``ChangeReason.REFRESHED``.
    """

    old: Binding | None
    new: Binding | None
    reason: ChangeReason


class DropReason(StrEnum):
    """Why a packet was discarded without an answer. Each has a counter ``dropped.<value>``."""

    UNPROTECTED = "unprotected"  # RFC 5555 §5: a binding update MUST be under ESP
    MALFORMED = "malformed"  # RFC 6275 §9.2
    UNKNOWN_MESSAGE = "unknown_message"  # answered with a binding error
    UNEXPECTED_MESSAGE = "unexpected_message"
    WRONG_DESTINATION = "wrong_destination"
    WRONG_SOURCE = "wrong_source"
    HOME_ADDRESS_INVALID = "home_address_invalid"  # RFC 6275 §9.5.1
    CARE_OF_ADDRESS_INVALID = "care_of_address_invalid"  # RFC 6275 §6.1.7
    NO_HOME_ADDRESS_OPTION = "no_home_address_option"  # RFC 6275 §10.3.1
    NONCE_INDICES = "nonce_indices"  # RFC 6275 §9.5.1
    NOT_HOME_REGISTRATION = "not_home_registration"  # RFC 6275 §9.5.1, no return routability
    NOT_OUTSTANDING = "not_outstanding"  # RFC 6275 §11.7.3: matches no update that was sent


class EventKind(StrEnum):
    """What an :class:`Event` tells."""

    PACKET_DROPPED = "packet_dropped"
    BINDING_REFUSED = "binding_refused"  # home agent: a binding update was answered with >= 128
    REGISTRATION_REFUSED = "registration_refused"  # mobile node: it got such an answer
    IPV4_HOME_ADDRESS_REFUSED = "ipv4_home_address_refused"
    IPV4_HOME_ADDRESS_UNSUPPORTED = "ipv4_home_address_unsupported"
    SEQUENCE_RESYNCHRONISED = "sequence_resynchronised"
    FORCED_UDP_REFUSED = "forced_udp_refused"
    MOBILE_ROUTER_UNSUPPORTED = "mobile_router_unsupported"
    FAMILY_FALLBACK = "family_fallback"  # RFC 5555 §4.4.1: IPv6 went unanswered, IPv4 is tried
    RETRANSMITTED = "retransmitted"
    PREFIX_DISCOVERY_NEEDED = "prefix_discovery_needed"  # status 1
    STATE_CHANGED = "state_changed"
    HOME_ADDRESS_TAKEN = "home_address_taken"  # status 134: MUST NOT be used again
    MOBILE_ROUTER_REFUSED = "mobile_router_refused"  # RFC 3963 §5.4: by every home agent
    BINDING_ERROR = "binding_error"  # RFC 6275 §11.3.6
    RETURNING_HOME = "returning_home"  # RFC 6275 §11.5.5: whether to do DAD
    RETURNED_HOME = "returned_home"  # RFC 6275 §11.5.5: now multicast neighbour advertisements
    LAST_RESORT_UDP = "last_resort_udp"  # RFC 5555 §4.4.1: UDP over IPv6 is tried
    DISCOVERY_FAILED = "discovery_failed"  # nobody answered
    CORRESPONDENT_DEREGISTERED = "correspondent_deregistered"  # RFC 5555 §5.1
    CORRESPONDENT_GIVEN_UP = "correspondent_given_up"
    ADDRESS_IN_USE = "address_in_use"  # home agent: status 134, DAD found another owner


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth recording. ``detail`` holds only strings and integers (JSON as it is)."""

    kind: EventKind
    home_address: IPv6Address | None = None
    detail: Mapping[str, str | int] = field(default_factory=dict)


def drop_event(
    packet: MobilityPacket | IcmpPacket,
    home_address: IPv6Address,
    reason: DropReason,
    detail: str = "",
) -> Event:
    """The event of a packet that was discarded."""
    about: dict[str, str | int] = {"reason": str(reason), "source": str(packet.source)}
    if packet.outer is not None:
        about["outer"] = str(packet.outer)
    if detail:
        about["detail"] = detail
    return Event(EventKind.PACKET_DROPPED, home_address, about)


@dataclass(frozen=True, slots=True)
class IcmpPacket:
    """A received ICMPv6 message. Fields as in :class:`MobilityPacket`, checksum included in
    ``message``; ``type2_routing`` is the home address of a type 2 routing header.

    ``outer`` is set when the message came inside IPv4, its port 0 without UDP.
    """

    source: IPv6Address
    destination: IPv6Address
    message: bytes
    outer: OuterAddress | None = None
    home_address_option: IPv6Address | None = None
    type2_routing: IPv6Address | None = None
    protected: bool = True


@dataclass(frozen=True, slots=True)
class SendIcmp:
    """Send ``message``, a whole ICMPv6 message with its checksum; fields as in
    :class:`SendMobility`.

    ``remote`` set: the IPv6 packet travels inside IPv4 (RFC 5555 §2.2), in UDP if ``udp``; the
    port of ``remote`` counts only then. ``protected``: through ESP (RFC 6275 §6.7), otherwise in
    clear.
    """

    source: IPv6Address
    destination: IPv6Address
    message: bytes
    local: IPAddress | None
    remote: OuterAddress | None = None
    udp: bool = False
    home_address_option: IPv6Address | None = None
    type2_routing: IPv6Address | None = None
    protected: bool = True


@dataclass(frozen=True, slots=True)
class SendTunnelled:
    """Send a Mobility Header to a correspondent node through the tunnel to the home agent, as
    payload of the home address ``source`` (RFC 6275 §11.6.3, RFC 5555 §5.1)."""

    source: IPv6Address
    destination: IPv6Address
    message: bytes


@dataclass(frozen=True, slots=True)
class HomeAgentChanged:
    """From here on the mobile node registers with ``new``: IKE and policies must follow before a
    binding update can leave. A binding with ``old`` may still be in force."""

    old: IPv6Address
    new: IPv6Address
    new_ipv4: IPv4Address | None


@dataclass(frozen=True, slots=True)
class HomePrefix:
    """A prefix of the home link (RFC 6275 §11.4.3). Lifetimes in seconds, None: infinite."""

    prefix: IPv6Network
    valid_lifetime: int | None
    preferred_lifetime: int | None
    on_link: bool = False
    autonomous: bool = False


@dataclass(frozen=True, slots=True)
class HomePrefixesLearned:
    """What a mobile prefix advertisement said: to be processed "as if they arrived in a Router
    Advertisement on the mobile node's home link" (RFC 6275 §11.4.3)."""

    prefixes: tuple[HomePrefix, ...]
    managed: bool
    other: bool


@dataclass(frozen=True, slots=True)
class HomeAgentsDiscovered:
    """Home agents that dynamic discovery found, the most preferred one first."""

    home_agents: tuple[IPv6Address, ...]


Output: TypeAlias = (
    SendMobility
    | BindingChanged
    | Event
    | SendIcmp
    | SendTunnelled
    | HomeAgentChanged
    | HomePrefixesLearned
    | HomeAgentsDiscovered
    | HomeLinkChanged
    | DetectDuplicateAddress
)
