"""The pump: packets between two descriptors and the engine, on asyncio."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from dsmip_ipsec.userspace.engine import Engine
from dsmip_ipsec.userspace.outcome import Drop

_log = logging.getLogger(__name__)
_MAX_PACKET: Final = 65535
_BURST: Final = 64
"""Packets read in a row before other tasks get their turn."""


class Pump:
    """Moves packets between ``inner`` (clear text: a TUN that the home addresses are routed to)
    and ``outer`` (the network: a TUN, or anything else that carries one IP packet a read).

    Both are non-blocking descriptors of the caller's, who also closes them. ``other`` gets what
    arrives from the network without being ESP's business (IKE, keepalives) or is dropped.
    ``lost`` counts packets that a full or broken descriptor didn't take.
    """

    def __init__(
        self,
        engine: Engine,
        inner: int,
        outer: int,
        *,
        other: Callable[[bytes, Drop], None] | None = None,
    ) -> None:
        self._engine = engine
        self._inner = inner
        self._outer = outer
        self._other = other
        self.lost = 0
        self.failed: OSError | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._inner, self._from_inner)
        loop.add_reader(self._outer, self._from_outer)

    def stop(self) -> None:
        """Let go of both descriptors; they stay open."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._inner)
        loop.remove_reader(self._outer)

    def _from_inner(self) -> None:
        for _ in range(_BURST):
            packet = self._read(self._inner)
            if packet is None:
                return
            result = self._engine.outbound(packet)
            if isinstance(result, Drop):
                _log.debug("outbound packet dropped: %s %s", result.reason.value, result.detail)
                continue
            for outer in result:
                self._write(self._outer, outer)

    def _from_outer(self) -> None:
        for _ in range(_BURST):
            packet = self._read(self._outer)
            if packet is None:
                return
            result = self._engine.inbound(packet)
            if not isinstance(result, Drop):
                self._write(self._inner, result)
                continue
            _log.debug("inbound packet dropped: %s %s", result.reason.value, result.detail)
            if self._other is not None:
                self._other(packet, result)

    def _read(self, descriptor: int) -> bytes | None:
        try:
            packet = os.read(descriptor, _MAX_PACKET)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            # A TUN whose interface is down or gone: reading on would spin.
            self._give_up(descriptor, error)
            return None
        if not packet:
            self._give_up(descriptor, OSError(0, "end of file"))
            return None
        return packet

    def _give_up(self, descriptor: int, error: OSError) -> None:
        self.failed = error
        _log.error("no more packets from descriptor %d: %s", descriptor, error.strerror)
        asyncio.get_running_loop().remove_reader(descriptor)

    def _write(self, descriptor: int, packet: bytes) -> None:
        try:
            os.write(descriptor, packet)
        except OSError:
            # Full, too big, or down: IP has no promise of delivery, and TUN no queue to wait for.
            self.lost += 1
