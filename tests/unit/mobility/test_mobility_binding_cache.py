"""The binding cache: indexes, tombstones and expiry."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Address

import pytest
from mobility_samples import AGENT, HOME, HOME_IPV4, PRIVATE

from dsmip_ipsec.mobility.binding_cache import BindingCache
from dsmip_ipsec.mobility.types import Binding


def binding(
    home: IPv6Address = HOME,
    *,
    until: float = 100.0,
    sequence: int = 1,
    ipv4: IPv4Interface | None = None,
) -> Binding:
    return Binding(home, AGENT, PRIVATE, sequence, 600, 0.0, until, ipv4_home_address=ipv4)


def home(number: int) -> IPv6Address:
    return IPv6Address(int(HOME) + number)


@pytest.mark.rfc("5555-4.5-2", "5555-2.3.2.1-4", "6275-8.4-1", "6275-10.1-1")
def test_both_indexes_follow_replacement_and_removal() -> None:
    cache = BindingCache()
    other = IPv4Interface("192.0.2.11/32")
    cache.put(binding(ipv4=HOME_IPV4))
    assert cache.get(HOME) is cache.get_ipv4(HOME_IPV4.ip) is not None
    cache.put(binding(ipv4=other, sequence=2))
    assert cache.get_ipv4(HOME_IPV4.ip) is None
    found = cache.get_ipv4(other.ip)
    assert found is not None
    assert found.sequence == 2
    assert len(cache) == 1
    cache.bury(HOME, 50.0)
    assert cache.get_ipv4(other.ip) is None
    assert HOME not in cache
    assert list(cache) == []
    assert len(cache) == 0


def test_tombstone_remembers_the_sequence_number_until_its_time() -> None:
    cache = BindingCache()
    cache.put(binding(sequence=7, until=1000.0))
    cache.bury(HOME, 20.0)
    entry = cache.entry(HOME)
    assert entry is not None
    assert (entry.sequence, entry.binding) == (7, None)
    assert cache.next_deadline() == 20.0
    assert cache.expire(19.0) == []
    assert cache.entry(HOME) is not None
    assert cache.expire(20.0) == []
    assert cache.entry(HOME) is None


def test_tombstone_can_become_a_binding_again() -> None:
    cache = BindingCache()
    cache.put(binding())
    cache.bury(HOME, 20.0)
    again = binding(sequence=2, until=60.0)
    cache.put(again)
    assert len(cache) == 1
    assert cache.expire(59.0) == []
    assert cache.expire(60.0) == [again]


def test_burying_what_is_not_there() -> None:
    assert BindingCache().bury(HOME, 1.0) is None


def test_extended_binding_does_not_expire_at_its_first_time() -> None:
    cache = BindingCache()
    cache.put(binding(until=100.0))
    later = binding(until=200.0, sequence=2)
    cache.put(later)
    assert cache.expire(150.0) == []
    assert cache.next_deadline() == 200.0
    assert cache.expire(200.0) == [later]


def test_shortened_binding_expires_at_its_new_time() -> None:
    cache = BindingCache()
    cache.put(binding(until=100.0))
    sooner = binding(until=40.0, sequence=2)
    cache.put(sooner)
    assert cache.next_deadline() == 40.0
    assert cache.expire(40.0) == [sooner]
    assert cache.expire(1000.0) == []
    assert cache.next_deadline() is None


def test_useless_heap_items_vanish_in_passing() -> None:
    cache = BindingCache()
    for sequence, until in enumerate((100.0, 40.0, 200.0)):
        cache.put(binding(until=until, sequence=sequence))
    assert cache.expire(150.0) == []
    assert cache.next_deadline() == 200.0
    assert len(cache._heap) == 1


@pytest.mark.rfc("6275-10.3.1-20", "6275-10.3.1-13")
def test_expiry_agrees_with_a_list_that_is_searched() -> None:
    """The heap against the obvious, over thousands of random steps."""
    rng = random.Random(11)
    cache = BindingCache()
    model: dict[IPv6Address, float] = {}
    graves: dict[IPv6Address, float] = {}
    now = 0.0
    expired_in_all = 0
    for step in range(20_000):
        name = home(rng.randrange(40))
        action = rng.random()
        if action < 0.6:
            until = now + rng.choice((4, 10, 50, 300))
            cache.put(binding(name, until=until, sequence=step % 65536))
            model[name] = until
            graves.pop(name, None)
        elif action < 0.7:
            cache.bury(name, now + 10)
            if name in model or name in graves:
                graves[name] = now + 10
            model.pop(name, None)
        else:
            now += rng.random() * 3
            gone = {each.home_address for each in cache.expire(now)}
            assert gone == {each for each, until in model.items() if until <= now}
            expired_in_all += len(gone)
            model = {each: until for each, until in model.items() if until > now}
            graves = {each: until for each, until in graves.items() if until > now}
        assert len(cache) == len(model)
        earliest = min((*model.values(), *graves.values()), default=None)
        deadline = cache.next_deadline()
        assert earliest is None or (deadline is not None and deadline <= earliest)
    assert expired_in_all > 100
    assert {each.home_address for each in cache} == set(model)


def test_refreshing_costs_no_memory() -> None:
    """A binding that alternates between short and long lifetimes for hours."""
    cache = BindingCache()
    for n in range(5000):
        cache.expire(float(n))
        cache.put(binding(until=n + (4.0 if n % 2 else 3600.0), sequence=n % 65536))
    assert len(cache._heap) < 100


@pytest.mark.parametrize("count", [1000])
def test_a_binding_takes_less_than_one_and_a_half_kilobytes(count: int) -> None:
    import tracemalloc

    cache = BindingCache()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(count):
            fresh = replace(binding(home(n), ipv4=IPv4Interface((0x0A000000 + n, 32))))
            cache.put(fresh)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / count < 1536
