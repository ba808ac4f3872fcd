"""Tokens: single use, expiry, bounds, fixed bits."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.token import FLOW_LABEL_BITS, MARK_BITS, TokenTable


def table(**settings: int | float) -> TokenTable[str]:
    return TokenTable(random.Random(3).getrandbits, **settings)  # type: ignore[arg-type]


def test_a_token_gives_its_value_back_once() -> None:
    tokens = table()
    first, second = tokens.issue("a", 0.0), tokens.issue("b", 0.0)
    assert first != second
    assert tokens.redeem(second, 1.0) == "b"
    assert tokens.redeem(first, 1.0) == "a"
    assert tokens.redeem(first, 1.0) is None
    assert (tokens.issued, tokens.redeemed, tokens.unknown) == (2, 2, 1)


def test_a_guess_is_counted_and_gives_nothing() -> None:
    tokens = table()
    token = tokens.issue("a", 0.0)
    assert tokens.redeem(token ^ 1, 0.0) is None
    assert tokens.unknown == 1
    assert tokens.redeem(token, 0.0) == "a"


def test_a_token_expires() -> None:
    tokens = table(lifetime=2.0)
    token, later = tokens.issue("a", 0.0), tokens.issue("b", 1.0)
    assert tokens.next_deadline() == 2.0
    assert tokens.redeem(token, 2.0) is None
    assert (tokens.expired, tokens.unknown) == (1, 0)
    assert tokens.redeem(later, 2.9) == "b"
    assert tokens.next_deadline() is None


def test_issuing_clears_what_has_expired() -> None:
    tokens = table(lifetime=2.0)
    old = tokens.issue("a", 0.0)
    tokens.issue("b", 5.0)
    assert len(tokens) == 1
    assert tokens.expired == 1
    assert tokens.redeem(old, 5.0) is None


def test_a_full_table_gives_up_its_oldest() -> None:
    tokens = table(capacity=3)
    issued = [tokens.issue(name, 0.0) for name in "abcd"]
    assert len(tokens) == 3
    assert tokens.evicted == 1
    assert [tokens.redeem(token, 0.0) for token in issued] == [None, "b", "c", "d"]


@pytest.mark.parametrize(
    ("width", "pattern", "mask"),
    [
        (MARK_BITS, 0, 0),
        (MARK_BITS, 0xD5000000, 0xFF000000),
        (MARK_BITS, 0x0000D500, 0x0000FF00),
        (MARK_BITS, 0x80000001, 0x80000001),
        (FLOW_LABEL_BITS, 0, 0),
        (FLOW_LABEL_BITS, 0xA0000, 0xF0000),
    ],
)
def test_fixed_bits_and_random_bits(width: int, pattern: int, mask: int) -> None:
    """Every token has the pattern, and every other bit is now set and now clear."""
    tokens = table(width=width, pattern=pattern, pattern_mask=mask, capacity=2000)
    issued = [tokens.issue("", 0.0) for _ in range(1500)]
    assert len(set(issued)) == 1500
    assert 0 not in issued
    assert all(token & mask == pattern and token < 1 << width for token in issued)
    assert all(tokens.matches(token) for token in issued)
    ones, zeros = 0, 0
    for token in issued:
        ones |= token
        zeros |= ~token
    free = ((1 << width) - 1) & ~mask
    assert ones & free == free
    assert zeros & free == free
    if mask:
        assert not tokens.matches(pattern ^ (mask & -mask))
    assert not tokens.matches(1 << width | pattern)


def numbers(*values: int) -> Callable[[int], int]:
    source = iter(values)
    return lambda bits: next(source)


def test_zero_and_numbers_in_use_are_never_issued() -> None:
    """Zero is what the kernel reports without any mark or label."""
    tokens: TokenTable[str] = TokenTable(numbers(0, 5, 5, 5, 6))
    assert tokens.issue("a", 0.0) == 5
    assert tokens.issue("b", 0.0) == 6
    assert tokens.redeem(5, 0.0) == "a"


def test_a_used_number_may_come_again() -> None:
    tokens: TokenTable[str] = TokenTable(numbers(5, 5))
    assert tokens.redeem(tokens.issue("a", 0.0), 0.0) == "a"
    assert tokens.redeem(tokens.issue("b", 0.0), 0.0) == "b"


@pytest.mark.parametrize(
    "wrong",
    [
        {"pattern": 1},  # outside of its mask
        {"width": 20, "pattern_mask": 1 << 20},
        {"pattern_mask": 0xFFFFFFF0},  # four random bits can't hold the default capacity
        {"width": 20, "capacity": 1 << 20},  # full: drawing an unused number would never end
        {"capacity": 0},
        {"lifetime": 0},
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, int]) -> None:
    with pytest.raises(MobilityError) as caught:
        table(**wrong)
    assert caught.value.hint


def test_tokens_stay_out_of_the_repr() -> None:
    tokens = table()
    token = tokens.issue("secret", 0.0)
    assert str(token) not in repr(tokens)
    assert "secret" not in repr(tokens)
