"""The plugin's hooks: options, markers, parametrisation, and what a failure shows."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

KERNELS = ("auto", "host", "uml", "qemu")
MOBILITY_MODES = ("mobike", "k-bit", "renegotiate")

FAILED = pytest.StashKey[bool]()
"""On a test: whether a phase of it failed."""

MARKERS = (
    "dsmip_scenario(lab): the lab that dsmip_lab stands up: a name that `dsmip-ipsec lab list` "
    "shows, or a TOML file beside the test",
    "dsmip_kernel(*kernels): run the test's lab on these kernels only (host, uml, qemu), once each",
    "dsmip_mobility(*modes): run the test once in each mobility mode (mobike, k-bit, renegotiate; "
    "all without arguments)",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dsmip-ipsec", "labs for Dual-Stack Mobile IPv6 with IPsec")
    group.addoption(
        "--dsmip-kernel",
        action="append",
        choices=KERNELS,
        metavar="KERNEL",
        help="the kernel that labs run on: host, uml, qemu or auto (what works here; the "
        "default). Given several times, every lab test runs on each",
    )
    group.addoption(
        "--dsmip-ipsec",
        choices=("kernel", "userspace"),
        default="kernel",
        help="who applies ESP in labs: the kernel, keyed by charon (the default), or the daemons "
        "themselves with configured keys, mostly without a guest",
    )
    group.addoption(
        "--dsmip-pcap",
        action="store_true",
        help="keep captures and keys of tests that passed, too",
    )
    group.addoption(
        "--dsmip-keep",
        action="store_true",
        help="keep everything that labs of passed tests left, too",
    )
    group.addoption(
        "--dsmip-update-snapshots",
        action="store_true",
        help="store the snapshots anew instead of comparing with them",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Mobility modes and kernels, for tests that have a lab."""
    if "dsmip_lab" not in metafunc.fixturenames:
        return
    modes = metafunc.definition.get_closest_marker("dsmip_mobility")
    if modes is not None:
        chosen = modes.args or MOBILITY_MODES
        _check(metafunc, "mobility mode", chosen, MOBILITY_MODES)
        metafunc.parametrize("dsmip_mobility", chosen)
    marker = metafunc.definition.get_closest_marker("dsmip_kernel")
    wanted: tuple[str, ...] = tuple(marker.args) if marker is not None else ()
    _check(metafunc, "kernel", wanted, KERNELS)
    given: list[str] = metafunc.config.option.dsmip_kernel or []
    both = [kernel for kernel in wanted if kernel in given or "auto" in given]
    # A test that isn't for what was asked for is collected for its own, and then left out.
    kernels = list(dict.fromkeys(both or wanted or given))
    if len(kernels) == 1:
        metafunc.parametrize("dsmip_kernel", kernels, ids=[pytest.HIDDEN_PARAM])
    elif kernels:
        metafunc.parametrize("dsmip_kernel", kernels)


def _check(
    metafunc: pytest.Metafunc, what: str, given: tuple[str, ...], known: tuple[str, ...]
) -> None:
    for one in given:
        if one not in known:
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid}: there is no {what} {one!r}; "
                f"there are {', '.join(known)}"
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out (pytest counts them) lab tests on a kernel that they or the user don't want."""
    given = config.option.dsmip_kernel or []
    left_out = []
    for item in items:
        callspec = getattr(item, "callspec", None)
        kernel = None if callspec is None else callspec.params.get("dsmip_kernel")
        marker = item.get_closest_marker("dsmip_kernel")
        if kernel is None:
            continue
        unwanted = given and "auto" not in given and kernel not in given
        unfit = marker is not None and marker.args and kernel not in marker.args
        if unwanted or unfit:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """SADs say which of their SAs differ."""
    views = sys.modules.get("dsmip_ipsec.pytest_plugin.views")  # there is no Sad without it
    if views is None or op != "==":
        return None
    if isinstance(left, views.Sad) and isinstance(right, views.Sad):
        lines: list[str] = views.compared(left, right)
        return lines
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what its labs did."""
    report = yield
    if not report.failed:
        return report
    item.stash[FAILED] = True
    module = sys.modules.get("dsmip_ipsec.pytest_plugin.lab")
    if module is None or report.when != "call":
        return report
    for name, value in getattr(item, "funcargs", {}).items():
        if isinstance(value, module.Lab):
            for title, text in value.sections():
                report.sections.append((f"{name}: {title}", text))
    return report
