"""Several things at once, but not all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def in_turns(work: Iterable[Coroutine[Any, Any, None]], at_once: int) -> None:
    """Do all of ``work``, no more than ``at_once`` at a time, begun in order.

    The first failure ends the rest, and is raised as it is.
    """
    turns = asyncio.Semaphore(at_once)

    async def one(each: Coroutine[Any, Any, None]) -> None:
        try:
            async with turns:
                await each
        finally:
            each.close()  # of one that never had its turn

    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(one(each))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
