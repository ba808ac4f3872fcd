"""Follows a charon by its events, over its restarts, and finds the SAs that it has forgotten, or
that the kernel has.

charon deletes an SA under the addresses by which it remembers it. What we have moved (RFC 5555
§5.1, without MOBIKE), and what a charon that was killed left behind, nobody else would delete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import IkeEvent, IkeSa, IkeUpdown
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.node.lost_sas import LOOKS_APART_S, LostSas

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
# An SA counts as forgotten when two looks, LOOKS_APART_S apart, have both seen it in the kernel
# first and then not in charon's list: in between, an IKE_SA may hand it over to its successor.
# charon keeps the inbound SA of a rekeyed CHILD_SA for so long (delete_rekeyed_delay).
REKEYED_LINGERS_S = 5.0


class CharonWatch:
    """Tells of ``events`` and of each time that charon is ``there`` (again); keeps
    :attr:`retired`.

    ``associations``: the SAs that the kernel has now; ``reqids``: those of them that are charon's
    for us. ``changed`` is called when :attr:`retired` changes. ``thorough``: look for forgotten SAs
    after every event, and not only after those by which many may have been forgotten. ``busy``: as
    of :class:`LostSas`.
    """

    def __init__(
        self,
        driver: ViciDriver,
        *,
        associations: Callable[[], Iterable[SecurityAssociation]],
        reqids: Collection[int],
        changed: Callable[[], None],
        events: Callable[[IkeEvent], None] = lambda _: None,
        there: Callable[[], None] = lambda: None,
        thorough: bool = False,
        busy: asyncio.Lock | None = None,
    ) -> None:
        self.retired: frozenset[int] = frozenset()
        """SPIs of SAs in the kernel that charon no longer knows."""
        self._driver = driver
        self._associations = associations
        self._reqids = frozenset(reqids)
        self._changed = changed
        self._events = events
        self._there = there
        self._thorough = thorough
        self._lost = LostSas(driver, associations, busy or asyncio.Lock())
        self._suspects: frozenset[int] = frozenset()
        self._due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._look())]

    async def stop(self) -> None:
        """Idempotent."""
        await self._lost.stop()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    def look(self) -> None:
        """See whether charon has forgotten any."""
        self._due.set()

    def vanished(self, associations: Iterable[SecurityAssociation]) -> None:
        """The kernel has these no more: see whether charon knows."""
        self._lost.vanished(associations)

    def forget(self, gone: Collection[int]) -> None:
        """charon has deleted the CHILD_SAs with these SPIs, as their IKE_SA is gone for certain:
        what the kernel still has of them needn't be suspected first."""
        self._suspects |= frozenset(gone)
        self.retired |= frozenset(gone)
        self._changed()

    async def _listen(self) -> None:
        missing = False
        while True:
            try:
                async with self._driver.events() as events:
                    if missing:
                        log.info("charon is back")
                    missing = False
                    self._due.set()
                    self._there()
                    async for event in events:
                        self._take(event)
            except IkeError as error:
                if not missing:
                    log.warning("charon: %s (%s)", error, error.hint)
                missing = True
            await asyncio.sleep(RECONNECT_S)

    def _take(self, event: IkeEvent) -> None:
        if self._thorough or (isinstance(event, IkeUpdown) and not event.up):
            self._due.set()
        self._lost.heard(event)
        self._events(event)

    async def _look(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            for pause in (LOOKS_APART_S, LOOKS_APART_S, REKEYED_LINGERS_S, LOOKS_APART_S):
                await asyncio.sleep(pause)
                try:
                    await self._compare()
                except IkeError as error:
                    # Silent is not forgetful: without a list nothing is forgotten.
                    log.debug("charon's list: %s", error)

    async def _compare(self) -> None:
        """The kernel first: what charon adds meanwhile isn't suspected."""
        live = frozenset(sa.spi for sa in self._associations() if sa.reqid in self._reqids)
        known = spis(await self._driver.list_sas())
        suspects = live - known
        retired, self._suspects = suspects & self._suspects, suspects
        if retired != self.retired:
            self.retired = retired
            self._changed()


def spis(ike_sas: Iterable[IkeSa]) -> frozenset[int]:
    """All SPIs of the CHILD_SAs, both directions."""
    return frozenset(
        spi for ike in ike_sas for child in ike.children for spi in (child.spi_in, child.spi_out)
    )


async def discard(driver: ViciDriver, reqids: Collection[int], *, timeout: float) -> None:
    """Delete the IKE_SAs with a CHILD_SA of ``reqids``, telling the peers.

    For a daemon that starts beside a charon that has SAs for it: their mirrors went with the last
    daemon, and new ones would begin their sequence numbers anew, which the peer takes for replays.
    Logs what fails; ``timeout`` (seconds) is what the peers get for their answers, at once.
    """

    async def terminate(name: str) -> None:
        try:
            await driver.terminate(name, timeout=timeout, force=True)
        except IkeError as error:
            log.warning("deleting the IKE_SA %s of before: %s", name, error)

    try:
        found = await driver.list_sas()
    except IkeError as error:
        log.info("no IKE_SA of before to delete: %s", error)
        return
    names = {ike.name for ike in found if any(child.reqid in reqids for child in ike.children)}
    if names:
        log.info("deleting the IKE_SAs of before: %s", ", ".join(sorted(names)))
    await asyncio.gather(*map(terminate, names))
