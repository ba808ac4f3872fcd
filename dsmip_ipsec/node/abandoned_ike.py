"""At the home agent: IKE_SAs that a mobile node has left behind without a word.

Without MOBIKE an IKE_SA keeps its addresses. A mobile node that changes the family makes a new one,
and deletes the old one if it can, but the network of before may be gone; likewise when it returns
home. Until DPD missed the node, such an IKE_SA would keep SAs in the kernel. charon's uniqueness
(``unique = replace``) is no help where a new IKE_SA is made before the old one is broken: it
deletes the old one once the peer is authenticated, before the new one has a signalling CHILD_SA.

Nothing here depends on what a peer says: an IKE_SA is superseded only by one of the same
connection, hence of the same authenticated peer (RFC 4301 §4.4.3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import ChildUpdown, IkeEvent, IkeRekey, IkeSa, IkeUpdown
from dsmip_ipsec.node.background import Background

log = logging.getLogger(__name__)

# For the mobile node to delete the IKE_SA by itself: its DELETE comes within a round trip or two.
GRACE_S = 1.0
# For the mobile node to acknowledge the deletion, should it hear of it.
PEER_S = 1.0


class AbandonedIkeSas:
    """Deletes them. ``pairs``: for each mobile node the reqids of the CHILD_SAs that it needs."""

    def __init__(self, driver: ViciDriver, pairs: Iterable[Collection[int]]) -> None:
        self._driver = driver
        self._needs = {reqid: frozenset(pair) for pair in pairs for reqid in pair}
        self._background = Background("IKE_SAs left behind")
        # Numbers of the IKE_SAs by connection, from the events: to ask charon each time would cost
        # it a look at those of all mobile nodes.
        self._known: dict[str, set[int]] = {}

    def charon_is_there(self) -> None:
        """charon was connected to; a new one numbers its IKE_SAs from 1."""
        self._known.clear()

    def heard(self, event: IkeEvent) -> None:
        """To be told of all of charon's events."""
        if isinstance(event, IkeRekey):
            known = self._known.setdefault(event.new.name, set())
            known.discard(event.old.uniqueid)
            known.add(event.new.uniqueid)
        elif isinstance(event, IkeUpdown) and not event.up:
            self._known.get(event.ike.name, set()).discard(event.ike.uniqueid)
        elif isinstance(event, IkeUpdown | ChildUpdown) and event.up:
            known = self._known.setdefault(event.ike.name, set())
            known.add(event.ike.uniqueid)
            older = frozenset(known - {event.ike.uniqueid})
            if older and isinstance(event, ChildUpdown) and event.child.reqid in self._needs:
                needs = self._needs[event.child.reqid]
                self._background.start(self._superseded(event.ike.name, older, needs))

    def returned_home(self, reqids: Collection[int]) -> None:
        """The mobile node with CHILD_SAs of ``reqids`` is on its home link: the path of an IKE_SA
        that it has left is no more."""
        self._background.start(self._left_by(reqids))

    async def stop(self) -> None:
        """Idempotent."""
        await self._background.stop()

    async def _superseded(self, name: str, older: frozenset[int], needs: frozenset[int]) -> None:
        await asyncio.sleep(GRACE_S)
        found = await self._driver.list_sas(name)
        if any(sa.uniqueid not in older and _has(sa, needs) for sa in found):
            await self._delete(older & _established(found), name)

    async def _left_by(self, reqids: Collection[int]) -> None:
        def theirs(found: Iterable[IkeSa]) -> frozenset[int]:
            return _established(
                sa for sa in found if any(child.reqid in reqids for child in sa.children)
            )

        # All connections are looked at: which one is the node's is charon's knowledge.
        left = theirs(await self._driver.list_sas())
        if left:
            await asyncio.sleep(GRACE_S)
            await self._delete(left & theirs(await self._driver.list_sas()), "a node at home")

    async def _delete(self, uniqueids: Iterable[int], name: str) -> None:
        for uniqueid in sorted(uniqueids):
            log.info("deleting IKE_SA #%d, which %s has left behind", uniqueid, name)
            with contextlib.suppress(IkeError):  # gone by itself
                await self._driver.terminate_one(uniqueid, timeout=PEER_S)


def _established(found: Iterable[IkeSa]) -> frozenset[int]:
    return frozenset(sa.uniqueid for sa in found if sa.established)


def _has(sa: IkeSa, needs: frozenset[int]) -> bool:
    return sa.established and needs <= {child.reqid for child in sa.children if child.installed}
