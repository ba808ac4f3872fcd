"""``--ipsec userspace``: whole labs on this machine's own kernel, without ESP, guest or charon.

As root in place; otherwise these tests run in a guest, and the labs in place there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lab_runs import LABS, LabRun

from dsmip_ipsec.errors import ConfigError, LabError
from dsmip_ipsec.lab import cleanup, netns
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.relay import Relay
from dsmip_ipsec.lab.session import LabSession
from dsmip_ipsec.lab.spec import load
from dsmip_ipsec.lab.spec_checks import SWITCH_NODE
from dsmip_ipsec.lab.spec_models import Impair
from dsmip_ipsec.lab.topology import Topology

pytestmark = pytest.mark.as_root

COMMAND = (sys.executable, "-m", "dsmip_ipsec", "lab")
USERSPACE = ("--kernel", "host", "--ipsec", "userspace")
NOBODY = 65534
NOT_JUDGED = {"IKE exchange": 3, "security associations": 1, "policies": 1}


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LabRun:
    out = tmp_path_factory.mktemp("userspace") / "out"
    # How long a handover interrupts is measured elsewhere: here a busy machine may be slow.
    lab = out.parent / "nat-handover.toml"
    text = (LABS / lab.name).read_text()
    lab.write_text(text.replace("rtts = 2, ms = 120", "rtts = 2, ms = 500"))
    done = command(
        *("run", str(lab), *USERSPACE, "--out", str(out), "--export-keys", "--html"),
        *("--junit", str(out.parent / "junit.xml")),
    )
    return LabRun(done.returncode, done.stdout + done.stderr, out)


def test_the_handover_lab_passes(run: LabRun) -> None:
    assert run.status == 0, run.output
    record = run.record
    assert record["verdict"] == "passed"
    assert record["settings"]["ipsec"] == "userspace"
    assert record["strongswan_version"] == record["settings"]["ike_mobility"] == ""
    assert len([e for step in record["steps"] for e in step["expectations"]]) >= 25
    assert f"{sum(NOT_JUDGED.values())} not applicable; see" in run.output
    assert not list((run.out / "logs").glob("*charon*"))
    assert record["run_id"] not in [journal.run for journal in cleanup.runs()]
    assert not list(netns.DIRECTORY.glob(f"{record['run_id']}*"))


def test_what_could_not_be_judged_is_said_and_counts_for_nothing(run: LabRun) -> None:
    steps = run.record["steps"]
    missing = [item["name"] for step in steps for item in step["not_applicable"]]
    assert {name: missing.count(name) for name in missing} == NOT_JUDGED
    judged = {e["name"] for step in steps for e in step["expectations"]}
    assert judged.isdisjoint(NOT_JUDGED)
    assert {"binding", "NAT detected", "ESP in UDP", "SADs agree", "data"} <= judged
    assert "there is no IKE: the keys are configured" in run.output
    suites = ET.parse(run.out.parent / "junit.xml").getroot()
    skipped = [
        case.attrib["name"] for case in suites.iter("testcase") if case.find("skipped") is not None
    ]
    assert sorted(skipped) == sorted(missing)
    assert sum(int(suite.attrib["skipped"]) for suite in suites.iter("testsuite")) == len(missing)
    page = (run.out / "report.html").read_text(encoding="utf-8")
    assert page.count("there is no IKE: the keys are configured") == NOT_JUDGED["IKE exchange"]


def test_tshark_reads_the_signalling_with_the_exported_keys(run: LabRun) -> None:
    """What the mobile node's access carries, with nothing but the exported directory."""
    seen = run.tshark("nat-access-a", "mip6.mhtype == 5", "mip6.bu.lifetime", "mip6.ipv4ha.ha")
    assert len(seen) >= 3, "attach, move back, deregister"
    assert {row[1] for row in seen if row[0] != "0"} == {"203.0.113.200"}
    assert [row[0] for row in seen].count("0") >= 1
    answers = run.tshark("nat-access-a", "mip6.mhtype == 6", "mip6.ba.status")
    assert {int(row[0], 0) for row in answers} == {0}
    assert len(answers) == len(seen)
    natted = run.tshark("ha-backbone", "mip6.mhtype == 5 && ip.src == 192.0.2.2", "udp.srcport")
    assert natted
    assert all(row[0].split(";")[0] != "4191" for row in natted), "another port by the NAT"


def test_payload_is_in_esp_and_tshark_reads_it(run: LabRun) -> None:
    for capture in ("mn-visited-a", "mn-visited-b"):
        clear = run.tshark(capture, "udp.port == 7777 && !esp", "frame.number")
        assert clear == [], capture
        inside = run.tshark(capture, "udp.port == 7777 && esp", "ip.version", "ipv6.version")
        assert len(inside) > 100, capture
        assert {"4;4", "4"} & {row[0] for row in inside}
        assert any(row[1] == "6" for row in inside), "both families"
    for capture in ("mn-visited-b", "core-backbone", "ha-backbone"):
        assert run.tshark(capture, "ip.src == 10.0.0.0/24", "frame.number") == [], (
            "nothing from behind the NAT goes past it"
        )
    in_udp = run.tshark("mn-visited-a", "udp.port == 7777 && esp && udp.port == 4500", "esp.spi")
    plain = run.tshark("mn-visited-b", "udp.port == 7777 && esp && udp.port == 4500", "esp.spi")
    assert in_udp
    assert not plain
    wrong = run.tshark("mn-visited-a", "esp.icv_bad == 1", "frame.number")
    assert wrong == []


