"""Where a lab's server runs: on the host's own kernel, or in a guest.

A :class:`Place` runs one command and gives it a byte stream. Whatever else it is (a process, a
virtual machine) is its own affair; a new kind of guest needs no more than this to carry labs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ..errors import LabError
from .guest import Guest, prepare_share
from .guest_init import GUEST_SHARE
from .guest_kernel import Kernel, guest_kind
from .guest_stream import STREAM_VARIABLE

# A guest has a deadline; a person may play with a lab for a while.
SESSION_S = 7 * 86400.0
# How long a lab may take to go down by itself once its client is gone.
DOWN_S = 20.0


class Place(Protocol):
    """A kernel that runs one command for us. ``share``: a directory of the host's that the command
    finds at ``seen_at``."""

    share: Path
    seen_at: Path

    @property
    def pace(self) -> float:
        """How many times slower than bare hardware it may be; see pace.py."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        deadline_s: float,
        on_line: Callable[[str], None],
        stream: socket.socket | None = None,
    ) -> int:
        """Run ``argv`` to its end and return its status; ``on_line`` gets its output by lines.

        The command finds the other end of ``stream`` as ``$DSMIP_STREAM`` says: the path of a
        device, or ``fd:N``. However this ends, cancellation included, nothing is left running.
        Raises DsmipError.
        """


class HostPlace:
    """The host's own kernel: a process of ours. Needs root there."""

    def __init__(self, share: Path) -> None:
        self.pace = 1.0
        self.share = self.seen_at = share
        share.mkdir(mode=0o700, exist_ok=True)

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        deadline_s: float,
        on_line: Callable[[str], None],
        stream: socket.socket | None = None,
    ) -> int:
        """See :class:`Place`."""
        passed = [] if stream is None else [stream.fileno()]
        named = {} if stream is None else {STREAM_VARIABLE: f"fd:{stream.fileno()}"}
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **named, **(env or {})},
                pass_fds=passed,
                start_new_session=True,  # Ctrl-C in the terminal is for us, who end it in order
            )
        except OSError as error:
            raise LabError(
                f"the lab's server can't be started: {error.strerror}", hint="is the disk full?"
            ) from error
        if stream is not None:
            stream.close()  # it is the server's now: whoever dies, the other hears of it
        assert process.stdout is not None
        try:
            async with asyncio.timeout(deadline_s):
                async for line in process.stdout:
                    on_line(line.decode("utf-8", "replace").rstrip("\n"))
                return await process.wait()
        except TimeoutError:
            raise LabError(f"the lab's server didn't end within {deadline_s:g} s") from None
        finally:
            if process.returncode is None:
                await asyncio.shield(self._end(process))

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(DOWN_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class GuestPlace:
    """A guest of its own for each lab."""

    seen_at = Path(GUEST_SHARE)

    def __init__(
        self,
        kind: type[Guest],
        share: Path,
        console_log: Path,
        *,
        memory_mb: int,
        orphans: Sequence[Path],
    ) -> None:
        prepare_share(share)
        self.share = share
        self._guest = kind(share=share, console_log=console_log, mem_mb=memory_mb, orphans=orphans)

    @property
    def pace(self) -> float:
        """See :class:`Place`."""
        return self._guest.pace

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        deadline_s: float,
        on_line: Callable[[str], None],
        stream: socket.socket | None = None,
    ) -> int:
        """See :class:`Place`."""
        return await self._guest.run(
            argv, env=env, deadline_s=deadline_s, on_line=on_line, stream=stream
        )


def place_for(kernel: Kernel, work: Path, console_log: Path, *, memory_mb: int) -> Place:
    """The place for a kernel that was chosen, with its share below ``work``, and memory for the lab
    where it is a guest. Raises LabError."""
    if kernel == "host":
        return HostPlace(work / "share")
    return GuestPlace(
        guest_kind(kernel), work / "share", console_log, memory_mb=memory_mb, orphans=[work]
    )
