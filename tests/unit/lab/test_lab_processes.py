"""The supervisor: what ends unexpectedly is told, what should end ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import cleanup
from dsmip_ipsec.lab.cleanup import Run, start_time
from dsmip_ipsec.lab.processes import Processes


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


WAIT = python("import time; print('ready', flush=True); time.sleep(600)")
STUBBORN = python(
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True);"
    "time.sleep(600)"
)


@pytest.fixture
async def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Processes]:
    monkeypatch.setattr(cleanup, "state_directories", lambda: [tmp_path / "state"])
    run = Run.claim()
    async with Processes(run) as supervisor:
        yield supervisor
    run.finish()


async def gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while start_time(pid) is not None:
        assert time.monotonic() < deadline, f"{pid} is still there"
        await asyncio.sleep(0.01)


async def test_unexpected_end_is_told_with_status_and_last_words(
    processes: Processes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    code = "import sys; print('one'); print('the reason', file=sys.stderr); sys.exit(3)"
    processes.start("failing", python(code), log=log)
    error = await asyncio.wait_for(processes.failed, 10)
    assert "'failing' ended with exit status 3" in str(error)
    assert "the reason" in str(error)
    assert str(log) in error.hint
    with pytest.raises(LabError, match="failing"):
        processes.check()


async def test_killed_process_ends_the_work(processes: Processes, tmp_path: Path) -> None:
    process = processes.start("charon", WAIT, log=tmp_path / "log")
    await processes.wait_ready("charon")
    processes.check()
    os.kill(process.pid, signal.SIGKILL)
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()

    with pytest.raises(LabError, match="'charon' was killed by SIGKILL"):
        await asyncio.wait_for(processes.guard(work()), 10)
    assert cancelled.is_set()


async def test_guard_returns_what_the_work_returns(processes: Processes, tmp_path: Path) -> None:
    processes.start("waiting", WAIT, log=tmp_path / "log")

    async def work() -> int:
        return 5

    assert await processes.guard(work()) == 5


async def test_expected_ends_are_no_failures(processes: Processes, tmp_path: Path) -> None:
    once = processes.start("once", python("pass"), log=tmp_path / "once", may_end=True)
    assert await asyncio.wait_for(once.ended, 10) == 0
    processes.start("stopped", WAIT, log=tmp_path / "stopped")
    await processes.wait_ready("stopped")
    assert await processes.stop("stopped") == -signal.SIGTERM
    processes.check()
    processes.start("once", python("import sys; sys.exit(1)"), log=tmp_path / "o", may_end=True)
    await asyncio.wait_for(processes.failed, 10)


async def test_stubborn_process_is_killed(processes: Processes, tmp_path: Path) -> None:
    processes.start("stubborn", STUBBORN, log=tmp_path / "log")
    await processes.wait_ready("stubborn")
    assert await processes.stop("stubborn", grace_s=0.1) == -signal.SIGKILL


async def test_what_a_process_leaves_behind_goes_with_it(
    processes: Processes, tmp_path: Path
) -> None:
    code = f"import subprocess; p = subprocess.Popen({WAIT!r}); print(p.pid, flush=True); p.wait()"
    processes.start("parent", python(code), log=tmp_path / "log")
    await processes.wait_ready("parent")  # the child said so, maybe before its parent said its pid
    async with asyncio.timeout(10):
        while not (found := re.search(r"\b\d+\b", processes["parent"].last_lines())):
            await asyncio.sleep(0.02)
    orphan = int(found[0])
    assert start_time(orphan) is not None
    await processes.stop("parent")
    await gone(orphan)


async def test_all_are_stopped_last_started_first(processes: Processes, tmp_path: Path) -> None:
    order: list[str] = []
    for name in ("first", "second", "third"):
        process = processes.start(name, WAIT, log=tmp_path / name)
        process.ended.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        await processes.wait_ready(name)
    await processes.stop_all()
    await asyncio.sleep(0)
    assert order == ["third", "second", "first"]


async def test_not_ready_in_time(processes: Processes, tmp_path: Path) -> None:
    processes.start("mute", python("import time; time.sleep(600)"), log=tmp_path / "log")
    with pytest.raises(LabError, match="'mute' isn't ready"):
        await processes.wait_ready("mute", deadline_s=0.2)
    processes.start("dead", python("raise SystemExit('no')"), log=tmp_path / "log2")
    with pytest.raises(LabError, match="exit status 1"):
        await processes.wait_ready("dead")


async def test_missing_program_and_namespace(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="'x' can't be started"):
        processes.start("x", ["no-such-program"], log=tmp_path / "log")
    with pytest.raises(LabError, match="no network namespace 'dsmip-none'"):
        processes.start("x", WAIT, log=tmp_path / "log", namespace="dsmip-none")
    processes.start("x", WAIT, log=tmp_path / "log")
    with pytest.raises(LabError, match="runs already"):
        processes.start("x", WAIT, log=tmp_path / "log")


async def test_logs_are_private_and_environment_is_what_was_given(
    processes: Processes, tmp_path: Path
) -> None:
    code = "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}), os.getsid(0) == os.getpid())"
    log = tmp_path / "log"
    process = processes.start("x", python(code), log=log, environment={"A": "b"}, may_end=True)
    await asyncio.wait_for(process.ended, 10)
    assert process.last_lines() == "['A'] True"
    assert log.stat().st_mode & 0o077 == 0


def test_children_die_with_the_lab(tmp_path: Path) -> None:
    """kill -9 of the lab leaves none of its processes."""
    script = f"""
import asyncio
from pathlib import Path
from dsmip_ipsec.lab import cleanup
from dsmip_ipsec.lab.processes import Processes
cleanup.state_directories = lambda: [Path({str(tmp_path / "state")!r})]
async def main():
    processes = Processes(cleanup.Run.claim())
    child = processes.start("child", {STUBBORN!r}, log=Path({str(tmp_path / "log")!r}))
    await processes.wait_ready("child")
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as lab:
        assert lab.stdout is not None
        child = int(lab.stdout.readline())
        assert start_time(child) is not None
        lab.kill()
    asyncio.run(gone(child))


async def test_niceness_is_added_to_ours(processes: Processes, tmp_path: Path) -> None:
    process = processes.start("nice", WAIT, log=tmp_path / "log", nice=3)
    await processes.wait_ready("nice")
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