def test_keys_are_nowhere_but_in_the_export(run: LabRun) -> None:
    table = (run.out / "wireshark" / "esp_sa").read_text()
    keys = set(re.findall(r'"0x([0-9a-f]{40})"', table))
    assert len(keys) == 4
    assert (run.out / "wireshark" / "esp_sa").stat().st_mode & 0o777 == 0o600
    places = [
        path for path in run.out.rglob("*") if path.is_file() and "wireshark" not in path.parts
    ]
    assert len(places) >= 10
    for path in places:
        content = path.read_bytes()
        for key in keys:
            assert key.encode() not in content, path
            assert bytes.fromhex(key) not in content, path
    assert not any(key in run.output for key in keys)


def test_without_the_users_wish_no_keys_are_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("run", "ipv4-only", *USERSPACE, "--out", str(out))
    assert done.returncode == 0, done.stdout
    assert not (out / "wireshark").exists()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSession]:
    out = tmp_path_factory.mktemp("session") / "out"
    with LabSession.start("nat-handover", out_dir=out, kernel="host", ipsec="userspace") as lab:
        yield lab


def test_a_session_shows_moves_and_measures(session: LabSession) -> None:
    step = session.step({"attach": "visited-a", "expect": {"binding": True, "ike_alive": True}})
    assert [item.name for item in step.not_applicable] == ["IKE exchange"]
    assert step.passed
    session.expect({"sad_consistent": True, "data": True})
    before = session.state()["ha"]
    assert before.ike == ()
    assert {sa.purpose for sa in before.sas} == {"signalling", "data"}
    session.move("mn", "visited-b")
    after = session.state()["ha"]
    assert {sa.spi for sa in before.sas} == {sa.spi for sa in after.sas}
    assert [sa.encapsulation for sa in after.sas] == [None] * 4
    traffic = session.request("traffic")
    for sa in after.sas:
        assert traffic["ha"][f"{sa.spi} {sa.mode}"]["packets"] > 0


def test_a_session_refuses_what_needs_ike(session: LabSession) -> None:
    for step in ({"restart": "ha"}, {"kill": "charon of ha"}):
        with pytest.raises(ConfigError, match="not with user-space IPsec"):
            session.step(step)
    with pytest.raises(ConfigError, match="'IKE exchange' can't be judged"):
        session.expect({"ike_alive": True})
    with pytest.raises(ConfigError, match="IPv6 care-of address"):
        LabSession.start("ipv6-handover", kernel="host", ipsec="userspace")


