"""What a run has made, written down before it is made, so that anyone can take it away.

Each run has a directory with a journal: its owner, namespaces, processes and directories, one
JSON object a line. A lab that ends by itself works through its own journal; after ``kill -9``,
``dsmip-ipsec lab down`` does the same from outside. A process is known by its pid *and* start
time, a directory by its inode: what only has the same number or name is never touched.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import LabError
from . import netns

RUN_ID = re.compile(r"^dsmip-[0-9a-f]{4}$")
_JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class Process:
    """A process: ``start`` is its start time in clock ticks since boot (proc(5), field 22)."""

    pid: int
    start: int
    name: str = ""


@dataclass(slots=True)
class Journal:
    """What a run's journal says. ``current_boot``: it was written since the machine started."""

    run: str
    directory: Path
    owner: Process | None = None
    namespaces: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    directories: list[tuple[Path, int, int]] = field(default_factory=list)
    current_boot: bool = True

    @property
    def alive(self) -> bool:
        """Whether the process that owns the run still lives."""
        return self.current_boot and self.owner is not None and is_alive(self.owner)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What :func:`down` took away."""

    run: str
    processes: int
    namespaces: int
    directories: int


# Processes -----------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """Start time of the process ``pid`` in clock ticks since boot; None when it's gone or a
    zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may have spaces and brackets in it
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether it is still that process."""
    return start_time(process.pid) == process.start


def _handle(process: Process) -> int | None:
    """A pidfd of exactly that process; None when it's gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return None
    if not is_alive(process):  # checked after opening: from here on the handle can't change
        os.close(handle)
        return None
    return handle


def end(processes: Iterable[Process], *, grace_s: float = 1.0, deadline_s: float = 5.0) -> int:
    """End processes: SIGTERM, and after ``grace_s`` seconds SIGKILL. Returns when they are gone.

    :returns: how many there were.
    :raises LabError: some are still there ``deadline_s`` seconds after SIGKILL.
    """
    handles: dict[int, Process] = {}
    for process in processes:
        handle = _handle(process)
        if handle is not None:
            handles[handle] = process
    count = len(handles)
    try:
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, deadline_s)):
            if wait_s > 0:
                for handle in handles:
                    with suppress(OSError):
                        signal.pidfd_send_signal(handle, number)
                _wait(handles, wait_s)
        if handles:
            left = ", ".join(f"{p.name or 'process'} ({p.pid})" for p in handles.values())
            raise LabError(f"still running after SIGKILL: {left}", hint="see `ps`; try again")
    finally:
        for handle in handles:
            os.close(handle)
    return count


def wait(process: Process, *, wait_s: float) -> bool:
    """Wait for a process that ends by itself. :returns: whether it has."""
    handle = _handle(process)
    if handle is None:
        return True
    handles = {handle: process}
    _wait(handles, wait_s)
    for left in handles:
        os.close(left)
    return not handles


def _wait(handles: dict[int, Process], wait_s: float) -> None:
    """Wait until all have ended or the time is over; the ended ones leave ``handles``."""
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + wait_s
    while handles and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            del handles[handle]
            os.close(handle)


# State directories ---------------------------------------------------------------------------


def state_directories() -> list[Path]:
    """Where this user's runs may be written down, the preferred place first."""
    places: list[Path] = []
    if os.geteuid() == 0:
        places.append(Path("/run/dsmip-ipsec"))
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.append(Path(runtime) / "dsmip-ipsec")
    places.append(Path(tempfile.gettempdir()) / f"dsmip-ipsec-{os.geteuid()}")
    return places


def _private(directory: Path) -> Path:
    """Make ``directory`` for us alone, or check that it is."""
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{directory} isn't a directory that only we can write to")
    return directory


def _state_directory() -> Path:
    said: list[str] = []
    for place in state_directories():
        try:
            return _private(place)
        except OSError as error:
            said.append(f"{place}: {error.strerror or error}")
    raise LabError(
        f"no place to write down what a run makes: {'; '.join(said)}",
        hint="set XDG_RUNTIME_DIR to a writable directory of your own",
    )


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


