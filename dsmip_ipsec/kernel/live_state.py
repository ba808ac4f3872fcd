"""What the kernel has of our peerings, kept current by the kernel's own notifications.

One feeder: a change is believed when the kernel tells of it, never because we asked for it. It
queues the notification of a change before the call that asked for it returns, so reading them
after each write gives the kernel's order, whoever else writes. What notifications can't tell
(some were lost, a flush, a MIGRATE) is ``stale`` until the next full read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.desired import PRIORITY_BAND, DesiredState
from dsmip_ipsec.ipsec.model import (
    Address,
    Direction,
    Extension,
    ExtensionState,
    Policy,
    SecurityAssociation,
    Selector,
)
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.xfrm import glance
from dsmip_ipsec.xfrm import notifications as told
from dsmip_ipsec.xfrm.constants import Message, PolicyType, Protocol
from dsmip_ipsec.xfrm.errors import XfrmDecodeError
from dsmip_ipsec.xfrm.types import Policy as KernelPolicy
from dsmip_ipsec.xfrm.types import PolicyId, State, StateId

# How long an SA that IKE deleted counts as being moved. charon needs some milliseconds.
LINGER_S = 0.3

PolicyKey = tuple[Direction, Selector]
_NOBODY: tuple[None, None] = (None, None)
_ExtensionKey = tuple[Extension, IPv6Address, IPv6Address]
_CHANGING = {
    Message.NEWSA,
    Message.UPDSA,
    Message.DELSA,
    Message.EXPIRE,
    Message.NEWPOLICY,
    Message.UPDPOLICY,
    Message.DELPOLICY,
}


class LivePeering:
    """The SAs of one peering, each in the order in which the kernel got them."""

    __slots__ = (
        "extensions",
        "lingering",
        "mirrors",
        "negotiated",
        "placed",
        "resting",
        "wanted_extensions",
        "wanted_mirrors",
        "wanted_policies",
    )

    def __init__(self) -> None:
        self.negotiated: dict[tuple[Address, int], SecurityAssociation] = {}
        self.mirrors: dict[tuple[Address, int], SecurityAssociation] = {}
        self.extensions: dict[_ExtensionKey, ExtensionState] = {}
        # By SPI and reqid: an SA that comes back may have another destination.
        self.lingering: dict[tuple[int, int], tuple[SecurityAssociation, float]] = {}
        # By SPI and reqid: an SA and those of its octets that it keeps when it moves.
        self.resting: dict[tuple[int, int], tuple[bytes, SecurityAssociation]] = {}
        # What was wanted when this peering was last reconciled: nothing to do about those.
        self.placed: dict[tuple[int, int], SecurityAssociation] = {}
        self.wanted_mirrors: dict[tuple[Address, int], SecurityAssociation] = {}
        self.wanted_extensions: dict[_ExtensionKey, ExtensionState] = {}
        self.wanted_policies: dict[PolicyKey, Policy] = {}

    def associations(self) -> tuple[SecurityAssociation, ...]:
        """Those of IKE, newest first; last, those that it deleted a moment ago."""
        newest_first = tuple(reversed(self.negotiated.values()))
        if not self.lingering:
            return newest_first
        return newest_first + tuple(sa for sa, _ in self.lingering.values())


class LiveState:
    """SAs and policies of ``peerings``; ``dirty`` are the peerings that changed since it was
    last emptied, ``strays`` the policies in our priority band that no peering wants."""

    def __init__(self, peerings: Iterable[Reqids], vanished: Callable[[Reqids], None]) -> None:
        """``vanished`` is told when an SA of IKE is gone and LINGER_S begins."""
        self.peerings = {ids: LivePeering() for ids in peerings}
        self.policies: dict[PolicyKey, Policy] = {}
        self.strays: set[PolicyKey] = set()
        self.dirty: set[Reqids] = set()
        self.stale = True
        self._owners: dict[PolicyKey, tuple[Reqids, Policy]] = {}
        self._by_reqid = {
            reqid: ids for ids in self.peerings for reqid in (ids.mirror, *ids.negotiated)
        }
        self._vanished = vanished
        self._writing: dict[bytes, Policy] = {}

    def peering_of(self, reqid: int) -> Reqids | None:
        """Whose SA this is; None: not one of ours."""
        return self._by_reqid.get(reqid)

    def current(self, peerings: Iterable[Reqids], wanted: Iterable[Policy]) -> DesiredState:
        """What the kernel has of ``peerings``: of policies those that are ``wanted``, and strays
        (among them those that :meth:`want` has just made so)."""
        mirrors: list[SecurityAssociation] = []
        negotiated: list[SecurityAssociation] = []
        extensions: list[ExtensionState] = []
        for ids in peerings:
            live = self.peerings[ids]
            mirrors += live.mirrors.values()
            negotiated += live.negotiated.values()
            extensions += live.extensions.values()
        have = self.policies
        keys = [policy.key for policy in wanted] + list(self.strays)
        policies = [have[key] for key in keys if key in have]
        return DesiredState(
            tuple(policies),
            tuple(mirrors),
            tuple(negotiated),
            tuple(extensions),
            tuple(negotiated),
        )

    def want(self, ids: Reqids, state: DesiredState) -> None:
        """From now on ``state`` is what the peering wants: the kernel's saying so is no news."""
        live = self.peerings[ids]
        live.placed = {(sa.spi, sa.reqid): sa for sa in state.placed}
        live.wanted_mirrors = {sa.key: sa for sa in state.associations}
        live.wanted_extensions = {extension.key: extension for extension in state.extensions}
        before, live.wanted_policies = live.wanted_policies, {p.key: p for p in state.policies}
        for key in before:
            if key not in live.wanted_policies and self._owners.get(key, _NOBODY)[0] == ids:
                del self._owners[key]
                if key in self.policies:
                    self.strays.add(key)
        for key, policy in live.wanted_policies.items():
            known = self.policies.get(key)
            if known is not None and known.selector is not policy.selector:
                # From now on under our own selector: the same object is equal at once.
                del self.policies[key]
                self.policies[key] = policy if _agree(known, policy) else known
            self._owners[key] = ids, policy
            self.strays.discard(key)

    def forget_vanished(self, now: float | None = None) -> tuple[SecurityAssociation, ...]:
        """Drop, and return, what has lingered until ``now`` (None: all)."""
        gone: list[SecurityAssociation] = []
        for live in self.peerings.values() if now is None else self._dirty_peerings():
            if live.lingering:
                over = {
                    key: sa
                    for key, (sa, until) in live.lingering.items()
                    if now is None or until <= now
                }
                gone += over.values()
                for key in over:
                    del live.lingering[key]
                there = {(sa.spi, sa.reqid) for sa in live.negotiated.values()}
                there.update(live.lingering)
                live.resting = {key: sa for key, sa in live.resting.items() if key in there}
        return tuple(gone)

    def _dirty_peerings(self) -> list[LivePeering]:
        return [self.peerings[ids] for ids in self.dirty]

    # What the kernel says -----------------------------------------------------------------------

    def read(self, states: Iterable[State], policies: Iterable[KernelPolicy], now: float) -> None:
        """Take over dumps (states newest first, as the kernel lists them). Everything is dirty."""
        before = {ids: live.negotiated for ids, live in self.peerings.items()}
        for live in self.peerings.values():
            live.negotiated, live.mirrors, live.extensions, live.resting = {}, {}, {}, {}
        for state in reversed(list(states)):
            self._put_state(state)
        for ids, associations in before.items():
            for sa in associations.values():
                self._linger(ids, sa, now)
        known, self.policies, self.strays = self.policies, {}, set()
        for policy in policies:
            self._put_policy(policy, known)
        self.dirty.update(self.peerings)
        self.stale = False

    def will_be_told(self, policy: Policy, octets: bytes) -> None:
        """``policy`` is about to be written, as the NEWPOLICY or UPDPOLICY ``octets``: what the
        kernel tells in the same octets is that policy."""
        lasting = glance.lasting_policy(octets)
        if lasting is not None:
            self._writing[lasting] = policy

    def told_everything(self) -> None:
        """The notifications of what was written have been read, or never come."""
        self._writing.clear()

    def notice(self, unread: told.Unread | told.Overrun, now: float) -> None:
        """Take over one notification. Those of no concern are ignored."""
        try:
            if not (isinstance(unread, told.Unread) and self._glanced(unread, now)):
                self._read_one(unread.read() if isinstance(unread, told.Unread) else unread, now)
        except XfrmDecodeError:
            self.stale = True

    def _glanced(self, unread: told.Unread, now: float) -> bool:
        """Take over what is told of something known; False: it has to be decoded."""
        message, octets = unread.message, unread.octets
        if message is Message.NEWSA or message is Message.UPDSA:
            ids = self._by_reqid.get(glance.state_reqid(octets))
            if ids is not None:
                self._glance_at_state(ids, unread)
            return True
        if message is Message.DELSA:
            gone = glance.glance_at_deletion(octets)
            if gone is None or gone.protocol != Protocol.ESP:
                return False
            self._drop_sa(gone.destination, gone.spi, gone.reqid, now)
            return True
        if self._writing and (message is Message.NEWPOLICY or message is Message.UPDPOLICY):
            written = self._writing.pop(glance.lasting_policy(octets) or b"", None)
            if written is not None:
                self._put_model(written)
                return True
        return False

    def _glance_at_state(self, ids: Reqids, unread: told.Unread) -> None:
        """An SA of IKE that has only moved is the one that is known, with another outer header."""
        seen = glance.glance_at_state(unread.octets)
        resting, key = self.peerings[ids].resting, (seen.spi, seen.reqid)
        rest, known = resting.get(key, (b"", None))
        if known is not None and rest == seen.rest:
            encapsulation = translate.encapsulation_back(seen.encap)
            self._put_negotiated(ids, known.moved(seen.source, seen.destination, encapsulation))
            return
        match unread.read():
            case told.StateAdded(state) | told.StateUpdated(state):
                put = self._put_state(state)
                if put is not None:
                    resting[key] = seen.rest, put
            case _:
                self.stale = True

    def _read_one(self, notification: told.Notification, now: float) -> None:
        match notification:
            case told.StateDeleted(state_id, state):
                self._drop_state(state_id, state, now)
            case told.Expire(state, True):
                # A hard lifetime ends an SA without the notification of a deletion.
                self._drop_state(state.id, state, now)
            case told.PolicyAdded(policy) | told.PolicyUpdated(policy):
                self._put_policy(policy, self.policies)
            case told.PolicyDeleted(policy_id, policy):
                self._drop_policy(policy or policy_id)
            case told.PolicyExpire(policy, True):
                self._drop_policy(policy)
            case told.StatesFlushed() | told.PoliciesFlushed() | told.Migrated() | told.Overrun():
                self.stale = True
            case told.Undecodable(message, _) if message in _CHANGING:
                self.stale = True
            case _:
                pass

    def _put_state(self, state: State) -> SecurityAssociation | None:
        """Take over a state; return it if it is an SA of IKE's."""
        ids = self._by_reqid.get(state.reqid)
        if ids is None:
            return None
        live = self.peerings[ids]
        extension = translate.extension_back(state)
        if extension is not None and state.reqid == ids.mirror:
            live.extensions[extension.key] = extension
            if live.wanted_extensions.get(extension.key) != extension:
                self.dirty.add(ids)
            return None
        sa = translate.state_back(state)
        if sa is None:
            return None
        if state.reqid == ids.mirror:
            live.mirrors[sa.key] = sa
            if live.wanted_mirrors.get(sa.key) != sa:
                self.dirty.add(ids)
            return None
        self._put_negotiated(ids, sa)
        return sa

    def _put_negotiated(self, ids: Reqids, sa: SecurityAssociation) -> None:
        live = self.peerings[ids]
        live.lingering.pop((sa.spi, sa.reqid), None)
        known = live.negotiated.get(sa.key)
        live.negotiated[sa.key] = sa
        if known != sa and live.placed.get((sa.spi, sa.reqid)) != sa:
            self.dirty.add(ids)

    def _drop_state(self, state_id: StateId, state: State | None, now: float) -> None:
        if state is None:
            self.stale = True  # nothing says whose it was
            return
        ids = self._by_reqid.get(state.reqid)
        if ids is None:
            return
        live = self.peerings[ids]
        extension = translate.extension_back(state)
        if extension is not None:
            live.extensions.pop(extension.key, None)
            if extension.key in live.wanted_extensions:
                self.dirty.add(ids)
            return
        self._drop_sa(state_id.destination, state_id.spi, state.reqid, now)

    def _drop_sa(self, destination: Address, spi: int, reqid: int, now: float) -> None:
        ids = self._by_reqid.get(reqid)
        if ids is None:
            return
        live, key = self.peerings[ids], (destination, spi)
        if reqid == ids.mirror:
            live.mirrors.pop(key, None)
            if key in live.wanted_mirrors:
                self.dirty.add(ids)
            return
        gone = live.negotiated.pop(key, None)
        if gone is not None:
            self._linger(ids, gone, now)

    def _linger(self, ids: Reqids, sa: SecurityAssociation, now: float) -> None:
        """Unless the SA is there, at the same place or another. As long as it lingers it counts as
        there, so there is nothing to do yet."""
        live = self.peerings[ids]
        if not any((sa.spi, sa.reqid) == (o.spi, o.reqid) for o in live.negotiated.values()):
            live.lingering[sa.spi, sa.reqid] = (sa, now + LINGER_S)
            self._vanished(ids)

    def _put_policy(self, policy: KernelPolicy, known: Mapping[PolicyKey, Policy]) -> None:
        model = _plain(policy)
        # One that was ours still is when someone else has changed its priority.
        if model is None or not (policy.priority in PRIORITY_BAND or model.key in known):
            return
        self._put_model(model)

    def _put_model(self, model: Policy) -> None:
        owned = self._owners.get(model.key)
        if owned is None:
            self.policies[model.key] = model
            self.strays.add(model.key)
            return
        owner, wanted = owned
        if _agree(model, wanted):
            self.policies[wanted.key] = wanted
        else:
            self.policies[wanted.key] = model
            self.dirty.add(owner)

    def _drop_policy(self, policy: KernelPolicy | PolicyId) -> None:
        if policy.type is not PolicyType.MAIN or policy.mark is not None or policy.if_id:
            return
        key = translate.policy_key(policy)
        if key is None or self.policies.pop(key, None) is None:
            return
        self.strays.discard(key)
        owned = self._owners.get(key)
        if owned is not None:
            self.dirty.add(owned[0])


def _agree(one: Policy, other: Policy) -> bool:
    """Whether two policies of one key are the same: their selectors needn't be compared."""
    return one is other or (
        one.priority == other.priority
        and one.action is other.action
        and one.template == other.template
    )


def _plain(policy: KernelPolicy) -> Policy | None:
    """The model of a policy as we write them: main type, without mark and interface."""
    if policy.type is not PolicyType.MAIN or policy.mark is not None or policy.if_id:
        return None
    return translate.policy_back(policy)
