"""The one writer of kernel IPsec state: reads what is there, plans, applies, verifies.

It keeps no memory of what it has done: policies are known as ours by their priority band, mirrored
SAs by their reqid, and both are read anew each time. So whatever happened before (a crash between
two operations, another program's hand in our policies), the next run converges. What isn't ours
it never touches.

It does remember for a moment the SAs of IKE that have just vanished: charon moves an SA by deleting
and adding it. A mirror that was deleted and made anew in between would start its sequence numbers
again, and the peer would take them for replays.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import PRIORITY_BAND, DesiredState
from dsmip_ipsec.ipsec.model import ExtensionState, Policy, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.ipsec.plan import Operation, Verb, plan
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.constants import Group
from dsmip_ipsec.xfrm.errors import XfrmError
from dsmip_ipsec.xfrm.exchange import Request, Result
from dsmip_ipsec.xfrm.monitor import XfrmMonitor
from dsmip_ipsec.xfrm.move import Move
from dsmip_ipsec.xfrm.socket import XfrmSocket
from dsmip_ipsec.xfrm.types import State

log = logging.getLogger(__name__)

# Someone else changed the same thing between our reading and our writing: read again.
_RACES = {errno.EEXIST, errno.ESRCH, errno.ENOENT}
_ATTEMPTS = 5
# How long an SA that IKE deleted counts as being moved. charon needs some milliseconds.
LINGER_S = 0.3
# Sequence numbers left out when an SA is moved: more than can be sent between reading and adding.
MOVE_SKIP = 64
# A reconciliation this short needs no pause behind it.
UNNOTICED_S = 0.05

Associations = tuple[SecurityAssociation, ...]


class Reconciler:
    """Keeps this namespace's SPD and SAD as ``wanted`` says.

    ``wanted`` maps the SAs that IKE has installed (newest first) to the desired state; ``reqids``
    are those of all peerings. :meth:`open` starts it: from then on every change of an SA or a
    policy in the kernel, and every :meth:`trigger`, leads to a reconciliation.
    """

    def __init__(
        self,
        wanted: Callable[[Sequence[SecurityAssociation]], DesiredState],
        reqids: tuple[Reqids, ...],
    ) -> None:
        self._wanted = wanted
        self._mirrors = {ids.mirror for ids in reqids}
        self._data = {ids.data for ids in reqids}
        self._negotiable = {reqid for ids in reqids for reqid in (ids.signalling, ids.data)}
        self._xfrm: XfrmSocket | None = None
        self._monitor: XfrmMonitor | None = None
        self._scheduled = False
        self._spent = 0.0  # seconds that the last one in the background took
        self._live: dict[tuple[int, int], SecurityAssociation] = {}
        self._lingering: dict[tuple[int, int], tuple[SecurityAssociation, float]] = {}
        self._changed = asyncio.Condition()
        self._failure: asyncio.Future[None] | None = None
        self.associations: Associations = ()

    async def open(self) -> None:
        """Raises KernelError when the kernel has no XFRM or we lack CAP_NET_ADMIN."""
        self._failure = asyncio.get_running_loop().create_future()
        try:
            self._xfrm = XfrmSocket()
            self._monitor = XfrmMonitor((Group.SA, Group.POLICY))
        except XfrmError as error:
            raise KernelError(
                f"can't use XFRM: {error}",
                hint="run as root on a kernel with XFRM; `dsmip-ipsec doctor` tells more",
            ) from error
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._notified)
        await self.reconcile()

    async def close(self) -> None:
        """Remove everything that is ours and stop. Never raises: logs what it couldn't remove."""
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None
        if self._xfrm is not None:
            self._wanted = lambda _: DesiredState()
            self._lingering.clear()
            try:
                self._converge()
            except KernelError as error:
                log.error("IPsec state is left behind: %s", error)
            self._xfrm.close()
            self._xfrm = None

    async def failed(self) -> None:
        """Wait for, and raise, the KernelError that a background reconciliation ended with."""
        assert self._failure is not None, "open() comes first"
        await self._failure

    def trigger(self) -> None:
        """Reconcile soon: once, however often this is called before.

        A reconciliation that takes long is followed by as long a pause: whatever there is to
        reconcile, half of the time is left for answering mobile nodes.
        """
        if not self._scheduled and self._xfrm is not None:
            self._scheduled = True
            pause = self._spent if self._spent > UNNOTICED_S else 0.0
            asyncio.get_running_loop().call_later(pause, self._background)

    async def reconcile(self, *, settled: bool = False) -> tuple[Operation, ...]:
        """Reconcile now; return what was done. ``settled``: IKE isn't moving anything, what is
        gone is gone. Raises KernelError."""
        if settled:
            self._live.clear()
            self._lingering.clear()
        done = self._converge()
        async with self._changed:
            self._changed.notify_all()
        return done

    async def wait_for(self, predicate: Callable[[Associations], bool], timeout_s: float) -> bool:
        """Wait until ``predicate`` holds for the SAs that IKE has installed; False: not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: predicate(self.associations))
        except TimeoutError:
            return False
        return True

    def _notified(self) -> None:
        """Something happened to an SA or a policy. What, is read afresh: that also covers
        notifications which the kernel had to drop (an overrun)."""
        assert self._monitor is not None, "the reader is removed before"
        try:
            while self._monitor.receive_now() is not None:
                pass
        except XfrmError as error:
            log.warning("listening to XFRM: %s", error)
        self.trigger()

    def _background(self) -> None:
        self._scheduled = False
        if self._xfrm is None:
            return
        started = asyncio.get_running_loop().time()
        try:
            self._converge()
            self._spent = asyncio.get_running_loop().time() - started
        except KernelError as error:
            if self._failure is not None and not self._failure.done():
                self._failure.set_exception(error)
            return
        task = asyncio.ensure_future(self._announce())
        task.add_done_callback(lambda done: done.exception())

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _converge(self) -> tuple[Operation, ...]:
        """Plan and apply until nothing is left to do. Raises KernelError."""
        done: list[Operation] = []
        refused: XfrmError | None = None
        for _ in range(_ATTEMPTS):
            current = self._read()
            operations = plan(current, self._wanted(self.associations).ipsec())
            if not operations:
                return tuple(done)
            refused = self._apply(operations, done)
        raise KernelError(
            "IPsec state doesn't settle" + (f": {refused}" if refused else ""),
            hint="another program changes the same policies; `ip xfrm monitor` shows which",
        )

    def _read(self) -> DesiredState:
        """What is ours in the kernel; sets :attr:`associations` to IKE's on the way."""
        assert self._xfrm is not None, "open() comes first"
        try:
            states = self._xfrm.dump_states()
            policies = self._xfrm.dump_policies()
        except XfrmError as error:
            raise KernelError(f"can't read IPsec state: {error}", hint=error.hint) from error
        ours = [state for state in states if state.reqid in self._mirrors]
        theirs = [state for state in states if state.reqid in self._negotiable]
        self.associations = self._with_lingering(_models(theirs))
        banded = [p for p in policies if p.priority in PRIORITY_BAND]
        known: list[Policy] = []
        for policy in banded:
            model = translate.policy_back(policy)
            if model is not None:
                known.append(model)
        placed = tuple(sa for sa in self._live.values() if sa.reqid in self._data)
        extensions = (translate.extension_back(state) for state in ours)
        return DesiredState(
            tuple(known),
            _models(ours),
            placed,
            tuple(e for e in extensions if e is not None),
            tuple(self._live.values()),
        )

    def _with_lingering(self, live: Associations) -> Associations:
        """``live``, and the SAs that vanished less than LINGER_S ago and haven't come back."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        previous, self._live = self._live, {(sa.spi, sa.reqid): sa for sa in live}
        for key, sa in previous.items():
            if key not in self._live:
                self._lingering[key] = (sa, now + LINGER_S)
                loop.call_later(LINGER_S, self.trigger)
        self._lingering = {
            key: (sa, until)
            for key, (sa, until) in self._lingering.items()
            if key not in self._live and until > now
        }
        return live + tuple(sa for sa, _ in self._lingering.values())

    def _apply(self, operations: Sequence[Operation], done: list[Operation]) -> XfrmError | None:
        """Apply in one batch. Returns a refusal that a fresh look may explain; raises others."""
        assert self._xfrm is not None, "open() comes first"
        results: list[Result[Any]] = []
        for moving, run in groupby(operations, lambda o: o.verb is Verb.MOVE_ASSOCIATION):
            if moving:
                results += self._xfrm.move_states([self._move(o) for o in run])
            else:
                results += self._xfrm.request_all([_request(o) for o in run])
        race: XfrmError | None = None
        for operation, result in zip(operations, results, strict=True):
            error = result.error
            if error is None:
                log.info("%s", operation)
                done.append(operation)
            elif error.code in _RACES:
                race = error
            else:
                raise KernelError(
                    f"the kernel refused to {operation}: {error}",
                    errno=error.code,
                    hint="what was applied before it stands; the next run takes it from there",
                )
        return race

    def _move(self, operation: Operation) -> Move:
        """The SA as it is in the kernel now, to the place that it is to have."""
        subject = operation.subject
        assert isinstance(subject, SecurityAssociation), "only SAs move"
        there = translate.state(subject)
        here = translate.state(self._live[subject.spi, subject.reqid])
        return Move(here.id, there.source, there.destination, there.encap, skip=MOVE_SKIP)


def _models(states: Sequence[State]) -> Associations:
    models = (translate.state_back(state) for state in states)
    return tuple(model for model in models if model is not None)


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