class Run:
    """A run that this process owns. ``id`` starts the names of all its namespaces."""

    def __init__(self, run: str, directory: Path) -> None:
        self.id = run
        self.directory = directory
        self._journal = os.open(
            directory / _JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )

    @classmethod
    def claim(cls, *, token: Callable[[], str] = lambda: secrets.token_hex(2)) -> Run:
        """Begin a run under a name that no other run has.

        :raises LabError: no state directory, or no name left.
        """
        base = _state_directory()
        for _ in range(100):
            name = f"dsmip-{token()}"
            with suppress(FileExistsError):
                (base / name).mkdir(mode=0o700)
                run = cls(name, base / name)
                owner = start_time(os.getpid())
                run._write({"owner": os.getpid(), "start": owner, "boot": _boot_id()})
                return run
        raise LabError(
            f"no free run name in {base}", hint="`dsmip-ipsec lab down` removes what is left over"
        )

    def _write(self, entry: dict[str, object]) -> None:
        os.write(self._journal, json.dumps(entry).encode() + b"\n")

    def add_namespace(self, name: str) -> None:
        """Write down a namespace that is about to be made."""
        self._write({"namespace": name})

    def add_process(self, pid: int, name: str) -> None:
        """Write down a process that was just started."""
        self._write({"process": pid, "start": start_time(pid), "name": name})

    def add_directory(self, path: Path) -> None:
        """Write down a directory that was just made, and goes with the run."""
        status = path.lstat()
        entry = {"directory": str(path.absolute()), "dev": status.st_dev, "ino": status.st_ino}
        self._write(entry)

    def finish(self) -> Cleaned:
        """Take away everything that was written down. Idempotent.

        :raises LabError: something can't be removed; the journal stays for another try.
        """
        cleaned = _clean(_read(self.directory), grace_s=1.0)
        with suppress(OSError):
            os.close(self._journal)
        return cleaned


def _read(directory: Path) -> Journal:
    journal = Journal(run=directory.name, directory=directory)
    try:
        text = (directory / _JOURNAL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return journal
    for line in text.splitlines():
        # A line that a kill cut short, or that isn't ours, names nothing that could be removed.
        with suppress(ValueError, KeyError, TypeError):
            _read_entry(journal, json.loads(line))
    return journal


def _read_entry(journal: Journal, entry: dict[str, object]) -> None:
    match entry:
        case {"owner": int(pid), "start": int(start), "boot": str(boot)}:
            journal.owner = Process(pid, start, "the lab")
            journal.current_boot = boot == _boot_id()
        case {"namespace": str(name)} if name.startswith(f"{journal.run}-") and "/" not in name:
            journal.namespaces.append(name)
        case {"process": int(pid), "start": int(start), "name": str(name)}:
            journal.processes.append(Process(pid, start, name))
        case {"directory": str(path), "dev": int(device), "ino": int(inode)}:
            journal.directories.append((Path(path), device, inode))


def runs() -> list[Journal]:
    """The journals of all runs of this user, alive or left over."""
    found: list[Journal] = []
    for base in state_directories():
        with suppress(OSError):
            if base.lstat().st_uid == os.geteuid():
                found += [_read(d) for d in sorted(base.iterdir()) if RUN_ID.match(d.name)]
    return found


def down(run: str = "all", *, grace_s: float = 10.0) -> list[Cleaned]:
    """Take away a run, or all: what a killed lab left, and a lab that still runs.

    A lab that still runs gets ``grace_s`` seconds to take itself down. Idempotent.

    :raises LabError: there is no such run, or something can't be removed.
    """
    journals = [journal for journal in runs() if run in ("all", journal.run)]
    if run != "all" and not journals:
        names = ", ".join(journal.run for journal in runs())
        raise LabError(f"there is no run '{run}'", hint=f"runs: {names or 'none'}")
    cleaned: list[Cleaned] = []
    for journal in journals:
        ended = 0
        if journal.alive and journal.owner is not None and journal.owner.pid != os.getpid():
            ended = end([journal.owner], grace_s=grace_s)
            journal = _read(journal.directory)  # it may have cleaned up, or made more
        result = _clean(journal, grace_s=1.0)
        cleaned.append(
            Cleaned(result.run, result.processes + ended, result.namespaces, result.directories)
        )
    return cleaned


def _clean(journal: Journal, *, grace_s: float) -> Cleaned:
    ended = removed = 0
    if journal.current_boot:
        ended = end(reversed(journal.processes), grace_s=grace_s)
        ended += _end_inhabitants(journal.namespaces)
        removed = sum(netns.remove(name) for name in reversed(journal.namespaces))
    directories = sum(_remove(*entry) for entry in reversed(journal.directories))
    shutil.rmtree(journal.directory, ignore_errors=True)
    return Cleaned(journal.run, ended, removed, directories)


def _end_inhabitants(namespaces: list[str]) -> int:
    """End what still runs in the namespaces (children that daemons left behind)."""
    ended = 0
    for _ in range(10):  # a process may have forked between the look and the kill
        pids = netns.pids(namespaces) - {os.getpid()}
        if not pids:
            return ended
        found = [Process(pid, start) for pid in pids if (start := start_time(pid)) is not None]
        ended += end(found, grace_s=0)
    raise LabError(
        f"processes keep appearing in {', '.join(namespaces)}", hint="see `ip netns pids`"
    )


def _remove(path: Path, device: int, inode: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    if (status.st_dev, status.st_ino) != (device, inode) or not stat.S_ISDIR(status.st_mode):
        return False  # another one of that name
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise LabError(f"{path} can't be removed: {error.strerror}", hint="remove it") from None
    return True
