"""The one writer of kernel IPsec state: knows what is there, plans, applies, verifies.

What is there it learns from the kernel alone (:mod:`dsmip_ipsec.kernel.live_state`): by reading
everything when it starts and whenever notifications were lost, by notifications in between. It
keeps no memory of what it has done: policies are known as ours by their priority band, mirrored
SAs by their reqid. So whatever happened before (a crash between two operations, another program's
hand in our policies), the next run converges. What isn't ours it never touches.

It does remember for a moment the SAs of IKE that have just vanished: charon moves an SA by deleting
and adding it. A mirror that was deleted and made anew in between would start its sequence numbers
again, and the peer would take them for replays.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from typing import Any

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import (
    ExtensionState,
    Policy,
    SecurityAssociation,
)
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.ipsec.plan import Operation, Verb, plan
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.kernel.live_state import LINGER_S, LiveState
from dsmip_ipsec.mobility.types import OuterAddress
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.constants import Group, Message
from dsmip_ipsec.xfrm.errors import XfrmError
from dsmip_ipsec.xfrm.exchange import Request, Result
from dsmip_ipsec.xfrm.monitor import XfrmMonitor
from dsmip_ipsec.xfrm.move import Move
from dsmip_ipsec.xfrm.notifications import Mapping, Unread
from dsmip_ipsec.xfrm.socket import XfrmSocket

log = logging.getLogger(__name__)

# Someone else changed the same thing before we had read of it: look again.
_RACES = {errno.EEXIST, errno.ESRCH, errno.ENOENT}
_ATTEMPTS = 5
# Sequence numbers left out when an SA is moved: more than can be sent between reading and adding.
MOVE_SKIP = 64
# Peerings that one reconciliation in the background takes on: with what it has to write, some
# tens of milliseconds in which no mobile node is answered. Between two of them, all that came in
# meanwhile is.
COALESCED = 64
# Between two attempts for a peering that something foreign is in the way of.
TROUBLED_S = 2.0
_PUTS_POLICY = {Verb.ADD_POLICY, Verb.UPDATE_POLICY}
# Operations between two looks at the notifications of our own writes, which fill a buffer.
_CHUNK = 128

Associations = tuple[SecurityAssociation, ...]
Desired = Callable[[Reqids, Sequence[SecurityAssociation]], DesiredState]


class Reconciler:
    """Keeps this namespace's SPD and SAD as ``desired`` says.

    ``desired`` maps a peering, named by its reqids, and the SAs that IKE has installed for it
    (newest first) to the peering's desired state. :meth:`open` starts it: from then on every
    change of an SA or a policy in the kernel, and every :meth:`trigger`, leads to a
    reconciliation of the peerings concerned. ``on_mapping`` is told when ESP of a peering's data
    comes from another address and port than its SA has (a NAT gave it another). ``on_contested``
    is told when IKE deleted an SA while it was being moved: if not to move it, too, then the one
    that stands now is one that IKE no longer knows. ``on_vanished`` is told of IKE's SAs that are
    gone, when they no longer count as being moved.
    """

    def __init__(
        self,
        desired: Desired,
        reqids: tuple[Reqids, ...],
        on_mapping: Callable[[Reqids, OuterAddress], None] | None = None,
        on_contested: Callable[[], None] = lambda: None,
        on_vanished: Callable[[Associations], None] = lambda _: None,
    ) -> None:
        self._desired = desired
        self._on_mapping = on_mapping
        self._on_contested = on_contested
        self._on_vanished = on_vanished
        self._xfrm: XfrmSocket | None = None
        self._monitor: XfrmMonitor | None = None
        self._scheduled = False
        self._looking: set[Reqids] = set()  # those that have a timer running
        self._live = LiveState(reqids, self._vanished)
        self._changed = asyncio.Condition()
        self._failure: asyncio.Future[None] | None = None

    @property
    def associations(self) -> Associations:
        """The SAs that IKE has installed, those of a peering newest first."""
        return tuple(sa for live in self._live.peerings.values() for sa in live.associations())

    async def open(self) -> None:
        """Raises KernelError when the kernel has no XFRM or we lack CAP_NET_ADMIN."""
        self._failure = asyncio.get_running_loop().create_future()
        try:
            self._xfrm = XfrmSocket()
            self._monitor = XfrmMonitor(
                (Group.SA, Group.POLICY, Group.EXPIRE, Group.MIGRATE, Group.MAPPING)
            )
        except XfrmError as error:
            raise KernelError(
                f"can't use XFRM: {error}",
                hint="run as root on a kernel with XFRM; `dsmip-ipsec doctor` tells more",
            ) from error
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._notified)
        await self.reconcile(verify=True)

    async def close(self) -> None:
        """Remove everything that is ours and stop. Never raises: logs what it couldn't remove."""
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
        if self._xfrm is not None:
            self._desired = lambda ids, negotiated: DesiredState()
            self._on_vanished = lambda _: None
            self._live.stale = True
            self._live.dirty.update(self._live.peerings)
            try:
                self._converge(self._live.peerings)
            except KernelError as error:
                log.error("IPsec state is left behind: %s", error)
            self._xfrm.close()
            self._xfrm = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    async def failed(self) -> None:
        """Wait for, and raise, the KernelError that a background reconciliation ended with: one
        that is about all peerings. What is about some of several is logged, and tried again."""
        assert self._failure is not None, "open() comes first"
        await self._failure

    def trigger(self, *peerings: Reqids) -> None:
        """Reconcile ``peerings`` (none named: all) soon: once, however often this is called
        before."""
        self._live.dirty.update(peerings or self._live.peerings)
        self._schedule()

    async def reconcile(
        self, *peerings: Reqids, settled: bool = False, verify: bool = False
    ) -> tuple[Operation, ...]:
        """Reconcile ``peerings`` (none named: all) now; return what was done.

        ``settled``: IKE isn't moving anything, what is gone is gone. ``verify``: read everything
        from the kernel, whatever its notifications said. Raises KernelError.
        """
        if settled:
            self._drain()
            self._live.forget_vanished()
        self._live.stale = self._live.stale or verify
        self._live.dirty.update(peerings or self._live.peerings)
        done = self._converge(peerings or self._live.peerings)
        await self._announce()
        if self._live.dirty:
            self._schedule()
        return done

    async def wait_for(self, predicate: Callable[[Associations], bool], timeout_s: float) -> bool:
        """Wait until ``predicate`` holds for the SAs that IKE has installed; False: not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: predicate(self.associations))
        except TimeoutError:
            return False
        return True

    # In the background -----------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and self._xfrm is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._background)

    def _notified(self) -> None:
        """The kernel has something to tell."""
        self._drain()
        live = self._live
        if live.dirty or live.strays or live.stale:
            self._schedule()

    def _vanished(self, ids: Reqids) -> None:
        """An SA of IKE is gone: look again when it no longer counts as being moved."""
        if ids not in self._looking:
            self._looking.add(ids)
            asyncio.get_running_loop().call_later(LINGER_S, self._look_again, ids)

    def _look_again(self, ids: Reqids) -> None:
        self._looking.discard(ids)
        if self._live.peerings[ids].lingering and self._xfrm is not None:
            self.trigger(ids)
            self._vanished(ids)  # for those that vanished later

    def _background(self) -> None:
        self._scheduled = False
        if self._xfrm is None:
            return
        concerned: list[Reqids] = []
        try:
            self._drain()
            dirty = self._live.peerings if self._live.stale else self._live.dirty
            concerned = list(islice(dirty, COALESCED))
            self._converge(concerned)
        except KernelError as error:
            if not self._all_but_some(concerned):
                if self._failure is not None and not self._failure.done():
                    self._failure.set_exception(error)
                return
        if self._live.dirty:
            self._schedule()
        task = asyncio.ensure_future(self._announce())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _all_but_some(self, peerings: Sequence[Reqids]) -> bool:
        """Reconcile each by itself, after all together failed. Whoever has somebody else's SA or
        policy in the way is tried again later, and blocked meanwhile; False: it isn't that."""
        troubled: list[Reqids] = []
        for ids in peerings:
            self._live.dirty.add(ids)
            try:
                self._converge([ids])
            except KernelError as error:
                log.error("mobile node with reqid %d: %s (%s)", ids.signalling, error, error.hint)
                troubled.append(ids)
        if len(troubled) == len(peerings) == len(self._live.peerings):
            return False
        for ids in troubled:
            asyncio.get_running_loop().call_later(TROUBLED_S, self.trigger, ids)
        return True

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # Reading, planning, applying -----------------------------------------------------------------

    def _converge(self, peerings: Iterable[Reqids]) -> tuple[Operation, ...]:
        """Plan and apply until nothing is left to do for ``peerings``. Raises KernelError."""
        todo = list(peerings)
        live = self._live
        done: list[Operation] = []
        refused: XfrmError | None = None
        for _ in range(_ATTEMPTS):
            self._drain()
            if live.stale or refused is not None:
                self._read()
            if gone := live.forget_vanished(asyncio.get_running_loop().time()):
                self._on_vanished(gone)
            batch = [ids for ids in todo if ids in live.dirty]
            if not batch and not live.strays:
                return tuple(done)
            live.dirty.difference_update(batch)
            wanted = self._want(batch)
            operations = plan(live.current(batch, wanted.policies), wanted)
            refused = self._apply(operations, done) if operations else None
        raise KernelError(
            "IPsec state doesn't settle" + (f": {refused}" if refused else ""),
            hint="another program changes, or holds, the same SAs or policies; "
            "`ip xfrm monitor` shows which",
        )

    def _want(self, peerings: Iterable[Reqids]) -> DesiredState:
        """What these peerings want, in one."""
        live = self._live
        states = []
        for ids in peerings:
            state = self._desired(ids, live.peerings[ids].associations()).ipsec()
            live.want(ids, state)
            states.append(state)
        return DesiredState(
            tuple(policy for state in states for policy in state.policies),
            tuple(sa for state in states for sa in state.associations),
            tuple(sa for state in states for sa in state.placed),
            tuple(extension for state in states for extension in state.extensions),
            tuple(sa for state in states for sa in state.abandoned),
        )

    def _read(self) -> None:
        """Read everything."""
        assert self._xfrm is not None, "open() comes first"
        try:
            states = self._xfrm.dump_states()
            policies = self._xfrm.dump_policies()
        except XfrmError as error:
            raise KernelError(f"can't read IPsec state: {error}", hint=error.hint) from error
        self._live.read(states, policies, asyncio.get_running_loop().time())

    def _drain(self) -> None:
        """Take over what the kernel has told so far."""
        if self._monitor is None:
            return
        now = asyncio.get_running_loop().time()
        try:
            while (unread := self._monitor.unread_now()) is not None:
                if isinstance(unread, Unread) and unread.message is Message.MAPPING:
                    mapping = unread.read()
                    if isinstance(mapping, Mapping):
                        self._mapped(mapping)
                else:
                    self._live.notice(unread, now)
        except XfrmError as error:
            log.warning("listening to XFRM: %s", error)
            self._live.stale = True

    def _mapped(self, mapping: Mapping) -> None:
        ids = self._live.peering_of(mapping.reqid)
        if ids is not None and mapping.reqid in ids.tunnels and self._on_mapping is not None:
            self._on_mapping(ids, OuterAddress(mapping.new_source, mapping.new_source_port))

    def _apply(self, operations: Sequence[Operation], done: list[Operation]) -> XfrmError | None:
        """Apply in few batches. Returns a refusal that a fresh look may explain; raises others."""
        race: XfrmError | None = None
        for at in range(0, len(operations), _CHUNK):
            chunk = operations[at : at + _CHUNK]
            results = self._write(chunk)
            for operation, result in zip(chunk, results, strict=True):
                error = result.error
                if error is None:
                    log.info("%s", operation)
                    done.append(operation)
                elif error.code in _RACES:
                    race = error
                    if operation.verb is Verb.MOVE_ASSOCIATION and error.code == errno.ESRCH:
                        log.info("IKE has it as well: %s", operation)
                        self._on_contested()
                else:
                    raise KernelError(
                        f"the kernel refused to {operation}: {error}",
                        errno=error.code,
                        hint="what was applied before it stands; the next run takes it from there",
                    )
            self._drain()
            self._live.told_everything()
        return race

    def _write(self, operations: Sequence[Operation]) -> list[Result[Any]]:
        assert self._xfrm is not None, "open() comes first"
        results: list[Result[Any]] = []
        for moving, run in groupby(operations, lambda o: o.verb is Verb.MOVE_ASSOCIATION):
            if moving:
                results += self._xfrm.move_states([_move(o) for o in run])
            else:
                results += self._xfrm.request_all([self._request(o) for o in run])
        return results

    def _request(self, operation: Operation) -> Request[None]:
        request = _request(operation)
        if operation.verb in _PUTS_POLICY and isinstance(operation.subject, Policy):
            self._live.will_be_told(operation.subject, request.payload)
        return request


def _move(operation: Operation) -> Move:
    """The SA from where it is in the kernel now to the place that it is to have."""
    before, after = operation.before, operation.subject
    assert isinstance(before, SecurityAssociation), "only SAs move"
    assert isinstance(after, SecurityAssociation), "only SAs move"
    return translate.move(before, after, MOVE_SKIP)


def _request(operation: Operation) -> Request[None]:
    subject = operation.subject
    if isinstance(subject, Policy):
        policy = translate.policy(subject)
        if operation.verb is Verb.ADD_POLICY:
            return verbs.add_policy(policy)
        if operation.verb is Verb.UPDATE_POLICY:
            return verbs.update_policy(policy)
        return verbs.delete_policy(policy.id)
    if isinstance(subject, ExtensionState):
        state = translate.extension(subject)
    else:
        assert isinstance(subject, SecurityAssociation), "tunnels aren't XFRM's"
        state = translate.state(subject)
    if operation.verb in (Verb.ADD_ASSOCIATION, Verb.ADD_EXTENSION):
        return verbs.add_state(state)
    if operation.verb is Verb.UPDATE_EXTENSION:
        return verbs.update_state(state)
    return verbs.delete_state(state.id)
