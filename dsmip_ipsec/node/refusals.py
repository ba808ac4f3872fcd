"""The home agent's record of whom its charon refused: for its log and its status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike.refusals import Refusal, refusals
from dsmip_ipsec.node.charon_watch import RECONNECT_S

log = logging.getLogger(__name__)

KEPT = 50
# A peer that tries on and on gets a line this often, whoever it says to be.
LINES_APART_S = 1.0


class Refusals:
    """Listens to the charon at ``socket``, over its restarts. Keeps the newest :data:`KEPT`."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._newest: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None
        self._next_line = 0.0
        self._unsaid = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def describe(self) -> list[dict[str, Any]]:
        """The newest ones, oldest first."""
        return list(self._newest)

    async def _listen(self) -> None:
        while True:
            # That charon is missing, CharonWatch says.
            with contextlib.suppress(IkeError):
                async with refusals(self._socket) as found:
                    async for refusal in found:
                        self._take(refusal)
            await asyncio.sleep(RECONNECT_S)

    def _take(self, refusal: Refusal) -> None:
        source = "" if refusal.source is None else str(refusal.source)
        self._newest.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "reason": refusal.reason.value,
                "connection": refusal.connection,
                "identity": refusal.identity,
                "source": source,
                "message": refusal.message,
            }
        )
        now = asyncio.get_running_loop().time()
        if now < self._next_line:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} before it)" if self._unsaid else ""
        self._next_line, self._unsaid = now + LINES_APART_S, 0
        who = refusal.connection or refusal.identity or "a peer"
        log.warning("refused %s from %s: %s%s", who, source or "?", refusal.message, more)
