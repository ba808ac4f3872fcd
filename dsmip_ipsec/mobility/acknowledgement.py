"""What a home agent sends, and which way (RFC 6275 §6.1.8, §9.5.4, §9.5.5; RFC 5555 §4.2, §5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address

from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig
from dsmip_ipsec.mobility.ipv4_home import IPv4Grant
from dsmip_ipsec.mobility.registration import Registration
from dsmip_ipsec.mobility.types import Binding, IPAddress, OuterAddress, SendMobility
from dsmip_ipsec.wire.mobility import (
    LIFETIME_UNIT,
    BindingAck,
    BindingError,
    BindingRefreshRequest,
    BindingStatus,
    encode,
)
from dsmip_ipsec.wire.options import (
    REFRESH_NOT_NEEDED,
    BindingRefreshAdvice,
    MobilityOption,
    NatDetection,
)


def acknowledge(
    config: HomeAgentConfig,
    registration: Registration,
    status: BindingStatus,
    sequence: int,
    lifetime_units: int,
    options: Sequence[MobilityOption],
    key_mobility: bool,
) -> SendMobility:
    """The binding acknowledgement for ``registration``, accepted or refused, sent back to where
    its binding update came from (RFC 5555 §5.1; RFC 6275 §9.5.4). R as RFC 3963 §6.6 says."""
    message = BindingAck(
        status,
        sequence,
        lifetime_units,
        key_mobility,
        status < 128 and registration.update.mobile_router,
        False,
        tuple(options),
    )
    packet = registration.packet
    agent = config.home_agent_address
    home_address = registration.home_address
    raw = encode(message, agent, home_address)
    if packet.outer is not None:
        # RFC 5555 §4.2: in UDP "whenever the binding update is encapsulated in UDP".
        local = local_address(config, packet.outer)
        return SendMobility(agent, home_address, raw, local, packet.outer)
    # RFC 6275 §9.5.4: to the source address, with a routing header unless that was home.
    return SendMobility(
        agent, packet.source, raw, agent, None, type2_routing=packet.home_address_option
    )


def nat_detection(config: HomeAgentConfig, nat: bool, forced: bool) -> NatDetection:
    """RFC 5555 §3.2.2: a refresh time of all ones when "no NAT was detected"."""
    return NatDetection(forced, config.nat_refresh_time if nat else REFRESH_NOT_NEEDED)


def options_without_binding(
    config: HomeAgentConfig, registration: Registration
) -> tuple[MobilityOption, ...]:
    """The options of an acknowledgement that leaves no binding. RFC 5555 §4.2: NAT detection
    "MUST be present ... if the binding update was encapsulated in UDP"."""
    outer = registration.packet.outer
    if outer is None:
        return ()
    inside = registration.options.ipv4_care_of_address
    return (nat_detection(config, inside is not None and inside != outer.address, False),)


def options_with_binding(
    config: HomeAgentConfig, binding: Binding, grant: IPv4Grant
) -> list[MobilityOption]:
    """The options of an acknowledgement for ``binding``: IPv4 address acknowledgements, NAT
    detection whenever the update came in UDP, and refresh advice below the lifetime (RFC 6275
    §10.3.1: MUST be less)."""
    options: list[MobilityOption] = list(grant.acknowledgements)
    if binding.outer is not None:
        options.append(nat_detection(config, binding.nat_detected, binding.force_udp))
    if 0 < config.refresh_advice < binding.lifetime:
        options.append(BindingRefreshAdvice(config.refresh_advice // LIFETIME_UNIT))
    return options


def refresh_request(config: HomeAgentConfig, binding: Binding) -> SendMobility:
    """A binding refresh request, "always sent to the home address" (RFC 6275 §9.5.5), the way
    that the binding says."""
    agent = config.home_agent_address
    home_address = binding.home_address
    raw = encode(BindingRefreshRequest(), agent, home_address)
    if binding.outer is not None:
        local = local_address(config, binding.outer)
        return SendMobility(agent, home_address, raw, local, binding.outer)
    care_of = binding.care_of_address
    assert isinstance(care_of, IPv6Address)  # no outer address: native
    return SendMobility(agent, care_of, raw, agent, None, type2_routing=home_address)


def binding_error(
    config: HomeAgentConfig,
    error: BindingError,
    destination: IPv6Address,
    outer: OuterAddress | None,
) -> SendMobility:
    """A binding error goes to the source address of what it is about (RFC 6275 §9.3.3)."""
    agent = config.home_agent_address
    raw = encode(error, agent, destination)
    local = agent if outer is None else local_address(config, outer)
    return SendMobility(agent, destination, raw, local, outer)


def local_address(config: HomeAgentConfig, outer: OuterAddress) -> IPAddress | None:
    """The home agent's own outer address towards ``outer``."""
    return config.home_agent_ipv4 if outer.address.version == 4 else config.home_agent_address
