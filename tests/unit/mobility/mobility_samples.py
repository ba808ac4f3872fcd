"""Addresses, packets and readers that the mobility tests share."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    DropReason,
    Event,
    EventKind,
    MobilityPacket,
    OuterAddress,
    Output,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import BindingAck, BindingUpdate, decode, encode
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    MobilityOption,
)

HOME = IPv6Address("2001:db8:1::10")
AGENT = IPv6Address("2001:db8:1::1")
AGENT_IPV4 = IPv4Address("198.51.100.1")
HOME_IPV4 = IPv4Interface("192.0.2.10/32")
PRIVATE = IPv4Address("10.9.8.7")  # a care-of address behind a NAT
PUBLIC = IPv4Address("203.0.113.99")  # a care-of address without one
CARE_OF = IPv6Address("2001:db8:2::99")
NAT = OuterAddress(IPv4Address("203.0.113.7"), 61000)
NO_NAT = OuterAddress(PUBLIC, 4191)
ROUTER_HOME = IPv6Address("2001:db8:1::20")
ROUTER_PREFIX = IPv6Network("2001:db8:20::/56")
ROUTER_PREFIX_2 = IPv6Network("2001:db8:21::/56")
ROUTER_IPV4 = IPv4Network("192.0.2.64/28")
NO_SUBSCRIBER = IPv6Address("2001:db8:1::66")
ELSEWHERE = IPv6Address("2001:db8:99::1")

SUBSCRIBERS = {
    HOME: Subscriber(HOME_IPV4),
    ROUTER_HOME: Subscriber(
        None, (ROUTER_IPV4,), (ROUTER_PREFIX, ROUTER_PREFIX_2), dynamic_ipv4=False
    ),
}


def agent(**changes: Any) -> HomeAgent:
    """A home agent with two subscribers: a host and a router."""
    settings: dict[str, Any] = {
        "home_agent_ipv4": AGENT_IPV4,
        "subscribers": SUBSCRIBERS,
        "home_prefixes": (IPv6Network("2001:db8:1::/64"),),
    }
    return HomeAgent(HomeAgentConfig(AGENT, **(settings | changes)))


def update(sequence: int = 1, lifetime: int = 150, **changes: Any) -> BindingUpdate:
    """A home registration; ``lifetime`` in units of 4 s."""
    settings: dict[str, Any] = {"acknowledge": True, "home_registration": True}
    return BindingUpdate(sequence, lifetime, **(settings | changes))


def over_udp(
    message: BindingUpdate,
    care_of: IPv4Address | None = PRIVATE,
    outer: OuterAddress = NAT,
    *,
    home: IPv6Address = HOME,
    options: tuple[MobilityOption, ...] = (),
    protected: bool = True,
) -> MobilityPacket:
    """``message`` as it arrives in UDP, with an IPv4 care-of address option unless None."""
    if care_of is not None:
        options = (*options, IPv4CareOfAddress(care_of))
    raw = encode(_with_options(message, options), home, AGENT)
    return MobilityPacket(home, AGENT, raw, outer, protected=protected)


def native(
    message: BindingUpdate,
    care_of: IPv6Address = CARE_OF,
    *,
    home: IPv6Address = HOME,
    alternate: IPv6Address | None = CARE_OF,
    home_address_option: bool = True,
    options: tuple[MobilityOption, ...] = (),
) -> MobilityPacket:
    """``message`` as it arrives over IPv6."""
    if alternate is not None:
        options = (AlternateCareOfAddress(alternate), *options)
    raw = encode(_with_options(message, options), home, AGENT)
    return MobilityPacket(
        care_of if home_address_option else home,
        AGENT,
        raw,
        None,
        home_address_option=home if home_address_option else None,
    )


def _with_options(message: BindingUpdate, options: tuple[MobilityOption, ...]) -> BindingUpdate:
    return BindingUpdate(
        message.sequence,
        message.lifetime,
        message.acknowledge,
        message.home_registration,
        message.link_local,
        message.key_mobility,
        message.map_registration,
        message.mobile_router,
        message.proxy,
        message.force_udp,
        (*message.options, *options),
    )


def ask_ipv4(address: IPv4Address | str = HOME_IPV4.ip, length: int = 32) -> IPv4HomeAddress:
    """An IPv4 home address option without P."""
    return IPv4HomeAddress(length, False, IPv4Address(address))


Kind = TypeVar("Kind")


def only(outputs: list[Output], kind: type[Kind]) -> Kind:
    """The one output of a kind."""
    found = [output for output in outputs if isinstance(output, kind)]
    assert len(found) == 1, f"{len(found)} outputs of {kind.__name__} in {outputs}"
    return found[0]


def none(outputs: list[Output], kind: type[Any]) -> bool:
    """True when there is no output of a kind."""
    return not any(isinstance(output, kind) for output in outputs)


def ack(outputs: list[Output], home: IPv6Address = HOME) -> BindingAck:
    """The one binding acknowledgement among ``outputs``."""
    message = decode(only(outputs, SendMobility).message, AGENT, home)
    assert isinstance(message, BindingAck)
    return message


def changed(outputs: list[Output]) -> BindingChanged:
    """The one change of a binding among ``outputs``."""
    return only(outputs, BindingChanged)


def option(message: BindingAck | BindingUpdate, kind: type[Kind]) -> Kind:
    """The one option of a kind."""
    found = [each for each in message.options if isinstance(each, kind)]
    assert len(found) == 1, f"{len(found)} options of {kind.__name__} in {message}"
    return found[0]


def dropped_silently(outputs: list[Output], reason: DropReason) -> bool:
    """True when all that happened is that a packet was discarded for ``reason``."""
    return (
        len(outputs) == 1
        and isinstance(outputs[0], Event)
        and outputs[0].kind is EventKind.PACKET_DROPPED
        and outputs[0].detail["reason"] == reason
    )


def events(outputs: list[Output]) -> list[EventKind]:
    """The kinds of the events among ``outputs``, changes of state left out."""
    return [
        output.kind
        for output in outputs
        if isinstance(output, Event) and output.kind is not EventKind.STATE_CHANGED
    ]
