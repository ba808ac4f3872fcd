"""Reading a binding update as a home agent does: its options, care-of address and prefixes
(RFC 6275 §6.1.7, §9.5.1; RFC 3963 §6.2; RFC 5555 §4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.ipv4_home import is_unicast_ipv4
from dsmip_ipsec.mobility.types import Binding, DropReason, IPAddress, MobilityPacket
from dsmip_ipsec.wire.mobility import BindingStatus, BindingUpdate
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    MobileNetworkPrefix,
    NonceIndices,
)

_UNSPECIFIED = IPv6Address(0)


@dataclass(slots=True)
class UpdateOptions:
    """The options of a binding update, by what they say. Unknown ones are skipped
    (RFC 6275 §6.1.7: MUST). Of one that may stand there once, the first counts."""

    alternate_care_of_address: IPv6Address | None = None
    ipv4_care_of_address: IPv4Address | None = None
    ipv4_home_addresses: list[IPv4HomeAddress] = field(default_factory=list)
    mobile_network_prefixes: list[MobileNetworkPrefix] = field(default_factory=list)
    nonce_indices: bool = False


def options_of(update: BindingUpdate) -> UpdateOptions:
    """Sort the options of ``update``, in one pass."""
    sorted_options = UpdateOptions()
    for option in update.options:
        kind = type(option)
        if kind is IPv4HomeAddress:
            assert isinstance(option, IPv4HomeAddress)
            sorted_options.ipv4_home_addresses.append(option)
        elif kind is IPv4CareOfAddress:
            assert isinstance(option, IPv4CareOfAddress)
            if sorted_options.ipv4_care_of_address is None:
                sorted_options.ipv4_care_of_address = option.address
        elif kind is AlternateCareOfAddress:
            assert isinstance(option, AlternateCareOfAddress)
            if sorted_options.alternate_care_of_address is None:
                sorted_options.alternate_care_of_address = option.address
        elif kind is MobileNetworkPrefix:
            assert isinstance(option, MobileNetworkPrefix)
            sorted_options.mobile_network_prefixes.append(option)
        elif kind is NonceIndices:
            sorted_options.nonce_indices = True
    return sorted_options


@dataclass(slots=True)
class Registration:
    """A binding update on its way through the checks."""

    packet: MobilityPacket
    home_address: IPv6Address
    update: BindingUpdate
    options: UpdateOptions
    care_of_address: IPAddress = _UNSPECIFIED
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The binding update is to be answered with this status."""

    status: BindingStatus


def care_of_address_of(registration: Registration) -> IPAddress | DropReason | Refusal:
    """The care-of address in a binding update, or what to do with one that has no good one.

    In UDP it is in the IPv4 care-of address option (or, should IPv6 have been put into UDP, in
    the alternate care-of address option). Natively it is in the alternate care-of address
    option, else the source address, and the packet has a home address option (RFC 6275
    §10.3.1), without which only deregistration makes sense (§10.3.2).
    """
    packet = registration.packet
    options = registration.options
    deregistration = registration.update.lifetime == 0
    outer = packet.outer
    if outer is not None and outer.address.version == 4:
        ipv4 = options.ipv4_care_of_address
        if ipv4 is None:
            if deregistration:  # its care-of address is of no use to anybody
                return registration.home_address
            # RFC 5555 §2.3.2.1: "MUST include its IPv4 care-of address".
            return Refusal(BindingStatus.INVALID_CARE_OF_ADDRESS)
        return ipv4 if is_unicast_ipv4(ipv4) else DropReason.CARE_OF_ADDRESS_INVALID
    if outer is None and packet.home_address_option is None and not deregistration:
        return DropReason.NO_HOME_ADDRESS_OPTION
    ipv6 = options.alternate_care_of_address
    if ipv6 is None:
        ipv6 = packet.source
    # RFC 6275 §6.1.7: otherwise "MUST be silently discarded".
    return ipv6 if is_routable_unicast(ipv6) else DropReason.CARE_OF_ADDRESS_INVALID


