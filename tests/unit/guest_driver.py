"""Guests started from a process of their own, so that tests can kill it, or be another user."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dsmip_ipsec.lab import guest_code

# Somebody who owns nothing on any machine, and isn't nobody.
STRANGER = (41414, 41414)

DRIVER = """
import json, os, sys
from pathlib import Path
from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.lab.guest import UmlGuest, run_until_signal
from dsmip_ipsec.lab.guest_qemu import QemuGuest
told = json.loads(sys.argv[1])
directory = Path(told["directory"])
kind = {"uml": UmlGuest, "qemu": QemuGuest}[told["kind"]]
guest = kind(share=directory / "share", console_log=directory / "console.log",
             mem_mb=told["mem_mb"], silence_s=told["silence_s"],
             visible=[Path(path) for path in told["visible"]])
def on_line(line):
    if not told.setdefault("run", ""):
        told["run"] = guest.run_dir.name
        print(f"run:{guest.run_dir.name}", flush=True)
    print("line:" + line, flush=True)
    if line == "fail now":
        raise RuntimeError("the listener failed")
try:
    status = run_until_signal(guest.run(told["argv"], deadline_s=told["deadline_s"],
                                        on_line=on_line, env=told["env"], cwd=told["cwd"]))
    print(f"status:{status}")
    print(f"ready:{guest.ready_after_s:.2f}")
except DsmipError as error:
    print(f"error:{type(error).__name__}: {error.message}")
    print(f"hint:{error.hint}")
    print(f"run:{guest.run_dir.name}")
    sys.exit(3)
"""


def wait_until(true: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)


def parent(pid: int) -> int:
    """The parent's process number; 0 when the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def only(pids: Iterable[int]) -> int:
    (pid,) = pids
    return pid


@dataclass
class Driver:
    process: subprocess.Popen[str]
    directory: Path
    said: list[str]
    reader: threading.Thread

    def wait_for(self, pattern: str) -> None:
        def seen() -> bool:
            assert self.process.poll() is None or any(re.search(pattern, s) for s in self.said), (
                f"ended without {pattern!r}: {self.said}"
            )
            return any(re.search(pattern, line) for line in self.said)

        wait_until(seen, f"the driver says {pattern!r}: {self.said}", 60)

    def result(self, deadline_s: float = 60.0) -> list[str]:
        """What it said, once it has ended."""
        self.process.wait(timeout=deadline_s)
        self.reader.join(timeout=5)
        return self.said

    def value(self, key: str) -> str:
        return next((s.removeprefix(f"{key}:") for s in self.said if s.startswith(f"{key}:")), "")

    def lines(self) -> list[str]:
        return [line.removeprefix("line:") for line in self.said if line.startswith("line:")]

    def guest_processes(self) -> dict[int, list[str]]:
        """Keeper, its children and linux.uml of this driver's guest: pid to command line."""
        mark = f"{self.directory}/tmp/"
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    command = (entry / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if mark in command:
                    found[int(entry.name)] = command.split("\0")
        return found

    @staticmethod
    def is_kernel(program: str) -> bool:
        return program.endswith(("linux.uml", "qemu-system-x86_64"))

    def uml(self) -> int:
        """The process that is the guest's kernel: the one that no other of its kind started.

        Not the one with the lowest number: numbers wrap around, in a long test run every few
        minutes, and then that is one of the kernel's helpers, whose end nobody notices.
        """
        pids = [p for p, words in self.guest_processes().items() if self.is_kernel(words[0])]
        # 0: one process of the guest's own has ended meanwhile.
        return only(pid for pid in pids if parent(pid) not in [0, *pids])

    def keepers(self) -> list[int]:
        """The keeper and the processes between it and the guest, outermost first."""
        pids = [p for p, words in self.guest_processes().items() if not self.is_kernel(words[0])]
        chain = [only(pid for pid in pids if parent(pid) not in pids)]
        while below := [pid for pid in pids if parent(pid) == chain[-1]]:
            chain.append(only(below))
        return chain

    def left_behind(self) -> list[str]:
        """What of the guest is still there: directories and processes."""
        left = [str(path) for path in (self.directory / "tmp").iterdir()]
        left += [f"{pid} {' '.join(words)}" for pid, words in self.guest_processes().items()]
        return left + [str(path) for path in self.memory()]

    def memory(self) -> list[Path]:
        """Directories for the guest's memory, which is on this tmpfs where there is room."""
        run = self.value("run")
        assert run, f"no guest was started: {self.said}"
        return list(Path("/dev/shm").glob(f"{run}*"))


def python_for(user: tuple[int, int] | None, stage_dir: Path) -> tuple[str, dict[str, str]]:
    """An interpreter with our code that ``user`` can run, and the environment it needs.

    A checkout that only root can read is staged, as for a guest.
    """
    roots = guest_code.code_roots()
    if user is None or guest_code.first_unreadable(roots, user) is None:
        return sys.executable, {"PYTHONPATH": str(guest_code.package_dir().parent)}
    packages = Path(sysconfig.get_paths()["purelib"])
    guest_code.stage(guest_code.package_dir(), stage_dir / "code" / "dsmip_ipsec")
    guest_code.stage(packages, stage_dir / "packages")
    path = f"{stage_dir}/code:{stage_dir}/packages"
    return os.path.realpath(sys.executable), {"PYTHONPATH": path}


@contextmanager
def driver(
    argv: Sequence[str],
    *,
    user: tuple[int, int] | None = None,
    deadline_s: float = 60.0,
    silence_s: float | None = None,
    kind: str = "uml",
    mem_mb: int = 256,
    env: dict[str, str] | None = None,
    cwd: str = "/",
    visible: Sequence[Path] = (),
    python: tuple[str, dict[str, str]] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Driver]:
    """A process that runs ``argv`` in a guest; ``user`` None: as who we are. ``within``: a command
    that runs the process somewhere else."""
    # Not pytest's tmp_path: its parents are closed to other users.
    directory = Path(tempfile.mkdtemp(prefix="guest-test-"))
    (directory / "tmp").mkdir()
    directory.chmod(0o755)
    stage_dir = Path(tempfile.mkdtemp(prefix="guest-test-code-"))
    stage_dir.chmod(0o755)
    if user is not None:
        for path in (directory, directory / "tmp"):
            os.chown(path, *user)
    interpreter, code = python or python_for(user, stage_dir)
    told = {
        "directory": str(directory),
        "argv": list(argv),
        "kind": kind,
        "deadline_s": deadline_s,
        "silence_s": silence_s,
        "mem_mb": mem_mb,
        "env": env or {},
        "cwd": cwd,
        "visible": [str(path) for path in visible],
    }
    process = subprocess.Popen(
        [*within, interpreter, "-c", DRIVER, json.dumps(told)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "TMPDIR": f"{directory}/tmp", **code},
        user=None if user is None else user[0],
        group=None if user is None else user[1],
        extra_groups=None if user is None else [],
    )
    said: list[str] = []
    assert process.stdout is not None
    stream = process.stdout
    reader = threading.Thread(
        target=lambda: said.extend(line.rstrip("\n") for line in stream), daemon=True
    )
    reader.start()
    run = Driver(process, directory, said, reader)
    try:
        yield run
    finally:
        process.kill()
        process.wait()
        reader.join(timeout=5)
        stream.close()
        # The keeper needs a moment to clean up, if the test has left it alive.
        with suppress(AssertionError):
            wait_until(lambda: run.guest_processes() == {}, "the guest's end", 10)
        for pid in run.guest_processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if run.value("run"):
            for path in run.memory():
                shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(stage_dir, ignore_errors=True)
