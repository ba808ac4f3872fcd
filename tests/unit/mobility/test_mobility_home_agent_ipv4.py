"""The home agent's engine: IPv4 home addresses and mobile routers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from mobility_samples import (
    CARE_OF,
    HOME,
    HOME_IPV4,
    ROUTER_HOME,
    ROUTER_IPV4,
    ROUTER_PREFIX,
    ROUTER_PREFIX_2,
    ack,
    agent,
    ask_ipv4,
    changed,
    events,
    native,
    option,
    over_udp,
    update,
)

from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.mobility.types import (
    ChangeReason,
    EventKind,
    MobilityPacket,
)
from dsmip_ipsec.wire.options import (
    IPv4AddressAck,
    IPv4HomeAddress,
    MobileNetworkPrefix,
)

NO_KEEPALIVES = 0xFFFFFFFF


# --- IPv4 home addresses (RFC 5555 §4.5) ---

POOL = (IPv4Network("192.0.2.128/29"),)


@pytest.mark.rfc(
    "5555-2.3.1-2", "5555-3.2.1-3", "5555-4.5-2", "5555-4.5-3", "5555-4.5-7", "5555-5-1"
)
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(ask_ipv4(), (0, 32, HOME_IPV4.ip), id="static"),
        pytest.param(ask_ipv4("0.0.0.0"), (0, 32, HOME_IPV4.ip), id="static_asked_as_dynamic"),
        pytest.param(ask_ipv4("192.0.2.11"), (130, 0, "192.0.2.11"), id="somebody_elses"),
        pytest.param(ask_ipv4("224.0.0.5"), (131, 0, "224.0.0.5"), id="multicast"),
        pytest.param(ask_ipv4("255.255.255.255"), (131, 0, "255.255.255.255"), id="broadcast"),
        pytest.param(ask_ipv4("127.0.0.1"), (131, 0, "127.0.0.1"), id="loopback"),
        pytest.param(ask_ipv4("192.0.2.64", 28), (133, 0, "192.0.2.64"), id="somebodys_prefix"),
        pytest.param(
            IPv4HomeAddress(28, True, IPv4Address(0)), (133, 0, "0.0.0.0"), id="no_prefix_for_us"
        ),
        pytest.param(
            IPv4HomeAddress(32, True, HOME_IPV4.ip),
            (0, 32, HOME_IPV4.ip),
            id="p_ignored",
        ),
    ],
)
def test_rfc5555_4_5_ipv4_home_address_of_a_host(
    request_: IPv4HomeAddress, expected: tuple[int, int, Any]
) -> None:
    """The status is the option's own: the IPv6 binding stands in each case."""
    outputs = agent().handle(over_udp(update(), options=(request_,)), 0.0)
    answer = ack(outputs)
    new = changed(outputs).new
    assert new is not None
    assert answer.status == 0
    status, length, address = expected
    assert option(answer, IPv4AddressAck) == IPv4AddressAck(status, length, IPv4Address(address))
    assert (new.ipv4_home_address is not None) is (status == 0)
    refused = EventKind.IPV4_HOME_ADDRESS_REFUSED in events(outputs)
    assert refused is (status != 0)


@pytest.mark.rfc("5555-4.5-8", "5555-4.5-11")
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(IPv4HomeAddress(28, True, IPv4Address(0)), 28, id="as_asked"),
        pytest.param(IPv4HomeAddress(24, True, IPv4Address(0)), 28, id="rfc5555_3_2_1_overridden"),
        pytest.param(IPv4HomeAddress(28, False, ROUTER_IPV4.network_address), 28, id="refresh"),
        pytest.param(IPv4HomeAddress(27, False, ROUTER_IPV4.network_address), None, id="wider"),
    ],
)
def test_rfc5555_4_5_ipv4_prefix(request_: IPv4HomeAddress, expected: int | None) -> None:
    packet = over_udp(update(), home=ROUTER_HOME, options=(request_,))
    outputs = agent().handle(packet, 0.0)
    acknowledged = option(ack(outputs, ROUTER_HOME), IPv4AddressAck)
    new = changed(outputs).new
    assert new is not None
    if expected is None:
        assert acknowledged.status == 133
        assert new.ipv4_prefixes == ()
    else:
        assert acknowledged == IPv4AddressAck(0, expected, ROUTER_IPV4.network_address)
        assert new.ipv4_prefixes == (ROUTER_IPV4,)


