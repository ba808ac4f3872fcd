"""The processes of a lab: started in their namespaces, watched, and ended with it.

Each stays in the foreground of a session of its own, dies with the lab (PR_SET_PDEATHSIG), writes
to a log file, and is written down in the run's journal. One that ends on its own ends the lab, with
the name, how it ended and what it last said.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ..errors import LabError
from . import netns
from .cleanup import Run
from .nursery import Nursery, renice
from .pace import scaled

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_LAST_LINES = 5

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class LabProcess:
    """A process of the lab. ``ended`` is done, with the wait status as :class:`subprocess.Popen`
    gives it (negative: a signal's number), when it has ended for whatever reason."""

    name: str
    pid: int
    log: Path
    reap: Callable[[], int] = field(repr=False)
    pidfd: int = field(repr=False)
    ended: asyncio.Future[int] = field(repr=False)
    stopping: bool = False
    may_end: bool = False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def last_lines(self, count: int = _LAST_LINES) -> str:
        """The log's last lines."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
                text = stream.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-count:])


class Processes:
    """Supervisor of a lab's processes. Use it as an asynchronous context manager: at the end all
    are stopped, the last started first.

    It must be used in the main thread, or one that lives as long as the lab: a child's
    PR_SET_PDEATHSIG is about the thread that started it (prctl(2)).
    """

    def __init__(self, run: Run, nursery: Nursery | None = None) -> None:
        self._run = run
        self._nursery = nursery
        self._processes: dict[str, LabProcess] = {}
        self._failure: asyncio.Future[LabError] | None = None

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop_all()

    def __getitem__(self, name: str) -> LabProcess:
        return self._processes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._processes

    @property
    def failed(self) -> asyncio.Future[LabError]:
        """Done, with the error, as soon as a process ended that shouldn't have."""
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure

    def check(self) -> None:
        """Raise the error of the first process that ended unexpectedly.

        :raises LabError: there is one.
        """
        if self.failed.done():
            raise self.failed.result()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``, but no longer than until a process fails; then it's cancelled.

        :returns: the result of ``work``.
        :raises LabError: a process ended unexpectedly.
        """
        task = asyncio.ensure_future(work)
        try:
            waiting: set[asyncio.Future[Any]] = {task, self.failed}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
            return await task
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        namespace: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        may_end: bool = False,
        nice: int = 0,
    ) -> LabProcess:
        """Start ``argv`` in the network namespace ``namespace`` (ours when None).

        ``log``: file that standard output and error are appended to (made 0600). ``environment``:
        the whole environment (ours when None). ``may_end``: it isn't a failure when it ends with
        status 0. ``nice``: added to our own nice value.

        :raises LabError: no such namespace or program, or the name is taken.
        """
        with self._descriptors(name, log, namespace) as (output, descriptor), ExitStack() as stack:
            command = _dying_with_us(name, argv)
            try:
                # From within the namespace rather than by a setns in the child: code of ours that
                # runs there makes a fork of what could be a vfork. In a guest, that is a fault for
                # each page that Python touches, more than all of charon's.
                if descriptor is not None:
                    stack.enter_context(netns.visit(descriptor))
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=None if environment is None else dict(environment),
                    cwd=cwd,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise LabError(
                    f"'{name}' can't be started ({argv[0]}): {reason}",
                    hint="`dsmip-ipsec doctor` says which programs are missing",
                ) from None
            if nice:
                renice(nice, popen.pid)
        return self._watch(name, popen.pid, popen.wait, log, may_end)

    def start_module(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        namespace: str | None = None,
        nice: int = 0,
    ) -> LabProcess:
        """Start ``main(arguments)`` of one of our modules: by the nursery where there is one, else
        as ``python -m MODULE``. The rest is as in :meth:`start`."""
        nursery = self._nursery
        if nursery is None:
            argv = [sys.executable, "-m", module, *arguments]
            return self.start(name, argv, log=log, namespace=namespace, nice=nice)
        with self._descriptors(name, log, namespace) as (output, descriptor):
            pid = nursery.fork(module, arguments, log=output, namespace=descriptor, nice=nice)
        return self._watch(name, pid, partial(nursery.wait, pid), log, may_end=False)

    def learn(self, name: str, module: str) -> None:
        """The process ``name`` was started with ``module`` and is ready: further ones of that
        module may be so sooner. Raises LabError."""
        if self._nursery is not None:
            self._nursery.learn(module, self._processes[name].pid)

    @contextmanager
    def _descriptors(
        self, name: str, log: Path, namespace: str | None
    ) -> Iterator[tuple[int, int | None]]:
        """Open files of a new process: its log, and its network namespace."""
        running = self._processes.get(name)
        if running is not None and not running.ended.done():
            raise LabError(f"a process '{name}' runs already", hint="stop it first")
        with ExitStack() as stack:
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise LabError(
                    f"'{name}' can't be started: no log {log}: {error.strerror}",
                    hint="check that its directory is there and has room",
                ) from None
            stack.callback(os.close, output)
            descriptor = None
            if namespace is not None:
                descriptor = stack.enter_context(netns.descriptors([namespace]))[namespace]
            yield output, descriptor

    def _watch(
        self, name: str, pid: int, reap: Callable[[], int], log: Path, may_end: bool
    ) -> LabProcess:
        loop = asyncio.get_running_loop()
        _ = self.failed  # made here, where a loop runs, for the watcher
        pidfd = os.pidfd_open(pid)
        self._run.add_process(pid, name)
        process = LabProcess(name, pid, log, reap, pidfd, loop.create_future(), may_end=may_end)
        self._processes[name] = process
        loop.add_reader(pidfd, self._ended, process)
        return process

    def _ended(self, process: LabProcess) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        os.close(process.pidfd)
        # What it started and left behind goes with it. Before it's reaped, because until then its
        # number, which is the group's, can't be anyone else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            status = process.reap()  # it has ended: this doesn't wait
        except LabError:
            status = -signal.SIGKILL  # the nursery was killed, and it died with that
        process.ended.set_result(status)
        if process.stopping or (process.may_end and status == 0) or self.failed.done():
            return
        self.failed.set_result(
            LabError(
                f"'{process.name}' {_how(status)}"
                + (f"; it last said:\n{last}" if (last := process.last_lines()) else ""),
                hint=f"read {process.log}",
            )
        )

    async def wait_ready(
        self, name: str, *, line: str = "ready", deadline_s: float = 10.0
    ) -> LabProcess:
        """Wait until the process has written ``line`` to its log.

        :raises LabError: it ended, or hasn't in ``deadline_s`` (scaled) seconds.
        """
        deadline_s = scaled(deadline_s)
        process = self._processes[name]
        deadline = time.monotonic() + deadline_s
        while line not in process.last_lines(100).splitlines():
            self.check()
            if process.ended.done() or time.monotonic() > deadline:
                raise LabError(
                    f"'{name}' isn't ready after {deadline_s:g} s", hint=f"read {process.log}"
                )
            await asyncio.wait({process.ended}, timeout=0.01)
        return process

    async def stop(
        self,
        name: str,
        *,
        grace_s: float = 3.0,
        kill_s: float = 5.0,
        first: signal.Signals = signal.SIGTERM,
    ) -> int:
        """Stop a process: SIGTERM (or ``first``), after ``grace_s`` seconds SIGKILL.

        :returns: its wait status.
        :raises LabError: it is still there ``kill_s`` seconds later.
        """
        process = self._processes[name]
        process.stopping = True
        process.signal(first)
        await asyncio.wait({process.ended}, timeout=scaled(grace_s))
        process.signal(signal.SIGKILL)
        await asyncio.wait({process.ended}, timeout=scaled(kill_s))
        if not process.ended.done():
            raise LabError(f"'{name}' ({process.pid}) survives SIGKILL", hint="see `ps`")
        return process.ended.result()

    async def stop_all(self, *, grace_s: float = 3.0) -> None:
        """Stop all, the last started first.

        :raises LabError: the first that couldn't be stopped, after all were tried.
        """
        failures: list[LabError] = []
        for process in reversed(list(self._processes.values())):
            if not process.ended.done():
                try:
                    await self.stop(process.name, grace_s=grace_s)
                except LabError as error:
                    failures.append(error)
        if failures:
            raise failures[0]


def _dying_with_us(name: str, argv: Sequence[str]) -> list[str]:
    """``argv``, to be run by the calling thread and to die with it (util-linux' setpriv asks for
    that, and becomes the program). Raises LabError when one of the two isn't there."""
    paths = []
    for program in ("setpriv", argv[0]):
        path = shutil.which(program)
        if path is None:
            raise LabError(
                f"'{name}' can't be started: there is no program '{program}'",
                hint="`dsmip-ipsec doctor` says which programs are missing",
            )
        paths.append(path)
    setpriv, program = paths
    return [setpriv, "--pdeathsig", "KILL", "--", program, *argv[1:]]


def in_child(parent: int, namespace: int | None, *, terminal: bool = False) -> Callable[[], None]:
    """What a child of ``parent`` does between fork and exec: enter the namespace, and ask to die
    with us. ``terminal``: its standard input becomes its session's terminal."""

    def prepare() -> None:
        if namespace is not None:
            netns.enter_descriptor(namespace)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if os.getppid() != parent:  # the lab died before the prctl
            os._exit(1)

    return prepare


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
