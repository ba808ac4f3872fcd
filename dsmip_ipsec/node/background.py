"""Work that a daemon does beside what it was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from dsmip_ipsec.errors import DsmipError

log = logging.getLogger(__name__)


class Background:
    """Tasks that nobody waits for: they are kept until they end, what fails is logged as being
    about ``what``, and :meth:`stop` ends them all."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        # The event loop's own reference to a task is a weak one.
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):  # told by _ended
                await task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # Anything but our own errors is a defect, and is worth its traceback.
        log.warning(
            "%s: %s", self._what, error, exc_info=None if isinstance(error, DsmipError) else error
        )
