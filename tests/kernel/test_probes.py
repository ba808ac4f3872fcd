"""The probes on a kernel with ESP, judged by what iproute2 and /proc say of the same kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dsmip_ipsec.kernel.extension_states import kernel_has_extension_states
from dsmip_ipsec.kernel.probe_tries import TRIES
from dsmip_ipsec.kernel.probes import Capabilities, Status, lab_obstacles, probe


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    return probe()


def test_root_tries_everything(capabilities: Capabilities) -> None:
    assert capabilities.by == "root"
    assert capabilities.release == os.uname().release
    assert [item.name for item in capabilities] == list(TRIES)
    untested = [(item.name, item.reason) for item in capabilities if item.status == "untested"]
    assert not untested


def test_labs_can_run_here(capabilities: Capabilities) -> None:
    assert lab_obstacles(capabilities) == []


@pytest.mark.parametrize("name", ["esp4", "esp6", "esp_in_udp", "migrate", "mip6_hao", "mip6_rt2"])
def test_what_labs_and_daemons_rest_on(capabilities: Capabilities, name: str) -> None:
    assert capabilities[name].status is Status.OK, capabilities[name].reason


def states() -> str:
    command = ["ip", "xfrm", "state"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_daemons_try_of_extension_states(capabilities: Capabilities) -> None:
    """It says what `ip` found out, and leaves neither a state nor another namespace behind."""
    before, namespace = states(), os.readlink("/proc/thread-self/ns/net")
    assert kernel_has_extension_states() == capabilities.ok("mip6_hao")
    assert (states(), os.readlink("/proc/thread-self/ns/net")) == (before, namespace)


def test_no_extension_states_where_no_namespace_may_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """unshare refuses that flag (EINVAL)."""
    monkeypatch.setattr("dsmip_ipsec.kernel.extension_states._CLONE_NEWNET", 1)
    assert not kernel_has_extension_states()


def test_ok_means_that_the_module_is_there(capabilities: Capabilities) -> None:
    """Third party: the kernel's own list of what it loaded or has built in."""
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    modules = Path("/usr/lib/uml/modules", os.uname().release)
    if not modules.is_dir():
        modules = Path("/lib/modules", os.uname().release)
    builtin = {Path(line).stem for line in (modules / "modules.builtin").read_text().split()}
    for name, module in {
        "esp4": "esp4",
        "esp6": "esp6",
        "mip6_hao": "mip6",
        "tun": "tun",
        "sit": "sit",
        "ipip": "ipip",
        "netem": "sch_netem",
    }.items():
        there = module in loaded or module in builtin
        assert capabilities.ok(name) == there, name


def test_a_link_type_that_does_not_exist_is_refused() -> None:
    """The refusal that 'missing' rests on is one that this kernel does give."""
    from dsmip_ipsec.kernel.probe_tries import NotThere, _link

    with pytest.raises(NotThere) as refused:
        _link("nosuchkind")
    assert refused.value.code == 95  # EOPNOTSUPP


def test_nothing_is_left_behind() -> None:
    def state() -> str:
        commands = (["ip", "xfrm", "state"], ["ip", "xfrm", "policy"], ["ip", "-br", "link"])
        return "".join(
            subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands
        )

    # Loading a tunnel's module makes its fall-back device, so compare after a first round.
    probe()
    before = state()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    probe()
    assert state() == before
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children
