"""Runs a daemon until a signal or a fatal error ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from pathlib import Path
from typing import Protocol

from dsmip_ipsec.node.config import HomeAgentConfig, MobileNodeConfig, load
from dsmip_ipsec.node.home_agent import HomeAgentDaemon
from dsmip_ipsec.node.mobile_node import MobileNodeDaemon

log = logging.getLogger(__name__)


class Daemon(Protocol):
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def failed(self) -> None: ...


async def serve(daemon: Daemon) -> None:
    """Start ``daemon``, wait for SIGTERM or SIGINT, stop it.

    Raises the DsmipError that kept it from starting, or that ended it.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await daemon.start()
    # What stands now stays: collections needn't go through it again. In the middle of a handover
    # of many mobile nodes, half of the time went to that.
    gc.freeze()
    log.info("ready")
    waiting = asyncio.create_task(ended.wait())
    failing = asyncio.create_task(daemon.failed())
    try:
        done, _ = await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing in done:
            failing.result()
    finally:
        waiting.cancel()
        failing.cancel()
        await daemon.stop()


def run_mobile_node(config: Path) -> None:
    asyncio.run(serve(MobileNodeDaemon(load(config, MobileNodeConfig))))


def run_home_agent(config: Path) -> None:
    asyncio.run(serve(HomeAgentDaemon(load(config, HomeAgentConfig))))
