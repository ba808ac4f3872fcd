"""Runs that are taken away: by themselves, from outside, and never more than is theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import cleanup
from dsmip_ipsec.lab.cleanup import Process, Run, down, end, is_alive, runs, start_time

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cleanup, "state_directories", lambda: [tmp_path / "state"])
    return tmp_path / "state"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def known(process: subprocess.Popen[bytes]) -> Process:
    start = start_time(process.pid)
    assert start is not None
    return Process(process.pid, start, "child")


def abandoned(state: Path, run: Run) -> None:
    """Make the run look as if its owner had been killed."""
    journal = state / run.id / "journal"
    text = journal.read_text().replace(f'"owner": {os.getpid()}', '"owner": 999999999')
    journal.write_text(text)


def test_names_are_unique_and_short() -> None:
    tokens = iter(["aaaa", "aaaa", "bbbb"])
    first = Run.claim(token=lambda: next(tokens))
    second = Run.claim(token=lambda: next(tokens))
    assert (first.id, second.id) == ("dsmip-aaaa", "dsmip-bbbb")
    assert [journal.alive for journal in runs()] == [True, True]
    first.finish()
    assert [journal.run for journal in runs()] == ["dsmip-bbbb"]
    second.finish()
    with pytest.raises(LabError, match="no free run name"):
        Run.claim(token=lambda: "cccc") and Run.claim(token=lambda: "cccc")


def test_processes_and_directories_of_an_abandoned_run_go(
    state: Path, tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    run = Run.claim()
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    run.add_directory(work)
    run.add_process(child.pid, "child")
    abandoned(state, run)
    assert not runs()[0].alive
    (cleaned,) = down(run.id)
    assert (cleaned.processes, cleaned.directories) == (1, 1)
    assert child.wait(timeout=5) == -15
    assert not work.exists()
    assert runs() == []
    assert down() == []


def test_recycled_pid_is_not_touched(state: Path, child: subprocess.Popen[bytes]) -> None:
    run = Run.claim()
    run.add_process(child.pid, "child")
    abandoned(state, run)
    journal = state / run.id / "journal"
    start = known(child).start
    journal.write_text(journal.read_text().replace(f'"start": {start}', f'"start": {start - 1}'))
    (cleaned,) = down()
    assert cleaned.processes == 0
    assert child.poll() is None


def test_nothing_of_another_boot_is_killed(state: Path, child: subprocess.Popen[bytes]) -> None:
    run = Run.claim()
    run.add_process(child.pid, "child")
    journal = state / run.id / "journal"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    journal.write_text(journal.read_text().replace(boot, "another"))
    (cleaned,) = down()
    assert cleaned.processes == 0
    assert child.poll() is None
    assert runs() == []


def test_directory_that_took_the_name_stays(state: Path, tmp_path: Path) -> None:
    run = Run.claim()
    work = tmp_path / "work"
    work.mkdir()
    run.add_directory(work)
    work.rename(tmp_path / "moved")
    work.mkdir()
    abandoned(state, run)
    assert down()[0].directories == 0
    assert work.exists()


def test_link_is_not_followed(state: Path, tmp_path: Path) -> None:
    run = Run.claim()
    work, precious = tmp_path / "work", tmp_path / "precious"
    work.mkdir()
    (precious / "data").mkdir(parents=True)
    run.add_directory(work)
    (work / "link").symlink_to(precious)
    abandoned(state, run)
    assert down()[0].directories == 1
    assert (precious / "data").exists()


def test_broken_journals_name_nothing(state: Path) -> None:
    run = Run.claim()
    with (state / run.id / "journal").open("a") as journal:
        journal.write('[]\n{"process": "1", "start": 1, "name": ""}\n{"namespace": "../../etc"}\n')
        journal.write('{"namespace": "other-mn"}\nnull\n\xff\n{"process": 1, "start')
    found = runs()[0]
    assert (found.processes, found.namespaces, found.directories) == ([], [], [])
    assert found.alive
    run.finish()


def test_state_directory_must_be_ours_alone(state: Path) -> None:
    state.mkdir(mode=0o777)
    state.chmod(0o777)
    with pytest.raises(LabError, match="only we can write"):
        Run.claim()


def test_unknown_run_is_named_with_those_there_are() -> None:
    run = Run.claim()
    with pytest.raises(LabError, match="no run 'dsmip-none'") as caught:
        down("dsmip-none")
    assert run.id in caught.value.hint
    run.finish()


def test_lab_that_still_runs_is_asked_first(tmp_path: Path, state: Path) -> None:
    """`down` gives the owner the time to take itself down."""
    script = f"""
import signal, sys
from pathlib import Path
from dsmip_ipsec.lab import cleanup
cleanup.state_directories = lambda: [Path({str(state)!r})]
run = cleanup.Run.claim()
def bye(*_):
    run.finish()
    Path({str(tmp_path / "bye")!r}).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print(run.id, flush=True)
while True: signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().decode().strip()
        assert [journal.alive for journal in runs()] == [True]
        (cleaned,) = down(name)
        assert owner.wait(timeout=5) == 0
    assert (tmp_path / "bye").exists()
    assert cleaned.processes == 1
    assert runs() == []


def test_ending_is_patient_then_firm(child: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(STUBBORN, stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        assert end([known(child), known(stubborn)], grace_s=0.2) == 2
        assert (child.wait(), stubborn.wait()) == (-15, -9)
        assert end([Process(child.pid, 1)]) == 0


def test_zombies_and_strangers_are_not_alive(child: subprocess.Popen[bytes]) -> None:
    process = known(child)
    assert is_alive(process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process)
    assert start_time(999999999) is None


def test_journal_is_private_and_readable(state: Path) -> None:
    run = Run.claim()
    run.add_namespace(f"{run.id}-mn")
    assert (state / run.id).stat().st_mode & 0o077 == 0
    lines = (state / run.id / "journal").read_text().splitlines()
    assert json.loads(lines[1]) == {"namespace": f"{run.id}-mn"}
    run.finish()
