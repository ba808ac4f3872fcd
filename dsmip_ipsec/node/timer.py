"""One timer for a sans-IO engine: fires when the engine's next deadline has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """``next_deadline`` gives loop time or None; ``fire`` is called once it has passed.

    Call :meth:`rearm` after everything that may have changed the deadline.
    """

    def __init__(self, next_deadline: Callable[[], float | None], fire: Callable[[], None]) -> None:
        self._next_deadline = next_deadline
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None

    def rearm(self) -> None:
        self.cancel()
        deadline = self._next_deadline()
        if deadline is not None:
            self._handle = asyncio.get_running_loop().call_at(deadline, self._fire)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