def other_registration(
    registration: Registration, old: Binding | None
) -> BindingStatus | DropReason:
    """What to do with H clear: correspondent or MAP registration, neither of which we offer."""
    update = registration.update
    if update.mobile_router:  # RFC 3963 §6.2
        return BindingStatus.MOBILE_ROUTER_OPERATION_NOT_PERMITTED
    if old is not None:  # RFC 6275 §9.5.1
        return BindingStatus.REGISTRATION_TYPE_CHANGE_DISALLOWED
    if update.map_registration:  # RFC 5380 §6.2: no MAP here; existing codes are to be used
        return BindingStatus.ADMINISTRATIVELY_PROHIBITED
    # RFC 6275 §9.5.1: without nonces and keys of ours it fails a test -> silence.
    return DropReason.NOT_HOME_REGISTRATION


def check(
    config: HomeAgentConfig,
    registration: Registration,
    subscriber: Subscriber,
    old: Binding | None,
) -> BindingStatus | None:
    """The status to refuse a home registration with, None to accept it. Notes the mobile network
    prefixes in ``registration``."""
    update = registration.update
    if registration.care_of_address == registration.home_address:
        return BindingStatus.INVALID_CARE_OF_ADDRESS
    if update.force_udp:
        # RFC 5555 §4.5: "the home agent needs to determine whether it accepts forcing".
        ipv6 = registration.care_of_address.version == 6
        if not (config.accept_force_udp_ipv6 if ipv6 else config.accept_force_udp):
            return BindingStatus.CANNOT_FORCE_UDP_ENCAPSULATION
    if old is not None and old.mobile_router is not update.mobile_router:  # RFC 3963 §6.2
        return BindingStatus.REGISTRATION_TYPE_CHANGE_DISALLOWED
    if update.mobile_router:
        prefixes = mobile_network_prefixes_of(registration, subscriber)
        if isinstance(prefixes, BindingStatus):
            return prefixes
        registration.mobile_network_prefixes = prefixes
    return None


def mobile_network_prefixes_of(
    registration: Registration, subscriber: Subscriber
) -> tuple[IPv6Network, ...] | BindingStatus:
    """The prefixes to forward for a mobile router (RFC 3963 §6.2): those of the binding update
    (explicit mode) or the configured ones (implicit mode), or why there are none."""
    if not subscriber.may_route:
        return BindingStatus.MOBILE_ROUTER_OPERATION_NOT_PERMITTED
    requested = registration.options.mobile_network_prefixes
    if not requested:
        if not subscriber.mobile_network_prefixes:
            return BindingStatus.FORWARDING_SETUP_FAILED
        return subscriber.mobile_network_prefixes
    prefixes: list[IPv6Network] = []
    for option in requested:
        if option.prefix_len > 128 or not is_routable_unicast(option.prefix):
            return BindingStatus.INVALID_PREFIX
        prefix = IPv6Network((option.prefix, option.prefix_len), strict=False)
        if prefix not in subscriber.mobile_network_prefixes:
            return BindingStatus.NOT_AUTHORIZED_FOR_PREFIX
        if prefix not in prefixes:
            prefixes.append(prefix)
    return tuple(prefixes)


def is_routable_unicast(address: IPv6Address) -> bool:
    """True unless ``address`` is unspecified, loopback, link-local, multicast or IPv4-mapped.
    Unique local addresses count as routable: whole networks of mobile nodes use them."""
    value = int(address)
    if value >> 120 == 0xFF or value >> 118 == 0x3FA:  # ff00::/8, fe80::/10
        return False
    return value > 1 and value >> 32 != 0xFFFF


def is_care_of_address(address: IPAddress) -> bool:
    """True when a mobile node can be reached at ``address`` (RFC 6275 §6.1.7; private IPv4
    addresses count, RFC 5555 §2.3.2.2)."""
    if isinstance(address, IPv4Address):
        return is_unicast_ipv4(address)
    return is_routable_unicast(address)