@pytest.mark.rfc("5555-4.5-10")
def test_rfc5555_4_5_dynamic_address_not_available_is_132() -> None:
    packet = over_udp(update(), home=ROUTER_HOME, options=(ask_ipv4("0.0.0.0"),))
    outputs = agent(ipv4_pool=POOL).handle(packet, 0.0)
    acknowledged = option(ack(outputs, ROUTER_HOME), IPv4AddressAck)
    assert acknowledged == IPv4AddressAck(132, 0, IPv4Address(0))


@pytest.mark.rfc("5555-2.5-1", "5555-2.5-1a", "5555-4.5-4", "5555-4.5-9")
def test_rfc5555_2_5_dynamic_address_is_allocated_kept_and_released() -> None:
    homes = [IPv6Address(f"2001:db8:1::{n:x}") for n in range(0x100, 0x108)]
    subscribers = {home: Subscriber() for home in homes}
    engine = agent(
        subscribers=subscribers,
        ipv4_pool=POOL,
        ipv4_lease_time=400,
        home_agent_ipv4=IPv4Address("192.0.2.129"),  # in the pool, and never given out
    )
    given: list[IPv4Address] = []
    for home in homes[:5]:
        packet = over_udp(update(1), home=home, options=(ask_ipv4("0.0.0.0"),))
        answer = ack(engine.handle(packet, 0.0), home)
        assert answer.lifetime == 100, "the minimum of both lifetimes"
        given.append(option(answer, IPv4AddressAck).address)
    assert len(set(given)) == 5
    assert all(address in POOL[0] for address in given)
    assert IPv4Address("192.0.2.129") not in given
    # Six hosts in a /29, one of them the home agent's: none is left.
    packet = over_udp(update(1), home=homes[5], options=(ask_ipv4("0.0.0.0"),))
    refused = option(ack(engine.handle(packet, 0.0), homes[5]), IPv4AddressAck)
    assert refused.status == 132
    # A refresh names the address, or asks again: the same one.
    for sequence, address in ((2, given[0]), (3, IPv4Address(0))):
        packet = over_udp(update(sequence), home=homes[0], options=(ask_ipv4(address),))
        kept = option(ack(engine.handle(packet, 1.0), homes[0]), IPv4AddressAck)
        assert (kept.status, kept.address) == (0, given[0])
    # Another's lease is not ours.
    packet = over_udp(update(4), home=homes[0], options=(ask_ipv4(given[1]),))
    assert option(ack(engine.handle(packet, 1.0), homes[0]), IPv4AddressAck).status == 130
    # That update left homes[0] without IPv4, so its lease is free for another.
    packet = over_udp(update(2), home=homes[5], options=(ask_ipv4("0.0.0.0"),))
    moved = option(ack(engine.handle(packet, 1.0), homes[5]), IPv4AddressAck)
    assert (moved.status, moved.address) == (0, given[0])
    # Deregistration and expiry free it too.
    engine.handle(over_udp(update(2, lifetime=0), home=homes[1]), 2.0)
    engine.expire(10_000.0)
    assert len(engine.ipv4_pool) == 0


