"""Guests: run one command on another kernel, without root on the host.

A guest boots on the host's own root file system (read-only), runs one command as the guest's root
and streams its output back. On the host it runs as an ordinary user: the one who calls, or
``nobody`` when that is root. See guest_keeper.py for what confines it, guest_code.py for how it
comes to see the project's files, guest_init.py for what it does when it starts.

Here are what all kinds of guests have in common, and Debian's User-Mode Linux; see guest_qemu.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import GuestError, LabError
from dsmip_ipsec.lab import guest_code, guest_keeper
from dsmip_ipsec.lab.guest_console import GuestConsole, GuestEnded
from dsmip_ipsec.lab.guest_init import PLAIN_MOUNT, UML, InitSpec, Machine, render_init
from dsmip_ipsec.lab.guest_output import OutputLines
from dsmip_ipsec.lab.guest_share import collect_share as collect_share
from dsmip_ipsec.lab.guest_share import guest_user as guest_user
from dsmip_ipsec.lab.guest_share import prepare_share as prepare_share
from dsmip_ipsec.lab.guest_stream import STREAM_VARIABLE, pump
from dsmip_ipsec.lab.pace import PACE_VARIABLE

INSTALL_HINT = "apt-get install user-mode-linux kmod"


@dataclass(frozen=True)
class Start:
    """What starts a guest's kernel. ``argv``: see KeeperConfig. ``writable`` and ``groups``: beyond
    what each guest needs, paths that it may write to and groups of the host that it is in."""

    argv: list[str]
    env: dict[str, str]
    writable: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)


class Guest(ABC):
    """One guest, one command. ``ready_after_s`` says, once it ran, how long it took to boot.

    A kind of guest tells its :attr:`machine` and how it is started.
    """

    machine: Machine

    def __init__(
        self,
        *,
        share: Path,
        console_log: Path,
        mem_mb: int = 1024,
        visible: Sequence[Path] = (),
        boot_s: float | None = None,
        silence_s: float | None = None,
        keep: bool = False,
        orphans: Sequence[Path] = (),
    ) -> None:
        """``share``: see prepare_share. ``visible``: directories the command needs besides our
        code. ``boot_s``: by then it is ready; ``silence_s``: no heartbeat for so long means hung
        (both 60, times the machine's pace). ``keep``: leave the run's directory behind.
        ``orphans``: directories to remove, too, when this process is killed."""
        self.share = Path(os.path.abspath(share))
        self.console_log = Path(os.path.abspath(console_log))
        if self.share in self.console_log.parents:
            raise LabError(
                "the console log lies in the guest's share",
                hint="put it where the guest can't write",
            )
        self.mem_mb = mem_mb
        self.visible = list(visible)
        self._boot_s = boot_s
        self._silence_s = silence_s
        self.keep = keep
        self.orphans = list(orphans)
        self.ready_after_s: float | None = None
        self.run_dir: Path | None = None
        self._directories: list[Path] = []
        self._console: GuestConsole | None = None
        self._fifos: dict[str, int] = {}

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str = "/",
        deadline_s: float,
        on_line: Callable[[str], None],
        stream: socket.socket | None = None,
    ) -> int:
        """Boot, run ``argv`` as the guest's root, end the guest; returns the command's status.

        ``on_line`` gets each line of stdout and stderr (mixed, as they come). ``deadline_s``
        covers all of it. ``stream``: see guest_stream.py; it stays the caller's to close. Raises
        GuestError when the guest dies, hangs or is late, LabError when it can't be started.
        However it ends, cancellation included, nothing is left running.
        """
        if not argv or any("\0" in word for word in argv):
            raise LabError("no command for the guest, or a NUL in it", hint="pass a list of words")
        self.find_parts()
        prepare_share(self.share)
        started = time.monotonic()
        nonce = secrets.token_hex(16)
        lines = OutputLines(nonce, on_line)
        loop = asyncio.get_running_loop()
        try:
            user = guest_user()
            run_dir, mem_dir = self._make_directories(user)
            guest_code.compile_package()
            stage_dir = run_dir / "stage"
            stage_dir.mkdir(mode=0o755)
            stage_dir.chmod(0o755)
            spec = InitSpec(
                argv=argv,
                share=self.share,
                nonce=nonce,
                # Our own code, however this process came by it.
                env={
                    "PYTHONPATH": guest_code.python_path(),
                    PACE_VARIABLE: f"{self.pace:g}",
                    **({} if stream is None else {STREAM_VARIABLE: self.machine.stream}),
                    **(env or {}),
                },
                machine=self.machine,
                cwd=str(cwd),
                mounts=guest_code.make_visible(
                    guest_code.code_roots([*self.visible, *self.parts()]),
                    user,
                    stage_dir,
                    listing=self.machine.listing,
                ),
            )
            self._write_init(run_dir / "init", render_init(spec), user)
            console = self._spawn(run_dir, mem_dir, user)
            loop.add_reader(self._fifos["out"], self._on_output, lines, console)
            loop.add_reader(self._fifos["ctl"], self._on_heartbeat, console)
            pumping: asyncio.Future[None] | None = None
            try:
                await self._wait_ready(console, started, min(self.boot_s, deadline_s))
                if stream is not None:
                    # Not before: until it is set up, the guest's line edits what it is given.
                    pumping = asyncio.ensure_future(
                        pump(stream, self._fifos["from"], self._fifos["to"])
                    )
                await self._wait_end(console, started, deadline_s)
            finally:
                if pumping is not None:
                    pumping.cancel()
                    await asyncio.gather(pumping, return_exceptions=True)
                for descriptor in self._fifos.values():
                    loop.remove_reader(descriptor)
            if lines.status is None:
                raise self._error("the guest ended without a status")
            return lines.status
        finally:
            self._end()

    # -- what a kind of guest says of itself

    @property
    def pace(self) -> float:
        """How many times slower than the host it may be, seen by its deadlines."""
        return 1.0

    @property
    def boot_s(self) -> float:
        return 60.0 * self.pace if self._boot_s is None else self._boot_s

    @property
    def silence_s(self) -> float:
        return 60.0 * self.pace if self._silence_s is None else self._silence_s

    @abstractmethod
    def find_parts(self) -> None:
        """Look for what must be installed. Raises LabError, with how to install it."""

    def parts(self) -> list[Path]:
        """Directories of the host that the guest needs for its own sake."""
        return []

    @abstractmethod
    def start(self, run_dir: Path, mem_dir: Path, user: guest_code.User | None) -> Start:
        """How it is started; ``run_dir/init`` is there. Raises LabError."""

    # -- start

    def _make_directories(self, user: guest_code.User | None) -> tuple[Path, Path]:
        """The run's directory, and one for the guest's memory: a sparse file that is mapped
        executable, so not on a noexec mount, and better on a tmpfs than written to a disk."""
        run_dir = self._mkdtemp([*_own_tempdir(), "/tmp", "/var/tmp"], user, 1)  # noqa: S108
        if user is not None:  # others have no business in a copy of root's files
            os.chown(run_dir, -1, user[1])
        run_dir.chmod(0o750)  # to be read as well: QEMU opens each directory that it looks into
        mem_dir = self._mkdtemp(
            ["/dev/shm", str(run_dir), "/tmp", "/var/tmp"],  # noqa: S108
            user,
            self.machine.file_backed * self.mem_mb,
            prefix=f"{run_dir.name}-",  # so that one can see what belongs together
        )
        scratch = run_dir / self.machine.name  # the kernel's or the emulator's own
        scratch.mkdir(mode=0o700)
        for directory in (mem_dir, scratch):
            if user is not None:
                os.chown(directory, *user)
        self.run_dir = run_dir
        return run_dir, mem_dir

    def _mkdtemp(
        self,
        bases: list[str],
        user: guest_code.User | None,
        need_mb: int,
        prefix: str = "dsmip-guest-",
    ) -> Path:
        for base in bases:
            try:
                info = os.statvfs(base)
            except OSError:
                continue
            fits = info.f_bavail * info.f_frsize >= need_mb * 2**20
            if info.f_flag & os.ST_NOEXEC or not fits or not guest_code.reaches(Path(base), user):
                continue
            try:
                made = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
            except OSError:
                continue
            self._directories.append(made)
            return made
        raise LabError(
            f"no temporary directory with {need_mb} MB for the guest",
            hint=f"set TMPDIR to one that isn't mounted noexec; tried {', '.join(bases)}",
        )

    @staticmethod
    def _write_init(path: Path, text: str, user: guest_code.User | None) -> None:
        # 0500: the environment is in it, and nobody else has to read that.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(path, flags, 0o500), "w", encoding="utf-8") as file:
            file.write(text)
        if user is not None:
            os.chown(path, *user)

    def _spawn(self, run_dir: Path, mem_dir: Path, user: guest_code.User | None) -> GuestConsole:
        for name in ("out", "ctl", "from", "to"):
            os.mkfifo(run_dir / name, 0o600)
            # Opened for both ways, a FIFO never reports its end: the console does.
            self._fifos[name] = os.open(run_dir / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        start = self.start(run_dir, mem_dir, user)
        config = guest_keeper.KeeperConfig(
            argv=start.argv,
            env=start.env,
            parent_pid=os.getpid(),
            user=user,
            writable=[
                *(str(self.share), str(run_dir / self.machine.name), str(mem_dir)),
                *start.writable,
            ],
            groups=start.groups,
            fifos={name: str(run_dir / name) for name in self._fifos},
            remove=[] if self.keep else [str(path) for path in self._directories],
            remove_if_orphaned=[] if self.keep else [str(path) for path in self.orphans],
        )
        config_path = run_dir / "keeper.json"
        config_path.write_text(config.to_json(), encoding="utf-8")
        self._console = GuestConsole(config_path, self.console_log)
        return self._console

    # -- while it runs

    def _on_output(self, lines: OutputLines, console: GuestConsole) -> None:
        try:
            data = os.read(self._fifos["out"], 65536)
        except BlockingIOError:
            return
        console.heard()
        try:
            lines.feed(data)
        except Exception as error:  # on_line's own; run() raises it
            console.finish(error)
        else:
            if lines.status is not None:
                console.finish()

    def _on_heartbeat(self, console: GuestConsole) -> None:
        try:
            os.read(self._fifos["ctl"], 4096)
        except BlockingIOError:
            return
        console.heard()

    async def _wait_ready(self, console: GuestConsole, started: float, limit_s: float) -> None:
        await asyncio.wait([console.ready], timeout=max(0, started + limit_s - time.monotonic()))
        if not console.ready.done():
            raise self._error(f"the guest was not ready within {limit_s:g} s")
        try:
            console.ready.result()
        except GuestEnded as end:
            raise self._error(f"the guest didn't start: {end}") from None
        self.ready_after_s = time.monotonic() - started

    async def _wait_end(self, console: GuestConsole, started: float, deadline_s: float) -> None:
        console.heard()
        while not console.finished.done():
            now = time.monotonic()
            if now >= started + deadline_s:
                raise self._error(f"the command in the guest didn't end within {deadline_s:g} s")
            if now >= console.last_heard + self.silence_s:
                raise self._error(f"the guest hangs: no sign of life for {self.silence_s:g} s")
            wait_s = min(started + deadline_s, console.last_heard + self.silence_s) - now
            await asyncio.wait([console.finished], timeout=wait_s)
        try:
            console.finished.result()
        except GuestEnded as end:
            raise self._error(f"the guest died: {end}") from None

    def _error(self, message: str) -> GuestError:
        return GuestError(message, console_log=self.console_log)

    # -- end

    def _end(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.close()
        for descriptor in self._fifos.values():
            os.close(descriptor)
        self._fifos.clear()
        if not self.keep:
            for directory in self._directories:
                shutil.rmtree(directory, ignore_errors=True)
            self._directories.clear()


def find_uml() -> str:
    """Path of ``linux.uml``. Raises LabError when it isn't installed."""
    return guest_code.find_program("linux.uml", INSTALL_HINT)


class UmlGuest(Guest):
    """Debian's user-mode-linux: a kernel that is an ordinary program, ready in two seconds."""

    machine = UML

    def find_parts(self) -> None:
        find_uml()

    def start(self, run_dir: Path, mem_dir: Path, user: guest_code.User | None) -> Start:
        _copy_mount(run_dir / PLAIN_MOUNT)
        argv = [
            find_uml(),
            f"mem={self.mem_mb}M",
            f"uml_dir={run_dir}/uml",
            "umid=guest",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            f"init={run_dir}/init",
            "con=null",
            "con0=fd:0,fd:1",
            "ssl0=null,fd:{out}",
            "ssl1=null,fd:{ctl}",
            "ssl2=fd:{to},fd:{from}",
        ]
        return Start(argv, {"PATH": "/usr/bin:/bin", "TMPDIR": str(mem_dir), "HOME": str(mem_dir)})


def _copy_mount(target: Path) -> None:
    """mount(8) for init, without the set-uid bit. Raises LabError."""
    try:
        shutil.copyfile(guest_code.find_program("mount", "apt-get install mount"), target)
        target.chmod(0o755)
    except OSError as error:
        raise LabError(
            f"can't copy mount(8) for the guest: {error.strerror}", hint="is the disk full?"
        ) from error


def _own_tempdir() -> list[str]:
    """Where Python puts temporary files; empty if it found no place that can be written to."""
    try:
        return [tempfile.gettempdir()]
    except FileNotFoundError:
        return []


async def run_in_guest(
    argv: Sequence[str],
    *,
    share: Path,
    env: Mapping[str, str] | None = None,
    deadline_s: float,
    on_line: Callable[[str], None],
    console_log: Path,
    mem_mb: int = 1024,
    cwd: Path | str = "/",
    visible: Sequence[Path] = (),
    keep: bool = False,
    kind: type[Guest] = UmlGuest,
) -> int:
    """Run one command in a new guest of this kind; see :class:`Guest`. ``deadline_s`` is what the
    host's kernel would be given; it is multiplied by the guest's pace."""
    guest = kind(share=share, console_log=console_log, mem_mb=mem_mb, visible=visible, keep=keep)
    deadline_s *= guest.pace
    return await guest.run(argv, env=env, cwd=cwd, deadline_s=deadline_s, on_line=on_line)


def run_until_signal(work: Coroutine[Any, Any, int]) -> int:
    """``asyncio.run`` that also cleans up on SIGTERM, then exits with 143 (Ctrl-C: 130).

    For the main thread of a program. The exits are SystemExit, as a shell would report them.
    """
    ended_by: list[int] = []

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def end(number: int) -> None:
            if not ended_by:
                ended_by.append(number)
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if not ended_by:
            raise
        raise SystemExit(128 + ended_by[0]) from None


def run_in_guest_sync(
    argv: Sequence[str],
    *,
    share: Path,
    env: Mapping[str, str] | None = None,
    deadline_s: float,
    on_line: Callable[[str], None],
    console_log: Path,
    mem_mb: int = 1024,
    cwd: Path | str = "/",
    visible: Sequence[Path] = (),
    keep: bool = False,
    kind: type[Guest] = UmlGuest,
) -> int:
    """run_in_guest for programs without a loop: call it from the main thread."""
    return run_until_signal(
        run_in_guest(
            argv,
            share=share,
            env=env,
            deadline_s=deadline_s,
            on_line=on_line,
            console_log=console_log,
            mem_mb=mem_mb,
            cwd=cwd,
            visible=visible,
            keep=keep,
            kind=kind,
        )
    )
