"""Building the mobile node's binding updates and reading what answers them
(RFC 6275 §11.7.1, §11.7.3; RFC 3963 §5; RFC 5555 §4.4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.mobility.binding_update_list import SentUpdate
from dsmip_ipsec.mobility.constants import REFRESH_TIME_IGNORE
from dsmip_ipsec.mobility.ipv4_memory import IPv4Answer
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.types import Binding, OuterAddress, SendMobility
from dsmip_ipsec.wire.ip import DSMIP_PORT
from dsmip_ipsec.wire.mobility import LIFETIME_UNIT, BindingAck, BindingUpdate, encode
from dsmip_ipsec.wire.options import (
    REFRESH_NOT_NEEDED,
    AlternateCareOfAddress,
    BindingRefreshAdvice,
    IPv4AddressAck,
    IPv4CareOfAddress,
    MobileNetworkPrefix,
    MobilityOption,
    NatDetection,
)


def build_update(config: MobileNodeConfig, request: SentUpdate) -> SendMobility:
    """The binding update and the way it has to go.

    From an IPv4 care-of address: in UDP to the home agent's IPv4 address, the home address as
    the source (RFC 5555 §4.4.2). From an IPv6 one: natively, with home address option and
    alternate care-of address (RFC 6275 §11.7.1). From home: the home address is both (§11.5.5).
    """
    care_of = request.care_of_address
    options: list[MobilityOption] = []
    if isinstance(care_of, IPv6Address):
        options.append(AlternateCareOfAddress(care_of))
    registers = request.lifetime_units > 0
    if registers:
        options += request.ipv4_options
    if isinstance(care_of, IPv4Address):
        options.append(IPv4CareOfAddress(care_of))
    if registers:  # RFC 3963 §5.8: none when deregistering
        options += (
            MobileNetworkPrefix(prefix.prefixlen, prefix.network_address)
            for prefix in config.mobile_network_prefixes
        )
    update = BindingUpdate(
        request.sequence,
        request.lifetime_units,
        acknowledge=True,
        home_registration=True,
        link_local=config.link_local_compatible,
        key_mobility=config.key_mobility,
        mobile_router=config.mobile_router,
        force_udp=request.force_udp,
        options=tuple(options),
    )
    home, agent = config.home_address, config.home_agent
    raw = encode(update, home, agent)
    if isinstance(care_of, IPv4Address):
        return SendMobility(home, agent, raw, care_of, remote_of(config))
    return SendMobility(
        care_of,
        agent,
        raw,
        care_of,
        None,
        home_address_option=home if care_of != home else None,
    )


def remote_of(config: MobileNodeConfig) -> OuterAddress:
    """Where binding updates in UDP go."""
    assert config.home_agent_ipv4 is not None  # no IPv4 care-of address is taken without
    return OuterAddress(config.home_agent_ipv4, DSMIP_PORT)


@dataclass(frozen=True, slots=True)
class AckOptions:
    """The options of a binding acknowledgement that mean something to a mobile node."""

    ipv4: tuple[IPv4AddressAck, ...]
    nat_detection: NatDetection | None
    refresh_advice: int  # seconds, 0: none


def ack_options(acknowledgement: BindingAck) -> AckOptions:
    """Sort the options of ``acknowledgement``. Unknown ones are skipped (RFC 6275 §6.1.8)."""
    ipv4: list[IPv4AddressAck] = []
    nat_detection: NatDetection | None = None
    advice = 0
    for option in acknowledgement.options:
        if isinstance(option, IPv4AddressAck):
            ipv4.append(option)
        elif isinstance(option, NatDetection):
            nat_detection = nat_detection or option
        elif isinstance(option, BindingRefreshAdvice):
            advice = option.interval * LIFETIME_UNIT
    return AckOptions(tuple(ipv4), nat_detection, advice)


def binding_from_ack(
    config: MobileNodeConfig,
    sent: SentUpdate,
    acknowledgement: BindingAck,
    options: AckOptions,
    ipv4: IPv4Answer,
) -> Binding:
    """The binding that an accepting acknowledgement makes of the update ``sent``.

    Lifetime: RFC 6275 §11.7.3, counted from the sending of the update. NAT: RFC 5555 §4.4.2 has
    the mobile node use UDP "if the NAT detection option is present", but §4.2 has the option in
    every acknowledgement over UDP, and §3.2.2, §4.2 and §4.3 want plain tunnels when its refresh
    time is all ones and its F flag clear: "no NAT was detected". So present means present with
    something to say.
    """
    units = min(acknowledgement.lifetime, sent.lifetime_units)
    nat_option = options.nat_detection if sent.over_udp else None
    nat = nat_option is not None and nat_option.refresh_time != REFRESH_NOT_NEEDED
    forced = sent.force_udp or (nat_option is not None and nat_option.force_udp)
    refresh = REFRESH_TIME_IGNORE
    if nat and nat_option is not None:
        refresh = nat_option.refresh_time or config.nat_refresh_time
    return Binding(
        home_address=config.home_address,
        home_agent=config.home_agent,
        care_of_address=sent.care_of_address,
        sequence=sent.sequence,
        lifetime=units * LIFETIME_UNIT,
        registered_at=sent.sent_at,
        expires_at=sent.sent_at + units * LIFETIME_UNIT,
        home_agent_ipv4=config.home_agent_ipv4,
        ipv4_home_address=ipv4.home_address,
        ipv4_prefixes=ipv4.prefixes,
        mobile_network_prefixes=config.mobile_network_prefixes,
        outer=remote_of(config) if sent.over_udp else None,
        nat_detected=nat,
        udp_encapsulation=nat or forced,
        force_udp=forced,
        key_mobility=config.key_mobility and acknowledgement.key_mobility,
        mobile_router=config.mobile_router,
        nat_refresh_time=refresh,
    )