def test_rfc5555_3_1_1_address_and_prefix_in_one_update() -> None:
    subscribers = {HOME: Subscriber(HOME_IPV4, (ROUTER_IPV4,))}
    requests = (ask_ipv4(), IPv4HomeAddress(28, True, IPv4Address(0)), ask_ipv4("192.0.2.200"))
    outputs = agent(subscribers=subscribers).handle(over_udp(update(), options=requests), 0.0)
    answers = [each for each in ack(outputs).options if isinstance(each, IPv4AddressAck)]
    assert [each.status for each in answers] == [0, 0, 130], "one for each, in order"
    new = changed(outputs).new
    assert new is not None
    assert new.ipv4_home_address == HOME_IPV4
    assert new.ipv4_prefixes == (ROUTER_IPV4,)


# --- mobile routers (RFC 3963 §6.2) ---


def prefix_option(prefix: Any) -> MobileNetworkPrefix:
    return MobileNetworkPrefix(prefix.prefixlen, prefix.network_address)


def router(sequence: int = 1, *prefixes: MobileNetworkPrefix, **changes: Any) -> MobilityPacket:
    message = update(sequence, mobile_router=True, **changes)
    return over_udp(message, home=ROUTER_HOME, options=prefixes)


def test_rfc3963_6_2_implicit_mode_takes_the_configured_prefixes() -> None:
    outputs = agent().handle(router(), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.mobile_network_prefixes == (ROUTER_PREFIX, ROUTER_PREFIX_2)
    assert ack(outputs, ROUTER_HOME).mobile_router


def test_rfc3963_6_2_explicit_mode_takes_those_of_the_update() -> None:
    engine = agent()
    outputs = engine.handle(router(1, prefix_option(ROUTER_PREFIX)), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.mobile_network_prefixes == (ROUTER_PREFIX,)
    outputs = engine.handle(router(2, prefix_option(ROUTER_PREFIX_2)), 0.0)
    replaced = changed(outputs).new
    assert replaced is not None
    assert replaced.mobile_network_prefixes == (ROUTER_PREFIX_2,), "the other one is disabled"
    assert changed(outputs).reason is ChangeReason.CHANGED


@pytest.mark.parametrize(
    ("prefixes", "status"),
    [
        ((MobileNetworkPrefix(56, IPv6Address("2001:db8:77::")),), 142),
        ((MobileNetworkPrefix(48, ROUTER_PREFIX.network_address),), 142),
        ((prefix_option(ROUTER_PREFIX), MobileNetworkPrefix(64, IPv6Address("ff02::"))), 141),
    ],
)
def test_rfc3963_6_2_bad_prefixes_refuse_the_whole_update(
    prefixes: tuple[MobileNetworkPrefix, ...], status: int
) -> None:
    engine = agent()
    answer = ack(engine.handle(router(1, *prefixes), 0.0), ROUTER_HOME)
    assert answer.status == status
    assert not answer.mobile_router
    assert len(engine.binding_cache) == 0


def test_rfc3963_6_2_implicit_mode_without_configuration_is_143() -> None:
    subscribers = {HOME: Subscriber(mobile_router=True)}
    engine = agent(subscribers=subscribers)
    assert ack(engine.handle(over_udp(update(mobile_router=True)), 0.0)).status == 143


def test_rfc3963_6_2_changed_r_flag_is_139_unless_deregistering() -> None:
    engine = agent()
    engine.handle(router(1), 0.0)
    host = over_udp(update(2), home=ROUTER_HOME)
    assert ack(engine.handle(host, 0.0), ROUTER_HOME).status == 139
    gone = over_udp(update(3, lifetime=0), home=ROUTER_HOME)
    assert ack(engine.handle(gone, 0.0), ROUTER_HOME).status == 0


def test_rfc3963_6_2_care_of_is_home_deregisters_a_router() -> None:
    engine = agent()
    engine.handle(router(1), 0.0)
    home = native(
        update(2, mobile_router=True), home=ROUTER_HOME, care_of=CARE_OF, alternate=ROUTER_HOME
    )
    outputs = engine.handle(home, 0.0)
    assert changed(outputs).new is None
    assert ack(outputs, ROUTER_HOME).lifetime == 0
