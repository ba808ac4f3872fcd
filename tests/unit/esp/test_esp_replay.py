"""The replay window against the RFC's own pseudo-code and against a set of all numbers seen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.ipsec.esp_errors import (
    DuplicateError,
    EspError,
    OutsideWindowError,
    ReplayError,
)
from dsmip_ipsec.ipsec.esp_replay import WINDOW_MAX, ReplayWindow

HALF = 1 << 32


def offer(window: ReplayWindow, low: int) -> int | None:
    try:
        sequence = window.locate(low)
    except ReplayError:
        return None
    window.accept(sequence)
    return sequence


class Reference:
    """What a window must accept, from a set that never forgets."""

    def __init__(self, size: int) -> None:
        self.size, self.top, self.seen = size, 0, set[int]()

    def offer(self, sequence: int) -> bool:
        if sequence == 0 or sequence in self.seen or sequence <= self.top - self.size:
            return False
        self.seen.add(sequence)
        self.top = max(self.top, sequence)
        return True


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([1, 2, 32, 33, 64, 100, 1000, WINDOW_MAX]),
    st.lists(st.integers(-80, 80) | st.integers(-5000, 5000), max_size=120),
)
def test_window_accepts_what_a_set_would(size: int, steps: list[int]) -> None:
    window, reference = ReplayWindow(size), Reference(size)
    sequence = 1
    for step in steps:
        sequence = max(0, sequence + step)
        assert (offer(window, sequence) is not None) == reference.offer(sequence), sequence
    assert window.highest == reference.top


def rfc_high_half(low: int, top: int, size: int) -> int:
    """Appendix A2.2, as the RFC has it; negative where it isn't possible."""
    top_low, top_high = top % HALF, top // HALF
    bottom_low = (top_low - size + 1) % HALF
    if top_low >= size - 1:
        return top_high if low >= bottom_low else top_high + 1
    return top_high - 1 if low >= bottom_low else top_high


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from([1, 32, 64, 4096]),
    st.integers(0, 5) | st.integers(0, HALF - 2),
    st.integers(0, 5000) | st.integers(HALF - 5000, HALF - 1) | st.integers(0, HALF - 1),
    st.integers(0, 5000) | st.integers(HALF - 5000, HALF - 1) | st.integers(0, HALF - 1),
)
def test_esn_high_half_is_the_rfcs(size: int, high: int, top_low: int, low: int) -> None:
    top = high * HALF + top_low
    window = ReplayWindow(size, esn=True, highest=top)
    expected = rfc_high_half(low, top, size)
    number = expected * HALF + low
    if expected < 0 or top - size < number <= top:
        # In the window everything counts as seen; before the first packet there is nothing.
        with pytest.raises(ReplayError) as caught:
            window.locate(low)
        assert caught.value.sequence == (number if expected >= 0 else low)
    else:
        assert window.locate(low) == number


def test_esn_crosses_into_the_next_half() -> None:
    window = ReplayWindow(64, esn=True, highest=HALF - 3)
    assert [offer(window, low) for low in (HALF - 2, 1, HALF - 1, 0, 1)] == [
        HALF - 2,
        HALF + 1,
        HALF - 1,
        HALF,
        None,
    ]


def test_without_esn_the_end_is_the_end() -> None:
    window = ReplayWindow(64, highest=HALF - 2)
    assert offer(window, HALF - 1) == HALF - 1
    assert offer(window, 1) is None
    assert window.highest == HALF - 1


def test_locate_moves_nothing() -> None:
    window = ReplayWindow(32)
    offer(window, 10)
    for low in (5, 11, 1000):
        window.locate(low)
    assert window.highest == 10
    assert offer(window, 5) == 5


def test_zero_is_no_sequence_number() -> None:
    with pytest.raises(OutsideWindowError):
        ReplayWindow(32).locate(0)


def test_duplicates_and_old_ones_are_told_apart() -> None:
    window = ReplayWindow(32)
    offer(window, 100)
    with pytest.raises(DuplicateError):
        window.locate(100)
    with pytest.raises(OutsideWindowError):
        window.locate(68)
    assert window.locate(69) == 69


def test_no_window_accepts_all() -> None:
    window = ReplayWindow(0)
    assert [offer(window, low) for low in (5, 5, 1)] == [5, 5, 1]


@pytest.mark.parametrize(
    ("size", "esn", "highest"),
    [(-1, False, 0), (WINDOW_MAX + 1, False, 0), (0, True, 0), (32, False, HALF), (32, False, -1)],
)
def test_impossible_windows(size: int, esn: bool, highest: int) -> None:
    with pytest.raises(EspError):
        ReplayWindow(size, esn=esn, highest=highest)
