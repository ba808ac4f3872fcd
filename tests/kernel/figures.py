"""What a bench measured, beside what it should have: printed pass or fail, then judged."""

from __future__ import annotations

import resource

import pytest


def judge(
    capsys: pytest.CaptureFixture[str], name: str, measured: float, wanted: float, unit: str = ""
) -> None:
    verdict = "ok" if measured >= wanted else "MISSED"
    with capsys.disabled():
        print(f"\n{name:48} {measured:10.2f} {unit} (at least {wanted:g}) {verdict}", end="")
    assert measured >= wanted, f"{name}: {measured:.2f} {unit}, at least {wanted:g} wanted"


def many_descriptors(count: int = 8192) -> None:
    """This process may open so many files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, most)))
