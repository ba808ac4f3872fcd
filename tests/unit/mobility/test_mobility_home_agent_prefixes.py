"""IPv4 prefixes out of a pool (RFC 5555 §2.5, §3.1.1, §3.2.1, §4.5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mobility_samples import HOME, HOME_IPV4, ack, agent, ask_ipv4, changed, over_udp, update

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.mobility.ipv4_prefix_pool import IPv4PrefixPool
from dsmip_ipsec.wire.options import IPv4AddressAck, IPv4HomeAddress

ANY = IPv4Address(0)
POOL = IPv4Network("10.64.0.0/22")
OTHER = IPv6Address("2001:db8:1::11")


def router(**changes: object) -> HomeAgent:
    subscriber = Subscriber(HOME_IPV4, dynamic_ipv4_prefix=True)
    settings = {
        "subscribers": {HOME: subscriber, OTHER: subscriber},
        "ipv4_prefix_pool": (POOL,),
        "shortest_ipv4_prefix": 24,
    }
    return agent(**(settings | changes))


def ask(length: int) -> IPv4HomeAddress:
    return IPv4HomeAddress(length, True, ANY)


def granted(
    engine: HomeAgent,
    sequence: int,
    *options: IPv4HomeAddress,
    now: float = 0.0,
    home: IPv6Address = HOME,
) -> list[tuple[int, IPv4Network | None]]:
    outputs = engine.handle(over_udp(update(sequence), home=home, options=options), now)
    answer = ack(outputs, home)
    assert answer.status == 0
    found = [each for each in answer.options if isinstance(each, IPv4AddressAck)]
    assert len(found) == len(options)
    return [
        (
            int(each.status),
            IPv4Network((each.address, each.prefix_len)) if each.accepted else None,
        )
        for each in found
    ]


@pytest.mark.rfc("5555-4.5-11", "5555-2.5-1a")
def test_rfc5555_4_5_prefix_of_the_requested_length() -> None:
    engine = router(ipv4_lease_time=400)
    ((status, prefix),) = granted(engine, 1, ask(26))
    assert prefix is not None
    assert (status, prefix.prefixlen) == (0, 26)
    assert prefix.subnet_of(POOL)
    bound = engine.binding_cache.get(HOME)
    assert bound is not None
    assert bound.ipv4_prefixes == (prefix,)
    assert bound.lifetime == 400, "§2.5: the lease bounds the binding"


def test_rfc5555_3_1_1_refresh_names_the_prefix_and_keeps_it() -> None:
    engine = router()
    ((_, prefix),) = granted(engine, 1, ask(26))
    assert prefix is not None
    refresh = IPv4HomeAddress(26, True, prefix.network_address)  # P "must be ignored"
    assert granted(engine, 2, refresh, now=1.0) == [(0, prefix)]
    assert len(engine.ipv4_prefix_pool) == 1


def test_a_repeated_request_gets_the_same_prefix() -> None:
    """The first acknowledgement was lost."""
    engine = router()
    assert granted(engine, 1, ask(26)) == granted(engine, 2, ask(26), now=1.0)
    assert len(engine.ipv4_prefix_pool) == 1


@pytest.mark.rfc("5555-4.5-8")
def test_rfc5555_4_5_prefix_of_another_is_133() -> None:
    engine = router()
    ((_, prefix),) = granted(engine, 1, ask(26))
    assert prefix is not None
    taken = IPv4HomeAddress(26, False, prefix.network_address)
    assert granted(engine, 1, taken, home=OTHER) == [(133, None)]
    ((_, own),) = granted(engine, 2, ask(26), home=OTHER)
    assert own is not None
    assert not own.overlaps(prefix)


def test_rfc5555_4_4_2_1_prefix_that_is_not_named_is_given_back() -> None:
    engine = router()
    two = granted(engine, 1, ask(26), ask(27))
    assert len({prefix for _, prefix in two}) == 2, "one for each option"
    first = two[0][1]
    assert first is not None
    granted(engine, 2, IPv4HomeAddress(26, False, first.network_address), now=1.0)
    assert engine.ipv4_prefix_pool.leases(HOME) == (first,)
    granted(engine, 3, now=2.0)
    assert len(engine.ipv4_prefix_pool) == 0


@pytest.mark.parametrize("ends", ["deregistered", "expired"])
def test_prefixes_are_given_back_with_the_binding(ends: str) -> None:
    engine = router()
    granted(engine, 1, ask(26))
    if ends == "deregistered":
        engine.handle(over_udp(update(2, lifetime=0)), 1.0)
    else:
        engine.expire(600.0)
    assert len(engine.ipv4_prefix_pool) == 0


@pytest.mark.rfc("5555-4.5-11")
def test_rfc5555_4_5_no_prefix_of_any_length_is_132() -> None:
    engine = router(ipv4_prefix_pool=(IPv4Network("10.64.0.0/30"),))
    assert granted(engine, 1, ask(29)) == [(0, IPv4Network("10.64.0.0/30"))], "a smaller one"
    assert granted(engine, 1, ask(32), home=OTHER) == [(132, None)]


@pytest.mark.rfc("5555-4.5-11")
def test_rfc5555_4_5_not_authorised_is_133() -> None:
    assert granted(agent(ipv4_prefix_pool=(POOL,)), 1, ask(26)) == [(133, None)]


def test_no_shorter_prefix_than_configured() -> None:
    ((_, prefix),) = granted(router(), 1, ask(1))
    assert prefix is not None
    assert prefix.prefixlen == 24


def test_number_of_prefixes_is_limited() -> None:
    answers = granted(router(), 1, *[ask(28)] * 6)
    assert [status for status, _ in answers] == [0, 0, 0, 0, 132, 132]


def test_own_prefixes_come_before_those_of_the_pool() -> None:
    own = IPv4Network("192.0.2.64/28")
    subscriber = Subscriber(HOME_IPV4, (own,), dynamic_ipv4_prefix=True)
    engine = router(subscribers={HOME: subscriber})
    first, second = granted(engine, 1, ask(26), ask(26))
    assert first == (0, own)
    assert second[1] is not None
    assert second[1].subnet_of(POOL)


def test_address_and_prefix_together() -> None:
    engine = router()
    address, prefix = granted(engine, 1, ask_ipv4(), ask(28))
    assert address == (0, HOME_IPV4.network)
    assert prefix[1] is not None
    bound = engine.binding_cache.get(HOME)
    assert bound is not None
    assert (bound.ipv4_home_address, bound.ipv4_prefixes) == (HOME_IPV4, (prefix[1],))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(20, 32), st.booleans()), max_size=60))
def test_leases_never_overlap_and_all_comes_back(
    steps: list[tuple[int, int, bool]],
) -> None:
    roots = (IPv4Network("10.0.0.0/26"), IPv4Network("10.0.0.128/27"))
    pool = IPv4PrefixPool(roots, 27)
    for who, length, release in steps:
        home = IPv6Address(who + 1)
        if release:
            pool.keep(home)
        else:
            pool.allocate(home, length)
        leased = [each for n in range(10) for each in pool.leases(IPv6Address(n + 1))]
        ends = sorted((int(n.network_address), int(n.broadcast_address)) for n in leased)
        assert all(a[1] < b[0] for a, b in pairwise(ends))
        assert all(any(each.subnet_of(root) for root in roots) for each in leased)
    for n in range(10):
        pool.keep(IPv6Address(n + 1))
    assert pool.allocate(IPv6Address(1), 27) is not None
    assert len(pool) == 1
    pool.keep(IPv6Address(1))
    assert pool._free == set(roots)


def test_a_prefix_length_that_is_none() -> None:
    with pytest.raises(MobilityError, match="shortest_ipv4_prefix"):
        router(shortest_ipv4_prefix=0)


def test_what_an_update_loses_is_a_change() -> None:
    engine = router()
    granted(engine, 1, ask(26))
    outputs = engine.handle(over_udp(update(2)), 1.0)
    assert str(changed(outputs).reason) == "changed"
