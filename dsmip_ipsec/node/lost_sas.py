"""SAs that charon believes to be installed while the kernel has them no more.

Somebody else deleted them (``ip xfrm state flush``), or charon couldn't put one back after it had
taken it away to move it. charon never notices, and its peer goes on sending into the void. So the
CHILD_SA is deleted, by charon and with a word to the peer (RFC 7296 §1.4.1); the mobile node then
establishes another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import ChildRekey, ChildSa, ChildUpdown, IkeEvent
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.node.background import Background

log = logging.getLogger(__name__)

# An SA is lost when two looks, this far apart, have both seen it in charon's list only.
LOOKS_APART_S = 0.7
# For the peer to acknowledge the deletion.
PEER_S = 5.0
# Connections to ask charon about one by one; for more, all are listed in one go.
FEW = 8

_Known = tuple[int, int]  # reqid, SPI


class LostSas:
    """To be told of all SAs that vanish from the kernel; most of them charon has deleted itself.

    ``associations``: the SAs that the kernel has now. ``busy`` is held while a CHILD_SA is
    deleted: others that change the IKE_SA hold it, too.
    """

    def __init__(
        self,
        driver: ViciDriver,
        associations: Callable[[], Iterable[SecurityAssociation]],
        busy: asyncio.Lock,
    ) -> None:
        self._driver = driver
        self._associations = associations
        self._busy = busy
        self._vanished: set[_Known] = set()
        self._connections: dict[int, str] = {}  # by reqid
        self._looking = False
        self._background = Background("SAs that the kernel has lost")

    def heard(self, event: IkeEvent) -> None:
        """charon's events tell which connection to ask about."""
        if isinstance(event, ChildUpdown) and event.up:
            self._connections[event.child.reqid] = event.ike.name
        elif isinstance(event, ChildRekey):
            self._connections[event.new.reqid] = event.ike.name

    def vanished(self, associations: Iterable[SecurityAssociation]) -> None:
        self._vanished |= {(sa.reqid, sa.spi) for sa in associations}
        if self._vanished and not self._looking:
            self._looking = True
            self._background.start(self._look())

    async def stop(self) -> None:
        """Idempotent."""
        await self._background.stop()

    async def _look(self) -> None:
        try:
            while self._vanished:
                suspects, self._vanished = self._vanished, set()
                await self._delete_missed(suspects)
        finally:
            self._looking = False

    async def _delete_missed(self, suspects: set[_Known]) -> None:
        try:
            await asyncio.sleep(LOOKS_APART_S)
            if not await self._still_missed(suspects):
                return
            await asyncio.sleep(LOOKS_APART_S)
            async with self._busy:
                for child in await self._still_missed(suspects):
                    await self._delete(child)
        except IkeError as error:  # without charon none of its SAs are missed
            log.debug("SAs that vanished: %s", error)

    async def _still_missed(self, suspects: set[_Known]) -> list[ChildSa]:
        """charon first: what it deletes meanwhile isn't missed."""
        asked: set[str | None] = {self._connections.get(reqid) for reqid, _ in suspects}
        if None in asked or len(asked) > FEW:
            asked = {None}
        found = [sa for name in asked for sa in await self._driver.list_sas(name)]
        there = {(sa.reqid, sa.spi) for sa in self._associations()}
        return [
            child
            for ike in found
            for child in ike.children
            if child.installed
            and ({(child.reqid, child.spi_in), (child.reqid, child.spi_out)} & suspects) - there
        ]

    async def _delete(self, child: ChildSa) -> None:
        log.warning(
            "the kernel has lost an SA of CHILD_SA %s (SPIs %08x and %08x, reqid %d): deleting it, "
            "for the mobile node to establish another",
            *(child.name, child.spi_in, child.spi_out, child.reqid),
        )
        try:
            await self._driver.terminate_one(child.uniqueid, child=True, timeout=PEER_S)
        except IkeError as error:
            log.warning("deleting CHILD_SA %s: %s", child.name, error)
