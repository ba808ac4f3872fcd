"""What goes wrong is said clearly, soon, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest
from lab_runs import LABS, LabRun, assert_nothing_left, run_lab

from dsmip_ipsec.lab import guest_code

pytestmark = pytest.mark.usefixtures("own_tmp")

HANDOVER = (LABS / "nat-handover.toml").read_text()
TOPOLOGY, STEPS = HANDOVER.split("# --- what happens", 1)

ATTACH = '[[steps]]\nname = "attach"\nattach = "visited-a"\n'
MOVE = '[[steps]]\nname = "move"\nmove = "visited-b"\n'
DEREGISTER = '[[steps]]\nname = "deregister"\nderegister = true\n'
BOUND = "[steps.expect]\nbinding = true\nsad_consistent = true\nike_alive = true\ndata = true\n"
GONE = "[steps.expect]\nbinding = false\nsecurity_associations = 0\npolicies = 0\ndata = false\n"


def lab(directory: Path, steps: str, **changes: str) -> Path:
    """A lab file with the topology of nat-handover.toml and other steps."""
    text = TOPOLOGY
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = directory / "lab.toml"
    path.write_text(text + steps)
    return path


def with_ike(auth: str, extra: str = "") -> dict[str, str]:
    return {'auth = "certificate"': f'auth = "{auth}"\n{extra}'}


def failed_step(run: LabRun) -> str:
    """The step that the record names, after the checks that hold of every failed run."""
    assert run.status == 1, run.output
    assert "Traceback" not in run.output
    record = run.record
    assert record["verdict"] == "error"
    failure = record["failure"]
    assert failure["message"]
    assert failure["message"].splitlines()[0] in " ".join(run.output.split()) or (
        failure["step"] in run.output
    )
    assert failure["step"] in run.output
    assert_nothing_left(Path(os.environ["TMPDIR"]))
    step: str = failure["step"]
    return step


@pytest.mark.parametrize(
    "victim",
    [
        "charon of mn",
        "charon of ha",
        "daemon of mn",
        "daemon of ha",
        "flows of cn",
        "capture",
    ],
)
def test_a_killed_process_ends_the_run_and_is_named(tmp_path: Path, victim: str) -> None:
    steps = ATTACH + f'[[steps]]\nname = "accident"\nkill = "{victim}"\n' + MOVE
    started = time.monotonic()
    run = run_lab(lab(tmp_path, steps), tmp_path / "out")
    assert failed_step(run) == "accident"
    assert f"'{victim}' was killed by SIGKILL" in run.record["failure"]["message"]
    assert time.monotonic() - started < 45  # boot, set-up and attaching included


@pytest.mark.parametrize("auth", ["certificate", "psk"])
def test_a_wrong_key_is_called_an_authentication_failure(tmp_path: Path, auth: str) -> None:
    run = run_lab(lab(tmp_path, ATTACH, **with_ike(auth, 'wrong_key = "mn"')), tmp_path / "out")
    assert failed_step(run) == "attach"
    assert re.search("authentication", run.record["failure"]["message"], re.IGNORECASE)


@pytest.mark.parametrize("when", ["before attaching", "before moving"])
@pytest.mark.parametrize("port", [4191, 4500])
def test_a_blocked_port_is_named(tmp_path: Path, port: int, when: str) -> None:
    block = f'[[steps]]\nname = "block"\nblock = {{ node = "core", port = {port} }}\n'
    steps = block + ATTACH if when == "before attaching" else ATTACH + block + MOVE
    run = run_lab(lab(tmp_path, steps), tmp_path / "out")
    assert failed_step(run) == ("attach" if when == "before attaching" else "move")
    failure = run.record["failure"]
    assert str(port) in failure["message"] + failure["hint"]
    before = ("boot", "program")  # these come before what the duration is of
    phases = [p for p in run.record["phases"] if p["name"] not in before]
    waited = run.record["duration_s"] - sum(p["duration_s"] for p in phases)
    assert waited < 30 + 5 * (when == "before moving")


def test_a_failed_expectation_says_what_was_expected_and_seen(tmp_path: Path) -> None:
    steps = ATTACH + "[steps.expect]\nnat_detected = false\n"
    run = run_lab(lab(tmp_path, steps), tmp_path / "out")
    assert run.status == 1
    assert run.record["verdict"] == "failed"
    lines = [" ".join(line.split()) for line in run.output.splitlines()]
    assert "expected no at both ends" in lines
    assert "saw mobile node: yes; home agent: yes" in lines


def test_pre_shared_keys(tmp_path: Path) -> None:
    steps = ATTACH + BOUND + DEREGISTER + GONE
    run = run_lab(lab(tmp_path, steps, **with_ike("psk")), tmp_path / "out")
    assert run.status == 0, run.output
    assert run.record["settings"]["ike_authentication"] == "psk"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    command = [
        *(sys.executable, "-m", "dsmip_ipsec", "lab", "run", str(LABS / "nat-handover.toml")),
        *("--kernel", "uml", "--out", str(tmp_path / "out")),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "flows ready" in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=20) == 128 + number
    assert "Traceback" not in rest
    assert_nothing_left(Path(os.environ["TMPDIR"]))


def _guests_kernel(pid: int) -> int:
    """The guest's kernel below process ``pid``: the first of its kind on the way down. (Its helpers
    come from it; their numbers may be lower, since numbers wrap around.)"""
    children: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        children.setdefault(int(rest.split()[1]), []).append((int(path.parent.name), name))
    level = children.get(pid, [])
    while level:
        for found, name in level:
            if "linux" in name:
                return found
        level = [child for above, _ in level for child in children.get(above, [])]
    raise AssertionError("no guest is running")


def test_a_killed_guest_is_told_with_the_step(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "dsmip_ipsec", "lab", "run", str(LABS / "nat-handover.toml")),
        *("--kernel", "uml", "--out", str(tmp_path / "out")),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "move to the public network …" in line:
                break
        killed = time.monotonic()
        os.kill(_guests_kernel(process.pid), signal.SIGKILL)
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 1
    assert time.monotonic() - killed < 30
    assert "error:" in rest
    assert "move to the public network" in rest
    assert "guest-console.log" in rest
    assert "Traceback" not in rest
    assert_nothing_left(Path(os.environ["TMPDIR"]))


def test_two_runs_at_once(tmp_path: Path) -> None:
    steps = ATTACH + BOUND + MOVE + BOUND + DEREGISTER + GONE
    path = lab(tmp_path, steps)
    processes = []
    for name in ("one", "two"):
        command = [
            *(sys.executable, "-m", "dsmip_ipsec", "lab", "run", str(path)),
            *("--kernel", "uml", "--out", str(tmp_path / name)),
        ]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert_nothing_left(Path(os.environ["TMPDIR"]))


@pytest.mark.as_root
def test_an_unprivileged_user_runs_the_whole_lab() -> None:
    """From a checkout of its own, with nothing but the packages installed. Not `make lab`'s lab,
    whose tight limits are for a machine with nothing beside it."""
    uid = 41415  # nobody's: this user owns nothing but the directory below
    with tempfile.TemporaryDirectory(prefix="dsmip-user-") as name:
        home = Path(name)
        for part in ("dsmip_ipsec", "templates", "labs", "pyproject.toml"):
            guest_code.stage(LABS.parent / part, home / "checkout" / part)
        guest_code.stage(Path(sysconfig.get_paths()["purelib"]), home / "packages")
        (home / "tmp").mkdir()
        for path in (home, home / "tmp", home / "checkout"):
            path.chmod(0o755)
            os.chown(path, uid, uid)
        result = subprocess.run(
            [
                *(os.path.realpath(sys.executable), "-m", "dsmip_ipsec", "lab", "run"),
                *("nat-double", "--out", "out", "--export-keys"),
            ],
            cwd=home,
            user=uid,
            group=uid,
            extra_groups=[],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(home),
                "TMPDIR": str(home / "tmp"),
                "PYTHONPATH": f"{home}/checkout:{home}/packages",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        assert (home / "out" / "record.json").stat().st_uid == uid
        assert list((home / "tmp").iterdir()) == []
