"""One charon process per node, without systemd.

Debian's charon-systemd runs in the foreground and writes no pid file; its VICI socket, its logs
and its configuration are all in the node's directory. So any number of them share a file system.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike.errors import CharonDiedError, IkeTimeoutError
from dsmip_ipsec.ike.render import NodeFiles, write_private
from dsmip_ipsec.ike.vici_driver import ViciDriver

_POLL_INTERVAL = 0.02
_PR_SET_PDEATHSIG = 1
_LOG_TAIL = 5


def program() -> str:
    """The path of charon-systemd. :raises IkeError: it isn't installed."""
    found = shutil.which("charon-systemd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise IkeError("charon-systemd is not installed", hint="apt-get install charon-systemd")
    return found


def environment(files: NodeFiles) -> dict[str, str]:
    """The environment for the node's charon."""
    # NOTIFY_SOCKET is our own service manager's, not charon's.
    inherited = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
    return {
        **inherited,
        "STRONGSWAN_CONF": str(files.strongswan_conf),
        "SWANCTL_DIR": str(files.directory),
    }


def prepare(files: NodeFiles) -> None:
    """Make what must stand before charon starts: a clean socket path and, where keys are
    exported, the key log with mode 0600 (charon keeps the mode of a file that exists).

    :raises IkeError: the directory can't be written.
    """
    try:
        files.vici_socket.unlink(missing_ok=True)
    except OSError as error:
        raise IkeError(f"can't remove the stale {files.vici_socket}: {error.strerror}") from error
    if files.key_log is not None:
        write_private(files.key_log, b"")


class Charon:
    """The charon of one node.

    :param files: its rendered files.
    :param prefix: a command that executes its arguments elsewhere, e.g.
        ``["ip", "netns", "exec", NAME]``. It has to exec, not fork: signals go to its pid.
    """

    def __init__(self, files: NodeFiles, prefix: Sequence[str] = ()) -> None:
        self.files = files
        self.driver = ViciDriver(files.vici_socket)
        self._prefix = tuple(prefix)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    @property
    def output(self) -> Path:
        """What charon writes to its standard output and error, before its log is open."""
        return self.files.directory / "charon.out"

    async def start(self) -> None:
        """Start the process; it isn't ready yet. :raises IkeError: it can't be started."""
        if self.pid is not None:
            raise IkeError(f"charon of {self.files.node} runs already", hint="stop it first")
        prepare(self.files)
        # Looked up before the fork: between fork and exec nothing may be imported or loaded.
        prctl = ctypes.CDLL(None, use_errno=True).prctl

        def die_with_parent() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        try:
            with self.output.open("wb") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._prefix,
                    program(),
                    env=environment(self.files),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            raise IkeError(
                f"charon of {self.files.node} can't be started: {error.strerror}",
                hint="check the command prefix and that charon-systemd is installed",
            ) from error

    async def wait_ready(self, timeout: float = 20.0) -> None:
        """Until charon answers on its VICI socket.

        :raises CharonDiedError: it ended instead. :raises IkeTimeoutError: not in time.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self.check()
                    if self.files.vici_socket.exists():
                        try:
                            await self.driver.version()
                        except CharonDiedError:
                            pass  # bound, but not listening yet
                        else:
                            return
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError as error:
            raise IkeTimeoutError(
                f"charon of {self.files.node} is not ready after {timeout:g} s",
                hint=f"read {self.files.log_file} and {self.output}",
            ) from error

    def check(self) -> None:
        """:raises CharonDiedError: charon has ended, or was never started."""
        if self._process is None:
            raise CharonDiedError(f"charon of {self.files.node} was not started", hint="start it")
        status = self._process.returncode
        if status is not None:
            raise self._died(status)

    async def wait_died(self) -> CharonDiedError:
        """Wait until charon ends, for whatever reason, and return the error that says so."""
        if self._process is None:
            return CharonDiedError(f"charon of {self.files.node} was not started", hint="start it")
        return self._died(await self._process.wait())

    def _died(self, status: int) -> CharonDiedError:
        how = (
            f"was ended by {signal.Signals(-status).name}"
            if -status in {s.value for s in signal.Signals}
            else f"ended with status {status}"
        )
        tail = self._tail()
        return CharonDiedError(
            f"charon of {self.files.node} {how}" + (f": {tail}" if tail else ""),
            hint=f"read its log {self.files.log_file}",
        )

    def _tail(self) -> str:
        for path in (self.files.log_file, self.output):
            try:
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - 4096))
                    lines = file.read().decode("utf-8", "replace").splitlines()
            except OSError:
                continue
            if lines:
                return " / ".join(line.strip() for line in lines[-_LOG_TAIL:])
        return ""

    async def stop(self, timeout: float = 5.0) -> None:
        """End charon: SIGTERM, on which it deletes its SAs, then SIGKILL. Idempotent."""
        process = self._process
        if process is not None and process.returncode is None:
            try:
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(timeout):
                    await process.wait()
            except ProcessLookupError:
                await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self.files.vici_socket.unlink(missing_ok=True)
