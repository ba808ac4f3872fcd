"""Following a target that changes: one attempt at a time, the newest target counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from dsmip_ipsec.errors import DsmipError

log = logging.getLogger(__name__)

# Before the next attempt, when one has failed.
RETRY_S = 2.0

Target = TypeVar("Target")


class Pursuit(Generic[Target]):
    """``reach`` is called with the newest target; it is cancelled when there is a newer one, and
    called again after RETRY_S when it raised DsmipError."""

    def __init__(self, reach: Callable[[Target], Awaitable[object]]) -> None:
        self._reach = reach
        self._target: Target | None = None
        self._newer = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def aim(self, target: Target) -> None:
        """Pursue ``target`` from now on."""
        self._target = target
        self._newer.set()
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Give up. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await self._newer.wait()
            self._newer.clear()
            target = self._target
            assert target is not None, "aim() sets it first"
            attempt = asyncio.ensure_future(self._attempt(target))
            newer = asyncio.ensure_future(self._newer.wait())
            try:
                await asyncio.wait({attempt, newer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (attempt, newer):
                    task.cancel()
                await asyncio.gather(attempt, newer, return_exceptions=True)

    async def _attempt(self, target: Target) -> None:
        while True:
            try:
                await self._reach(target)
            except DsmipError as error:
                log.warning("%s: %s", target, error)
                await asyncio.sleep(RETRY_S)
            else:
                return
