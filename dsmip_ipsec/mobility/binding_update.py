"""Building the mobile node's binding updates and reading what answers them
(RFC 6275 §11.7.1, §11.7.3; RFC 3963 §5; RFC 5555 §4.4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.mobility.binding_update_list import SentUpdate
from dsmip_ipsec.mobility.constants import REFRESH_TIME_IGNORE
from dsmip_ipsec.mobility.discovery import HomeAgentAddresses
from dsmip_ipsec.mobility.ipv4_memory import IPv4Answer
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.types import Binding, OuterAddress, SendMobility
from dsmip_ipsec.wire.ip import DSMIP_PORT
from dsmip_ipsec.wire.mobility import (
    LIFETIME_UNIT,
    BindingAck,
    BindingStatus,
    BindingUpdate,
    encode,
)
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


def build_update(
    config: MobileNodeConfig, agent: HomeAgentAddresses, request: SentUpdate
) -> SendMobility:
    """The binding update and the way it has to go.

    From an IPv4 care-of address: in UDP to the home agent's IPv4 address, the home address as
    the source (RFC 5555 §4.4.2). From an IPv6 one: natively, with home address option and
    alternate care-of address (RFC 6275 §11.7.1), or as the last resort in UDP too (RFC 5555
    §4.1, §4.4.1). From home: the home address is both (RFC 6275 §11.5.5).
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
    home = config.home_address
    raw = encode(update, home, agent.address)
    if isinstance(care_of, IPv4Address) or request.udp_over_ipv6:
        return SendMobility(home, agent.address, raw, care_of, remote_of(agent, care_of.version))
    return SendMobility(
        care_of,
        agent.address,
        raw,
        care_of,
        None,
        home_address_option=home if care_of != home else None,
    )


def remote_of(agent: HomeAgentAddresses, version: int) -> OuterAddress:
    """Where binding updates in UDP over IP ``version`` go."""
    if version == 6:
        return OuterAddress(agent.address, DSMIP_PORT)
    assert agent.ipv4 is not None  # no IPv4 care-of address is taken without
    return OuterAddress(agent.ipv4, DSMIP_PORT)


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
    agent: HomeAgentAddresses,
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
        home_agent=agent.address,
        care_of_address=sent.care_of_address,
        sequence=sent.sequence,
        lifetime=units * LIFETIME_UNIT,
        registered_at=sent.sent_at,
        expires_at=sent.sent_at + units * LIFETIME_UNIT,
        home_agent_ipv4=agent.ipv4,
        ipv4_home_address=ipv4.home_address,
        ipv4_prefixes=ipv4.prefixes,
        mobile_network_prefixes=config.mobile_network_prefixes,
        outer=remote_of(agent, sent.care_of_address.version) if sent.over_udp else None,
        nat_detected=nat,
        udp_encapsulation=nat or forced,
        force_udp=forced,
        key_mobility=config.key_mobility and acknowledgement.key_mobility,
        mobile_router=config.mobile_router,
        nat_refresh_time=refresh,
    )


class Reaction(Enum):
    """What a mobile node does about a refusal."""

    REMOVED = "removed"  # there is no binding, which is what was asked for
    WITHOUT_FORCE = "without force"  # the same again without the F flag
    LATER = "later"  # another home agent if there is one, else the same again, slowly
    OTHER_AGENT = "other agent"  # another home agent if there is one, else nothing
    OTHER_AGENT_OR_NEVER = "other agent or never"  # the same; and if there is none, nothing ever
    NEVER = "never"  # nothing, here or elsewhere
    STOP = "stop"  # nothing


_ROUTER = frozenset(
    (
        BindingStatus.MOBILE_ROUTER_OPERATION_NOT_PERMITTED,
        BindingStatus.INVALID_PREFIX,
        BindingStatus.NOT_AUTHORIZED_FOR_PREFIX,
        BindingStatus.FORWARDING_SETUP_FAILED,
    )
)
# RFC 3963 §5.4.1 and §5.4.2: "fatal errors", since no home agent should send them in this mode.
_FATAL_IMPLICIT = frozenset((BindingStatus.INVALID_PREFIX, BindingStatus.NOT_AUTHORIZED_FOR_PREFIX))
_FATAL_EXPLICIT = frozenset((BindingStatus.FORWARDING_SETUP_FAILED,))
_PASSING = frozenset((BindingStatus.REASON_UNSPECIFIED, BindingStatus.INSUFFICIENT_RESOURCES))


def reaction_to(status: int, sent: SentUpdate, config: MobileNodeConfig) -> Reaction:
    """RFC 6275 §11.7.1 and §11.7.3, RFC 3963 §5.4, RFC 5555 §4.4.2, as one table.

    Status 135 isn't here: it is no refusal, but a resynchronisation.
    """
    if sent.lifetime_units == 0:
        if status == BindingStatus.NOT_HOME_AGENT_FOR_THIS_MOBILE_NODE:
            return Reaction.REMOVED
        return Reaction.LATER if status in _PASSING else Reaction.STOP
    if status == BindingStatus.CANNOT_FORCE_UDP_ENCAPSULATION and sent.force_udp:
        # RFC 5555 §4.4.2: "MAY resend the binding update without setting the F flag".
        return Reaction.WITHOUT_FORCE
    if status == BindingStatus.DUPLICATE_ADDRESS_DETECTION_FAILED:
        # RFC 6275 §11.7.1: "MUST NOT attempt to re-use the same home address".
        return Reaction.NEVER
    if config.mobile_router and status in _ROUTER:
        fatal = _FATAL_EXPLICIT if config.mobile_network_prefixes else _FATAL_IMPLICIT
        return Reaction.NEVER if status in fatal else Reaction.OTHER_AGENT_OR_NEVER
    return Reaction.LATER if status in _PASSING else Reaction.OTHER_AGENT
