"""What all tests share: which of them run for whom, and where.

Everything below tests/kernel is a kernel test: it needs root and a kernel with ESP. Elsewhere it
fails and says how to run it; it is never skipped.
"""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ours, as those who use it have it by its entry point; and what tests a plugin.
pytest_plugins = ["dsmip_ipsec.pytest_plugin", "pytester"]

KERNEL_TESTS = Path(__file__).parent / "kernel"
HOW = "Run it with: python -m dsmip_ipsec.lab.guest_pytest (in a guest kernel; needs no root)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files anew instead"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background jobs ignore it, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "as_root: says something about running as root; left out for other users"
    )
    config.addinivalue_line(
        "markers",
        "rfc(*sentences): shows these sentences of the RFCs (tests/conformance/rfc*.toml)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if KERNEL_TESTS in item.path.parents:
            item.add_marker(pytest.mark.kernel)
    # Left out by deselection, which pytest reports: what only root can show.
    if os.geteuid() != 0:
        left_out = [item for item in items if item.get_closest_marker("as_root")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") and (obstacle := kernel_obstacle()):
        pytest.fail(f"{obstacle}\n{HOW}", pytrace=False)


@functools.cache
def kernel_obstacle() -> str:
    """Why kernel tests can't run here; "" if they can."""
    # Not at the top: unit tests of other layers needn't load it.
    from dsmip_ipsec.kernel.probes import probe

    if os.geteuid() != 0:
        return "A kernel test needs root."
    lacking = [item for item in probe(["esp4", "esp6"]) if item.status != "ok"]
    reasons = "; ".join(f"{item.title}: {item.reason}" for item in lacking)
    return f"This kernel can't run kernel tests ({reasons})." if lacking else ""


@pytest.fixture
def own_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A directory for everything temporary that a test's labs make: what they leave behind can be
    told from what other labs have, and there mustn't be any."""
    from lab_runs import assert_nothing_left  # beside the tests that use this

    tmp_path_factory.getbasetemp()  # pytest's own are elsewhere
    with tempfile.TemporaryDirectory(prefix="dsmip-test-") as name:
        Path(name).chmod(0o755)  # a guest's user looks into it
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)
        assert_nothing_left(Path(name), within_s=20)
