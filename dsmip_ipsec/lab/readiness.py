"""Waiting for a charon or daemon of a lab to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from dsmip_ipsec.errors import DsmipError, IkeError, LabError
from dsmip_ipsec.lab.pace import scaled
from dsmip_ipsec.node import control

T = TypeVar("T")

READY_S = 20.0
POLL_S = 0.02


async def until_answer(
    ask: Callable[[], Awaitable[T]], what: str, logs: Path, *, limit_s: float = READY_S
) -> T:
    """Ask until there is an answer. Raises LabError after ``limit_s`` (scaled) seconds."""
    last: DsmipError | None = None
    try:
        async with asyncio.timeout(scaled(limit_s)):
            while True:
                try:
                    return await ask()
                except (IkeError, control.ControlError) as error:
                    last = error
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise LabError(
            f"{what} isn't ready after {scaled(limit_s):g} s: {last}",
            hint=f"read its log in {logs}",
        ) from error
