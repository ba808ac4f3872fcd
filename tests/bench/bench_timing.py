"""Measuring, without a dependency. Medians of single calls: a scheduler's hiccup doesn't count."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from time import perf_counter

import pytest


def median_seconds(work: Callable[[], object], calls: int, *, warm_up: int = 50) -> float:
    """The median time of one call of ``work``, in seconds."""
    for _ in range(warm_up):
        work()
    times: list[float] = []
    gc.collect()
    gc.disable()  # of what else lives in this process
    try:
        for _ in range(calls):
            start = perf_counter()
            work()
            times.append(perf_counter() - start)
    finally:
        gc.enable()
    return median(times)


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print what was measured, pass or fail."""
    with capsys.disabled():
        print(f"\n{text}", end="")
