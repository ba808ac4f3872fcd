"""A lab under a program's control: what a session shows, and that none leaves anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_runs import LABS

from dsmip_ipsec.errors import ConfigError, DsmipError, LabError
from dsmip_ipsec.lab.record import load
from dsmip_ipsec.lab.session import LabSession

# One run for all of them, also where pytest-xdist hands out tests.
pytestmark = pytest.mark.xdist_group("session")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session") / "out"


@pytest.fixture(scope="module")
def lab(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSession]:
    # Fewer probes than in a measurement: a busy machine must be able to capture all of them.
    text = (LABS / "nat-handover.toml").read_text()
    path = tmp_path_factory.mktemp("lab") / "lab.toml"
    path.write_text(text.replace("interval_ms = 5\n", "interval_ms = 25\n"))
    with LabSession.start(path, out_dir=out, kernel="uml", export_keys=True) as session:
        yield session


def test_a_whole_life(lab: LabSession, out: Path) -> None:
    """One lab, in the order in which a person would use it."""
    assert lab.state()["mn"].bindings == ()

    step = lab.move("mn", "visited-a")
    assert step.action == "attach to visited-a"
    state = lab.state()
    assert state["mn"].bindings[0].nat_detected
    assert state["ha"].bindings[0].outer_address == state["mn"].bindings[0].outer_address or (
        str(state["ha"].bindings[0].outer_address) == "192.0.2.2"
    )
    assert {sa.spi for sa in state["mn"].sas} == {sa.spi for sa in state["ha"].sas} != set()
    lab.expect({"binding": True, "udp_encapsulation": True, "data": True, "ike_alive": True})

    status, text, _ = lab.exec("mn", ["ip", "xfrm", "state"])
    assert status == 0
    for sa in state["mn"].sas:
        assert sa.spi in text
    status, text, errors = lab.exec("cn", ["sh", "-c", "cat; echo bad >&2; exit 3"], input="héllo")
    assert (status, text, errors) == (3, "héllo", "bad\n")
    # More than a guest's serial line can hold at once (guest_stream.py).
    assert lab.exec("cn", ["wc", "-c"], input="x" * 100_000).out.strip() == "100000"

    step = lab.step(
        {
            "move": "visited-b",
            "name": "to the public network",
            "expect": {"nat_detected": False, "binding": True, "data": True},
        }
    )
    assert step.name == "to the public network"
    assert step.expectations
    assert step.passed, step.expectations
    assert {flow.family for flow in step.flows} == {"ipv4", "ipv6"}
    assert all(flow.sent > 20 for flow in step.flows)
    with pytest.raises(LabError, match=r"NAT detected: expected yes at both ends, saw .*no"):
        lab.expect({"nat_detected": True}, within_s=0.3)
    assert lab.status()["networks"] == {"mn": "visited-b"}

    refused: tuple[tuple[dict[str, object], str], ...] = (
        ({"move": "visited-c"}, "visited-c"),
        ({"move": "visited-a", "deregister": True}, "one verb"),
        ({"attach": "visited-a"}, "is on 'visited-b' already"),
        ({"fly": "visited-a"}, "fly"),
        ({"move": "visited-a", "expect": {"bindings": True}}, "bindings"),
    )
    for bad, word in refused:
        with pytest.raises(ConfigError, match=word):
            lab.step(bad)
    with pytest.raises(ConfigError, match="nobody"):
        lab.exec("nobody", ["true"])
    with pytest.raises(LabError, match="no-such-program"):
        lab.exec("mn", ["no-such-program"])
    with pytest.raises(LabError, match="isn't done after"):
        lab.exec("mn", ["sleep", "60"], timeout_s=0.5)
    with pytest.raises(DsmipError):
        lab.request("nonsense")

    record = lab.finish()
    failed = [(name, e) for name, e in record.all_expectations() if not e.passed]
    assert record.verdict == "passed", failed
    assert [s.name for s in record.steps][1] == "to the public network"
    assert load(out / "record.json") == record
    assert (out / "wireshark" / "esp_sa").stat().st_mode & 0o077 == 0
    assert (out / "captures" / "ha-backbone.pcapng").stat().st_size > 10_000
    with pytest.raises(LabError):
        lab.state()


def test_a_lab_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, own_tmp: Path
) -> None:
    with pytest.raises(ConfigError, match="no lab 'nowhere'"):
        LabSession.start("nowhere")
    broken = tmp_path / "broken.toml"
    broken.write_text("[lab]\nname = 'x'\nnam = 1\n")
    with pytest.raises(ConfigError, match=r"broken\.toml:3: unknown key 'nam'"):
        LabSession.start(broken)


def test_a_daemon_that_dies_is_named_at_the_next_step(own_tmp: Path) -> None:
    with LabSession.start("nat-handover", kernel="uml") as lab:
        lab.exec("mn", ["sh", "-c", "kill -9 $(ip netns pids $(ip netns identify) | head -1)"])
        with pytest.raises(LabError, match="was killed by SIGKILL"):
            lab.move("mn", "visited-a")


def test_two_sessions_and_one_whose_program_is_killed(own_tmp: Path) -> None:
    """Two labs at once in one program; kill -9 of it ends both, and their directories go."""
    program = (
        "import sys, time\n"
        "from dsmip_ipsec.lab.session import LabSession\n"
        "one = LabSession.start('nat-handover', kernel='uml')\n"
        "two = LabSession.start('nat-handover', kernel='uml')\n"
        "one.move('mn', 'visited-a'); two.move('mn', 'visited-b')\n"
        "print(one.state()['mn'].bindings[0].nat_detected,"
        " two.state()['mn'].bindings[0].nat_detected, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "True False\n"
        finally:
            os.kill(process.pid, signal.SIGKILL)
