"""A mobile node, and its home agent's answers, for the tests of its engine."""

from __future__ import annotations

import random
from ipaddress import IPv6Address
from typing import Any

from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    HOME,
    HOME_IPV4,
    PRIVATE,
    only,
)

from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.types import (
    IPAddress,
    MobilityPacket,
    OuterAddress,
    Output,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import (
    BindingAck,
    BindingUpdate,
    Message,
    decode,
    encode,
)
from dsmip_ipsec.wire.options import (
    IPv4AddressAck,
    MobilityOption,
    NatDetection,
)

REMOTE = OuterAddress(AGENT_IPV4, 4191)
NO_NAT = NatDetection(False, 0xFFFFFFFF)
BEHIND_NAT = NatDetection(False, 110)
ACK_IPV4 = IPv4AddressAck(0, 32, HOME_IPV4.ip)


def node(**changes: Any) -> MobileNode:
    """A mobile node with a static IPv4 home address and a lifetime of 600 s."""
    settings: dict[str, Any] = {"home_agent_ipv4": AGENT_IPV4, "ipv4_home_address": HOME_IPV4}
    return MobileNode(
        MobileNodeConfig(HOME, AGENT, **(settings | changes)), random.Random(5).getrandbits
    )


def sent_update(outputs: list[Output]) -> BindingUpdate:
    message = decode(only(outputs, SendMobility).message, HOME, AGENT)
    assert isinstance(message, BindingUpdate)
    return message


def from_agent(
    message: Message,
    *,
    source: IPv6Address = AGENT,
    protected: bool = True,
    destination: IPv6Address = HOME,
) -> MobilityPacket:
    raw = encode(message, source, HOME)
    return MobilityPacket(source, destination, raw, REMOTE, protected=protected)


def answer(
    update: BindingUpdate,
    *options: MobilityOption,
    status: int = 0,
    lifetime: int | None = None,
    sequence: int | None = None,
    **flags: bool,
) -> MobilityPacket:
    units = update.lifetime if lifetime is None else lifetime
    number = update.sequence if sequence is None else sequence
    return from_agent(BindingAck(status, number, units, options=options, **flags))


def registered(
    engine: MobileNode, care_of: IPAddress = PRIVATE, at: float = 0.0, *options: MobilityOption
) -> BindingUpdate:
    """Attach and acknowledge 50 ms later."""
    update = sent_update(engine.attach(care_of, at))
    if not options:
        options = (ACK_IPV4, BEHIND_NAT) if care_of.version == 4 else (ACK_IPV4,)
    engine.handle(answer(update, *options), at + 0.05)
    assert engine.state is State.REGISTERED
    return update