def test_a_standing_lab(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("up", "nat-handover", *USERSPACE, "--out", str(out), "--export-keys")
    found = re.search(r"^(dsmip-[0-9a-f]{4}) stands", done.stdout, re.M)
    assert found is not None, done.stdout + done.stderr
    name = found[1]
    try:
        assert command("move", "--lab", name, "mn", "visited-a").returncode == 0
        told = json.loads(command("status", name, "--json").stdout)
        assert told["nodes"]["ha"]["bindings"][0]["nat_detected"] is True
        assert command("exec", "--lab", name, "mn", "--", "true").returncode == 0
    finally:
        assert command("down", name).returncode == 0
    record = json.loads((out / "record.json").read_text())
    assert record["failure"] is None
    assert record["settings"]["ipsec"] == "userspace"
    assert (out / "wireshark" / "esp_sa").is_file()


def test_the_daemons_death_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    text = (LABS / "ipv4-only.toml").read_text()
    head, first, _ = text.partition("[[steps]]")
    path.write_text(head + first + '\nname = "dies"\nkill = "daemon of ha"\n')
    out = tmp_path / "out"
    done = command("run", str(path), *USERSPACE, "--out", str(out))
    assert done.returncode == 1
    record = json.loads((out / "record.json").read_text())
    assert record["verdict"] == "error"
    assert "'daemon of ha' was killed by SIGKILL" in record["failure"]["message"]
    assert record["run_id"] not in [journal.run for journal in cleanup.runs()]


def test_a_refused_lab_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    before = list(cleanup.runs())
    done = command("run", "home-agent-restart", *USERSPACE, "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "can't run with user-space IPsec" in done.stderr
    assert "hint: run it without --ipsec userspace" in done.stderr
    assert not (tmp_path / "out").exists()
    assert len(list(cleanup.runs())) == len(before)


async def test_the_relay_delays_loses_and_lets_pass(tmp_path: Path) -> None:
    """Judged by ping, whatever this kernel has of its own."""
    lab = load(LABS / "ipv4-only.toml")
    run = cleanup.Run.claim()
    topology = Topology(lab, run, relayed=frozenset({"backbone"}))
    try:
        topology.up()
        relay = Relay(lab, topology.relay_ports(), work=run.directory, log=tmp_path / "relay.log")
        async with Processes(run) as processes:
            await relay.start(processes, topology.namespace(SWITCH_NODE), nice=0)
            ping(topology)  # address resolution
            answers, times = ping(topology)
            assert answers == 5
            assert 40.0 <= min(times) < 60.0, "20 ms each way"
            await relay.impair(processes, Impair(link="backbone", loss_percent=100.0))
            assert ping(topology, wait_s=1) == (0, [])
            await relay.impair(processes, Impair(link="backbone"))
            answers, times = ping(topology)
            assert answers == 5
            assert min(times) < 20.0
    finally:
        run.finish()


def ping(topology: Topology, *, wait_s: int = 3) -> tuple[int, list[float]]:
    """Answers from the home agent to the router before it, and how long each took in ms."""
    words = ["ip", "netns", "exec", topology.namespace("core"), "ping", "-n", "-c", "5"]
    words += ["-i", "0.1", "-W", str(wait_s), "203.0.113.2"]
    text = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout
    times = [float(found) for found in re.findall(r"time=([0-9.]+) ms", text)]
    return text.count("bytes from"), times


HANDOVER_TEST = """
import pytest


@pytest.mark.dsmip_scenario("nat-handover")
def test_keys_stay(dsmip_lab, mn, ha):
    mn.move("visited-a")
    before = ha.sad.spis
    assert ha.sad.data.udp_encapsulated
    mn.move("visited-b")
    assert ha.sad.spis == before
    assert not ha.sad.data.udp_encapsulated
    assert ha.ike == ()
"""


def test_the_pytest_option(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANDOVER_TEST)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "dsmip_ipsec.pytest_plugin", "test_it.py"]
    words += ["--dsmip-ipsec", "userspace", "--dsmip-kernel", "host", "--basetemp", "base"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("kernel", ["host"])
def test_a_session_that_ends_early_leaves_nothing(kernel: str) -> None:
    with LabSession.start("ipv4-only", kernel=kernel, ipsec="userspace") as lab:
        name = lab.run_id
    assert name not in [journal.run for journal in cleanup.runs()]
    assert not list(netns.DIRECTORY.glob(f"{name}*"))
    with pytest.raises(LabError):
        lab.move("mn", "visited-a")


# For others than root: a user namespace -----------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory of the user "nobody"."""
    with tempfile.TemporaryDirectory(prefix="dsmip-nobody-") as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)
        deadline = time.monotonic() + 20
        while left := processes_about(name):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def processes_about(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if word.encode() in (line := path.read_bytes()):
                found.append(line.replace(b"\0", b" ").decode())
    return found


def as_nobody(directory: Path, *words: str) -> subprocess.Popen[str]:
    identity = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    environment = {**os.environ, "HOME": str(directory), "TMPDIR": str(directory)}
    environment.pop("XDG_RUNTIME_DIR", None)
    return subprocess.Popen(
        ["setpriv", *identity, *COMMAND, *words],
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_no_root_is_needed_where_there_are_user_namespaces(elsewhere: Path) -> None:
    out = elsewhere / "out"
    lab = elsewhere / "ipv4-only.toml"
    lab.write_text((LABS / lab.name).read_text().replace("ms = 120", "ms = 900"))
    words = ("--out", str(out), "--export-keys")
    done = as_nobody(elsewhere, "run", str(lab), *USERSPACE, *words)
    try:
        said, _ = done.communicate(timeout=120)
    finally:
        done.kill()
    assert done.returncode == 0, said
    record = json.loads((out / "record.json").read_text())
    assert record["verdict"] == "passed"
    assert {path.stat().st_uid for path in out.rglob("*")} == {NOBODY}
    assert record["run_id"] not in [journal.run for journal in cleanup.runs()]
    assert not list(netns.DIRECTORY.glob(f"{record['run_id']}*")), "its namespaces are its own"
    updates = LabRun(0, said, out).tshark("ha-backbone", "mip6.mhtype == 5", "frame.number")
    assert len(updates) >= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_is_left(elsewhere: Path, number: signal.Signals) -> None:
    """The fixture looks for processes; namespaces go with them."""
    running = as_nobody(elsewhere, "run", "ping-pong", *USERSPACE, "--out", str(elsewhere / "out"))
    assert running.stdout is not None
    for line in running.stdout:
        if "flows ready" in line:
            break
    else:
        pytest.fail(f"it ended with {running.wait()}")
    assert len(processes_about(str(elsewhere))) >= 6
    running.send_signal(number)
    rest = running.stdout.read()
    assert running.wait(timeout=30) != 0
    assert "Traceback" not in rest
