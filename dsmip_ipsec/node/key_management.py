"""A mobile node's IKE_SA over moves and losses: the mobility modes of RFC 5555 §5.1.

- MOBIKE: charon moves the IKE_SA and its SAs by itself; we wait for it.
- K bit: the IKE_SA stays. After the acknowledgement an exchange from the new care-of address makes
  the home agent's charon follow to it and to the NAT's port (§5.1: "an empty informational
  message"; VICI offers none, so the IKE_SA is rekeyed).
- Renegotiation, where either end clears the K bit, and whenever IPv6 is involved: a new IKE_SA from
  the new care-of address, make before break; the old one is deleted when the new one stands.

In the last two the data SAs are moved by us when the binding changes, before IKE has followed.
What charon loses (a dead peer, a restart at either end) is established anew, again and again until
it succeeds or isn't wanted any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ike.other_children import PREFIX_DISCOVERY, RETURN_ROUTABILITY
from dsmip_ipsec.ike.vici_driver import SIGNALLING_TUNNEL, ViciDriver
from dsmip_ipsec.ike.vici_types import ChildUpdown, IkeEvent, IkeUpdown
from dsmip_ipsec.ipsec.model import Address, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering
from dsmip_ipsec.node.charon_watch import CharonWatch, discard, spis
from dsmip_ipsec.node.config import IkeSection

log = logging.getLogger(__name__)

# For charon to drop an IKE_SA; the peer isn't waited for longer.
STOP_TIMEOUT_S = 1.0
# For a DELETE that most probably has no way to the peer.
UNHEARD_S = 0.1
# Attempts to establish anew: first after one, at last this far apart.
RETRY_FIRST_S, RETRY_LAST_S = 0.2, 5.0
# charon refuses to rekey an IKE_SA while one of its CHILD_SAs is being rekeyed.
BUSY_S = 0.25


class KeyManagement:
    """The IKE_SA of one mobile node. ``restored`` is awaited after it was established anew."""

    def __init__(
        self,
        ike: IkeSection,
        peering: Peering,
        *,
        associations: Callable[[], Iterable[SecurityAssociation]],
        changed: Callable[[], None],
        restored: Callable[[], Awaitable[None]],
    ) -> None:
        self._ike = ike
        self._peering = peering
        self._restored = restored
        self._driver = ViciDriver(ike.vici_socket)
        self._reqids = peering.reqids.negotiated
        self._also = tuple(
            name
            for name, reqid in (
                (PREFIX_DISCOVERY, peering.reqids.prefix_discovery),
                (RETURN_ROUTABILITY, peering.reqids.return_routability),
            )
            if reqid
        )
        self._busy = asyncio.Lock()
        self._watch = CharonWatch(
            self._driver,
            associations=associations,
            reqids=self._reqids,
            changed=changed,
            events=self._event,
            there=self._check,
            thorough=True,
            busy=self._busy,
        )
        self._connection = ike.connection or ike.ipv6_connection  # the IKE_SA's
        self._next = self._connection  # the one to establish it by
        self._wanted = False
        self._restoring: asyncio.Task[None] | None = None

    @property
    def retired(self) -> frozenset[int]:
        """SPIs of SAs that charon has forgotten."""
        return self._watch.retired

    def start(self) -> None:
        self._watch.start()

    def look(self) -> None:
        """As :meth:`CharonWatch.look`."""
        self._watch.look()

    def vanished(self, associations: Iterable[SecurityAssociation]) -> None:
        """As :meth:`CharonWatch.vanished`."""
        self._watch.vanished(associations)

    async def establish(self, care_of_address: Address) -> None:
        """The IKE_SA and its CHILD_SAs, afresh: what an earlier daemon left is deleted first.
        It goes to the home agent's address of ``care_of_address``'s family.

        Raises IkeError.
        """
        self._prefer(care_of_address)
        async with self._busy:
            await discard(self._driver, self._reqids, timeout=STOP_TIMEOUT_S)
            await self._establish()
            self._wanted = True

    async def cross_to_ipv4(self, care_of_address: Address) -> None:
        """With MOBIKE, to a home agent behind a NAT, once the route to it is IPv4's: a new IKE_SA
        takes the place of one that runs over IPv6. Nothing where MOBIKE can do it by itself.

        The home agent announces the IPv4 address that it has itself (RFC 4555 §3.4), which nobody
        outside can reach, so charon finds no path. Break before make: the old IKE_SA has no route
        left, and charon would add to it what it is to establish. Raises IkeError.
        """
        mobike = self._ike.mobility_mode is MobilityMode.MOBIKE
        if not (mobike and self._peering.home_agent_behind_nat and care_of_address.version == 4):
            return
        async with self._busy:
            old = await self._driver.ike_sa(self._connection)
            if old is None or old.remote_host.version == 4:
                return
            self._prefer(care_of_address)
            log.info("a new IKE_SA over IPv4: MOBIKE can't reach a home agent behind a NAT")
            with contextlib.suppress(IkeError):  # gone by itself
                await self._driver.terminate_one(old.uniqueid, timeout=UNHEARD_S)
            await self._establish()

    async def follow(self, care_of_address: Address, *, key_mobility: bool) -> None:
        """After the binding acknowledgement: bring the IKE_SA to the new care-of address, of either
        family.

        ``key_mobility``: the K bit of the acknowledgement. Returns when exchanges work again.
        Raises IkeError.
        """
        mobike = self._ike.mobility_mode is MobilityMode.MOBIKE
        if not mobike or self._ike.connection_from(care_of_address):
            self._prefer(care_of_address)
        async with self._busy:
            if mobike:
                await self._follow_mobike(care_of_address)
            elif self._next != self._connection:
                await self._change_family()
            elif key_mobility and care_of_address.version == 4:
                await self._rekey()
            else:
                await self._renegotiate()

    async def terminate(self, *, force: bool = False) -> None:
        """Delete the IKE_SA with all its SAs; it isn't established anew. ``force``: don't wait for
        the peer. Raises IkeError."""
        await self._give_up()
        timeout = STOP_TIMEOUT_S if force else self._ike.timeout_s
        await self._driver.terminate(self._connection, timeout=timeout, force=force)

    async def stop(self) -> None:
        """Idempotent; leaves the IKE_SA as it is."""
        await self._give_up()
        await self._watch.stop()

    # Moving -------------------------------------------------------------------------------------

    async def _follow_mobike(self, care_of_address: Address) -> None:
        """charon's own rekeying of a transport mode CHILD_SA fails behind a NAT
        (docs/strongswan-notes.md), so it is replaced while there is time. Over IPv6 it is the other
        way round: the tunnel mode SAs now end where their mirrors do, at the home agent's IPv6
        address, and with the same SPI there can be only one of them."""
        sa = await self._driver.wait_moved(
            self._connection, local=care_of_address, timeout=self._ike.timeout_s
        )
        mirrored = sa.child(SIGNALLING_TUNNEL) is not None
        unfit = mirrored if care_of_address.version == 6 else not mirrored
        if unfit and (sa.nat or care_of_address.version == 6):
            await self._driver.renew_signalling(
                self._connection, also=self._also, timeout=self._ike.timeout_s
            )

    async def _change_family(self) -> None:
        """Without MOBIKE an IKE_SA keeps the home agent's address: a new one, make before break."""
        old = self._connection
        left = spis(await self._driver.list_sas(old))
        await self._establish()
        with contextlib.suppress(IkeError):  # of a family that may be gone
            await self._driver.terminate(old, timeout=STOP_TIMEOUT_S, force=True)
            self._watch.forget(left)

    async def _renegotiate(self) -> None:
        """A new IKE_SA from the new care-of address.

        charon begins the first one as if from where the old one was. Over IPv6, where no NAT is
        pretended, the home agent sees a NAT then, and refuses transport mode for the signalling
        CHILD_SA. That IKE_SA knows its place, though, and its own successor begins there.
        """
        left = spis(await self._driver.list_sas(self._connection))
        for _ in range(2):
            await self._driver.reauthenticate(self._connection, timeout=self._ike.timeout_s)
            if await self._complete():
                break
        await self._establish()  # adds what the last one came without
        # What was moved charon doesn't find under the old address when it deletes it.
        self._watch.forget(left - spis(await self._driver.list_sas(self._connection)))

    async def _rekey(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._ike.timeout_s
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                await self._driver.rekey(self._connection, timeout=max(left, BUSY_S))
            except IkeError as error:
                if "rekeying failed" not in error.message or left < BUSY_S:
                    raise
                await asyncio.sleep(BUSY_S)
            else:
                return

    # Losing and finding ---------------------------------------------------------------------------

    def _prefer(self, care_of_address: Address) -> None:
        connection = self._ike.connection_from(care_of_address)
        if not connection:
            key = "connection" if care_of_address.version == 4 else "ipv6_connection"
            raise IkeError(
                f"there is no connection for IKE over IPv{care_of_address.version}",
                hint=f"name one in the daemon's configuration: ike.{key}",
            )
        self._next = connection

    async def _establish(self) -> None:
        self._connection = self._next
        await self._driver.establish(
            self._connection,
            data=self._peering.protect_data,
            also=self._also,
            timeout=self._ike.timeout_s,
        )

    def _event(self, event: IkeEvent) -> None:
        if isinstance(event, IkeUpdown | ChildUpdown) and not event.up:
            self._check()

    def _check(self) -> None:
        """See in the background whether all is up; what isn't is established."""
        if self._wanted and (self._restoring is None or self._restoring.done()):
            self._restoring = asyncio.create_task(self._restore())

    async def _restore(self) -> None:
        pause = RETRY_FIRST_S
        while self._wanted:
            async with self._busy:
                try:
                    if await self._complete():
                        return
                    await self._establish()
                    break
                except IkeError as error:
                    log.warning("IKE_SA %s is lost: %s", self._connection, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_LAST_S)
        if self._wanted:
            log.info("IKE_SA %s is established anew", self._connection)
            await self._restored()

    async def _complete(self) -> bool:
        """Whether an IKE_SA is established and has its CHILD_SAs. Raises IkeError."""
        return await self._driver.is_complete(
            self._connection, data=self._peering.protect_data, also=self._also
        )

    async def _give_up(self) -> None:
        self._wanted = False
        task, self._restoring = self._restoring, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
