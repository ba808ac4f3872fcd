"""Work in a daemon's background: kept, ended, and what fails is told."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.node.background import Background


async def fails(error: Exception) -> None:
    raise error


async def ended(background: Background) -> None:
    async with asyncio.timeout(5):
        while background._tasks:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("error", "traceback"),
    [(MobilityError("no answer", hint="wait"), False), (KeyError("defect"), True)],
)
async def test_what_fails_is_told_and_a_defect_with_its_traceback(
    error: Exception, traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    background = Background("the mobile node")
    background.start(fails(error))
    await ended(background)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage() == f"the mobile node: {error}"
    assert (told.exc_info is not None) == traceback


async def test_work_is_kept_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    background = Background("x")
    go_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done = []

    async def work() -> None:
        await go_on
        done.append(True)

    background.start(work())
    await asyncio.sleep(0)
    gc.collect()
    go_on.set_result(None)
    await ended(background)
    assert done
    assert not caplog.records


async def test_stop_ends_all_and_waits_for_them(caplog: pytest.LogCaptureFixture) -> None:
    background = Background("x")
    cleaned = []

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    for number in range(3):
        background.start(work(number))
    await asyncio.sleep(0)
    await background.stop()
    assert sorted(cleaned) == [0, 1, 2]
    await background.stop()
    assert not caplog.records
