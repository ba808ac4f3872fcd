"""The guest's console: kernel and init speak there, pexpect listens, a log file keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import sys
import threading
import time
from pathlib import Path

import pexpect

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import guest_keeper
from dsmip_ipsec.lab.guest_init import FAILED_MARK, READY_MARK

KEEPER = Path(guest_keeper.__file__)
# How long the keeper may take to bury a guest before it is killed itself.
BURIAL_S = 8.0


# User-mode Linux's own words, when it tries what it can't do without.
_PTRACE = re.compile(rb"ptrace: (?:Operation not permitted|Permission denied)")
_NO_PTRACE = (
    "it may not trace processes here; allow ptrace(2) in the container's seccomp profile or the "
    "host's kernel.yama.ptrace_scope, or take --kernel qemu"
)


class GuestEnded(Exception):
    """The console ended, or said why it is about to."""


class GuestConsole:
    """Starts a keeper on a pseudo-terminal and follows what it and the guest print.

    ``ready`` and ``finished`` are futures of the running loop; both fail with GuestEnded when the
    guest dies. The reading is done in a thread: pexpect's own asyncio mode would tie the
    terminal to a transport that can't be closed in one step.
    """

    def __init__(self, config_path: Path, log_path: Path) -> None:
        """Raises LabError when the log can't be written or the keeper can't be started."""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self.last_heard = time.monotonic()
        self._run_dir = str(config_path.parent)
        try:
            self._log = log_path.open("wb")
        except OSError as error:
            raise LabError(
                f"can't write the guest's console log {log_path}: {error.strerror}",
                hint="give a file in a directory that you can write to",
            ) from error
        try:
            self._child: pexpect.spawn[bytes] = pexpect.spawn(
                os.path.realpath(sys.executable),
                ["-I", "-S", str(KEEPER), str(config_path)],
                timeout=None,
                logfile=None,
                echo=False,
                dimensions=(24, 200),
            )
        except (pexpect.ExceptionPexpect, OSError) as error:
            self._log.close()
            raise LabError(f"can't start the guest's keeper: {error}") from error
        self._child.logfile_read = self._log
        assert self._child.pid is not None
        # Some process of a dying guest may keep the terminal open, so watch the keeper as well.
        self._keeper = os.pidfd_open(self._child.pid)
        self._loop.add_reader(self._keeper, self._keeper_ended)
        self._thread = threading.Thread(target=self._listen, name="guest-console", daemon=True)
        self._thread.start()

    def heard(self) -> None:
        """Note a sign of life."""
        self.last_heard = time.monotonic()

    def finish(self, error: BaseException | None = None) -> None:
        """Settle ``finished`` (and ``ready``, should it be open); later calls change nothing."""
        for future in (self.ready, self.finished):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # seen: no complaint if nobody waits for it any more

    def _keeper_ended(self) -> None:
        self._loop.remove_reader(self._keeper)
        # The console, which knows more, goes first.
        self._loop.call_later(1.0, self.finish, GuestEnded("its keeper ended"))

    def _listen(self) -> None:
        """In the thread: wait for the marks, then for the end."""
        failed = re.escape(FAILED_MARK.encode()) + rb"([^\r\n]*)\r*\n"
        panic = rb"(Kernel panic - not syncing[^\r\n]*)\r*\n"
        keeper = rb"(guest keeper: cannot start the guest[^\r\n]*)\r*\n"
        ready = re.escape(READY_MARK.encode())
        try:
            found = self._child.expect([ready, failed, panic, keeper, pexpect.EOF, _PTRACE])
            if found == 0:
                self._loop.call_soon_threadsafe(self._set_ready)
                found = 1 + self._child.expect([panic, pexpect.EOF])
                why = ["", "kernel panic", "its kernel ended"][found]
            else:
                why = ["", "init can't set up ", "", "", "its kernel ended", _NO_PTRACE][found]
            match = self._child.match
            if isinstance(match, re.Match) and match.re.groups:
                why = why if why == "kernel panic" else why + match[1].decode(errors="replace")
        except Exception as error:  # the terminal broke: as good as the guest's end
            why = f"its console broke ({type(error).__name__})"
        # A loop that is closed by now is not interested.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.finish, GuestEnded(why))
        self._drain()

    def _drain(self) -> None:
        """Keep reading to the log: what follows a panic is what one wants to know."""
        with contextlib.suppress(Exception):  # a broken terminal ends the log, too
            self._child.expect([pexpect.EOF])

    def _set_ready(self) -> None:
        self.heard()
        if not self.ready.done():
            self.ready.set_result(None)

    def close(self) -> None:
        """End the guest and everything that belongs to it; blocks for some hundredths of a second.

        Not a coroutine on purpose: a second cancellation must not cut it short.
        """
        self._loop.remove_reader(self._keeper)
        for number, patience_s in ((signal.SIGTERM, BURIAL_S), (signal.SIGKILL, 2.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._keeper, number)
            if select.select([self._keeper], [], [], patience_s)[0]:
                break
        os.close(self._keeper)
        # Only found where the keeper was killed and the host has no PID namespaces for us.
        for straggler in stragglers(self._child.pid or 0, self._run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(straggler, signal.SIGKILL)
        self._thread.join(timeout=2)
        self._child.delayafterclose = 0.02
        self._child.close(force=True)
        self._log.close()


def stragglers(session: int, mark: str) -> list[int]:
    """Processes of ``session`` whose command line contains ``mark`` (the run's directory)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if int(fields[3]) == session and mark in command:
            found.append(int(entry.name))
    return found
