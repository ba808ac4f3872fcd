"""The states of the mobile node's engine and what moves it between them, as one table."""

from __future__ import annotations

from enum import StrEnum

from dsmip_ipsec.errors import MobilityError


class State(StrEnum):
    """Where the registration of the current care-of address stands.

    In every state but IDLE, an older binding may still be in force: it ends when the home agent
    acknowledges another, or with its lifetime.
    """

    DETACHED = "detached"  # no care-of address: nothing can be sent
    IDLE = "idle"  # a care-of address, but no binding, and none wanted
    REGISTERING = "registering"  # a binding update is out, this care-of address isn't bound yet
    REGISTERED = "registered"  # acknowledged, nothing is out
    REFRESHING = "refreshing"  # acknowledged, and another binding update is out
    DEREGISTERING = "deregistering"  # a binding update with lifetime zero is out
    LEAVING = "leaving"  # no care-of address; in the next network, the binding is to be removed
    REFUSED = "refused"  # no home agent will have us here
    ABANDONED = "abandoned"  # this home address MUST NOT be registered again (RFC 6275 §11.7.1)


class Trigger(StrEnum):
    """What moves the engine from state to state."""

    ATTACH = "attach"  # from below: a care-of address
    DETACH = "detach"  # from below: none any longer
    UPDATE = "update"  # a time has come, or someone asks: tell the home agent again
    ACCEPTED = "accepted"  # binding acknowledgement below 128
    REFUSED = "refused"  # binding acknowledgement that leaves nothing to try
    EXPIRED = "expired"  # the lifetime of the binding is over
    REGISTER = "register"  # from above: a binding is wanted (again), or there is a new home agent
    DEREGISTER = "deregister"  # from above
    ABANDON = "abandon"  # status 134, or a router that is permitted nowhere (RFC 3963 §5.4)
    REMOVED = "removed"  # the home agent says that it has no binding (or cannot have one)


_S = State
_T = Trigger

TRANSITIONS: dict[tuple[State, Trigger], State] = {
    # No care-of address.
    (_S.DETACHED, _T.ATTACH): _S.REGISTERING,
    (_S.DETACHED, _T.DETACH): _S.DETACHED,
    (_S.DETACHED, _T.EXPIRED): _S.DETACHED,
    (_S.DETACHED, _T.DEREGISTER): _S.DEREGISTERING,  # at home only
    # Nothing wanted.
    (_S.IDLE, _T.ATTACH): _S.REGISTERING,
    (_S.IDLE, _T.DETACH): _S.DETACHED,
    (_S.IDLE, _T.REGISTER): _S.REGISTERING,
    # On the way to a binding. The old care-of address may still be bound, and expire.
    (_S.REGISTERING, _T.ATTACH): _S.REGISTERING,
    (_S.REGISTERING, _T.DETACH): _S.DETACHED,
    (_S.REGISTERING, _T.UPDATE): _S.REGISTERING,
    (_S.REGISTERING, _T.ACCEPTED): _S.REGISTERED,
    (_S.REGISTERING, _T.REFUSED): _S.REFUSED,
    (_S.REGISTERING, _T.EXPIRED): _S.REGISTERING,
    (_S.REGISTERING, _T.ABANDON): _S.ABANDONED,
    (_S.REGISTERING, _T.DEREGISTER): _S.DEREGISTERING,
    # Bound. ACCEPTED here answers a retransmission that crossed an earlier acknowledgement.
    (_S.REGISTERED, _T.ATTACH): _S.REGISTERING,
    (_S.REGISTERED, _T.DETACH): _S.DETACHED,
    (_S.REGISTERED, _T.UPDATE): _S.REFRESHING,
    (_S.REGISTERED, _T.ACCEPTED): _S.REGISTERED,
    (_S.REGISTERED, _T.REFUSED): _S.REFUSED,
    (_S.REGISTERED, _T.EXPIRED): _S.REGISTERING,
    (_S.REGISTERED, _T.ABANDON): _S.ABANDONED,
    (_S.REGISTERED, _T.DEREGISTER): _S.DEREGISTERING,
    # Bound, and asking again.
    (_S.REFRESHING, _T.ATTACH): _S.REGISTERING,
    (_S.REFRESHING, _T.DETACH): _S.DETACHED,
    (_S.REFRESHING, _T.UPDATE): _S.REFRESHING,
    (_S.REFRESHING, _T.ACCEPTED): _S.REGISTERED,
    (_S.REFRESHING, _T.REFUSED): _S.REFUSED,
    (_S.REFRESHING, _T.EXPIRED): _S.REGISTERING,
    (_S.REFRESHING, _T.ABANDON): _S.ABANDONED,
    (_S.REFRESHING, _T.DEREGISTER): _S.DEREGISTERING,
    # On the way out. Moving changes where that is said from, not what is said.
    (_S.DEREGISTERING, _T.ATTACH): _S.DEREGISTERING,
    (_S.DEREGISTERING, _T.DETACH): _S.LEAVING,
    (_S.DEREGISTERING, _T.REGISTER): _S.REGISTERING,
    (_S.DEREGISTERING, _T.DEREGISTER): _S.DEREGISTERING,
    (_S.DEREGISTERING, _T.REMOVED): _S.IDLE,
    (_S.DEREGISTERING, _T.REFUSED): _S.REFUSED,
    (_S.DEREGISTERING, _T.EXPIRED): _S.DEREGISTERING,
    # On the way out, and between networks. REMOVED: no home agent can have a binding any more.
    (_S.LEAVING, _T.ATTACH): _S.DEREGISTERING,
    (_S.LEAVING, _T.DETACH): _S.LEAVING,
    (_S.LEAVING, _T.REGISTER): _S.DETACHED,
    (_S.LEAVING, _T.DEREGISTER): _S.DEREGISTERING,  # at home only
    (_S.LEAVING, _T.REMOVED): _S.DETACHED,
    (_S.LEAVING, _T.EXPIRED): _S.LEAVING,
    # Refused here; elsewhere it may be different.
    (_S.REFUSED, _T.ATTACH): _S.REGISTERING,
    (_S.REFUSED, _T.DETACH): _S.DETACHED,
    (_S.REFUSED, _T.REGISTER): _S.REGISTERING,
    (_S.REFUSED, _T.EXPIRED): _S.REFUSED,
    (_S.REFUSED, _T.DEREGISTER): _S.DEREGISTERING,
    # Not here and not elsewhere.
    (_S.ABANDONED, _T.ATTACH): _S.ABANDONED,
    (_S.ABANDONED, _T.DETACH): _S.ABANDONED,
    (_S.ABANDONED, _T.EXPIRED): _S.ABANDONED,
}


def transition(state: State, trigger: Trigger) -> State:
    """The state after ``trigger``. Raises :class:`MobilityError` where the table has none."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise MobilityError(
            f"'{trigger}' isn't possible while {state}",
            hint="attach the mobile node to a network first"
            if state in (State.DETACHED, State.IDLE, State.REFUSED)
            else "wait until the mobile node is registered",
        ) from None
