"""The verbs: each builds one :class:`Request`. Sockets send them, alone or in batches.

Flags are those that `ip xfrm` uses: additions are exclusive (EEXIST when the object exists).
"""

from __future__ import annotations

from collections.abc import Sequence

from dsmip_ipsec.xfrm import decode, encode
from dsmip_ipsec.xfrm.constants import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    DefaultAction,
    Direction,
    EventFlag,
    Message,
    PolicyType,
    Protocol,
)
from dsmip_ipsec.xfrm.errors import XfrmEncodeError
from dsmip_ipsec.xfrm.exchange import Request
from dsmip_ipsec.xfrm.structs import U32, pack_address
from dsmip_ipsec.xfrm.types import (
    AddressFilter,
    DefaultPolicy,
    Encap,
    Event,
    KmAddress,
    Migration,
    Policy,
    PolicyId,
    SadInfo,
    Selector,
    SpdInfo,
    State,
    StateId,
)

_NEW = NLM_F_CREATE | NLM_F_EXCL
_NO_DEFAULTS = DefaultPolicy(DefaultAction.UNSPEC, DefaultAction.UNSPEC, DefaultAction.UNSPEC)
_ALL_FLAGS = U32.pack(0xFFFFFFFF)


def add_state(state: State) -> Request[None]:
    """ip xfrm state add"""
    return Request(Message.NEWSA, encode.encode_state(state), _NEW, subject=state)


def update_state(state: State) -> Request[None]:
    """ip xfrm state update. The kernel takes over encapsulation ports, lifetimes, replay state
    and marks of an existing state; it ignores another source address."""
    return Request(Message.UPDSA, encode.encode_state(state), NLM_F_REPLACE, subject=state)


def delete_state(state_id: StateId) -> Request[None]:
    """ip xfrm state delete"""
    return Request(Message.DELSA, encode.encode_state_id(state_id), subject=state_id)


def get_state(state_id: StateId) -> Request[State]:
    """ip xfrm state get"""
    return Request(
        Message.GETSA,
        encode.encode_state_id(state_id),
        answer=Message.NEWSA,
        decode=decode.decode_state,
        subject=state_id,
    )


def dump_states(
    protocol: Protocol = Protocol.NONE, address_filter: AddressFilter | None = None
) -> Request[list[State]]:
    """ip xfrm state list"""
    return Request(
        Message.GETSA,
        encode.encode_state_filter(protocol, address_filter),
        NLM_F_DUMP,
        answer=Message.NEWSA,
        decode=decode.decode_state,
    )


def flush_states(protocol: Protocol = Protocol.NONE) -> Request[None]:
    """ip xfrm state flush: deletes every state in the namespace, whoever made it."""
    return Request(Message.FLUSHSA, encode.encode_state_flush(protocol))


def allocate_spi(state: State, low: int = 0x100, high: int = 0xFFFFFFFF) -> Request[State]:
    """ip xfrm state allocspi: a larval state with a free SPI in low..high, both included.

    Of ``state`` the addresses, protocol, mode, reqid and mark count; its SPI is 0. A ``sequence``
    other than 0 is that of an acquire, whose larval state gets the SPI.
    """
    return Request(
        Message.ALLOCSPI,
        encode.encode_spi_request(state, low, high),
        answer=Message.NEWSA,
        decode=decode.decode_state,
        subject=state,
    )


def add_policy(policy: Policy) -> Request[None]:
    """ip xfrm policy add"""
    return Request(Message.NEWPOLICY, encode.encode_policy(policy), _NEW, subject=policy)


def update_policy(policy: Policy) -> Request[None]:
    """ip xfrm policy update: replaces the policy with the same identity, or adds it."""
    return Request(Message.UPDPOLICY, encode.encode_policy(policy), NLM_F_REPLACE, subject=policy)


def delete_policy(policy_id: PolicyId) -> Request[None]:
    """ip xfrm policy delete"""
    return Request(Message.DELPOLICY, encode.encode_policy_id(policy_id), subject=policy_id)


def get_policy(policy_id: PolicyId) -> Request[Policy]:
    """ip xfrm policy get"""
    return Request(
        Message.GETPOLICY,
        encode.encode_policy_id(policy_id),
        answer=Message.NEWPOLICY,
        decode=decode.decode_policy,
        subject=policy_id,
    )


def dump_policies() -> Request[list[Policy]]:
    """ip xfrm policy list: of both types, and those of sockets (directions SOCKET_*)."""
    return Request(
        Message.GETPOLICY,
        b"",
        NLM_F_DUMP,
        answer=Message.NEWPOLICY,
        decode=decode.decode_policy,
    )


def flush_policies(type_: PolicyType = PolicyType.MAIN) -> Request[None]:
    """ip xfrm policy flush: deletes every policy of the type, whoever made it."""
    return Request(Message.FLUSHPOLICY, encode.encode_policy_flush(type_))


def migrate(
    selector: Selector,
    direction: Direction,
    migrations: Sequence[Migration],
    *,
    type_: PolicyType = PolicyType.MAIN,
    km_address: KmAddress | None = None,
    encap: Encap | None = None,
    if_id: int = 0,
) -> Request[None]:
    """Moves the templates of a policy, and an SA for each, to new outer addresses.

    The selector must be the policy's exactly, the old addresses its templates'. ``encap`` can
    switch UDP encapsulation on, not off. ``km_address`` goes to IKE daemons that listen.
    """
    if not 0 < len(migrations) <= 6:
        raise XfrmEncodeError(f"the kernel migrates 1 to 6 templates, not {len(migrations)}")
    payload = encode.encode_migrate(
        selector,
        direction,
        migrations,
        type_=type_,
        km_address=km_address,
        encap=encap,
        if_id=if_id,
    )
    return Request(
        Message.MIGRATE, payload, subject=PolicyId(direction, selector, type_, if_id=if_id)
    )


def get_event(
    state_id: StateId,
    flags: EventFlag = EventFlag.REPLAY_THRESHOLD | EventFlag.TIMER_THRESHOLD,
) -> Request[Event]:
    """Replay state and lifetime counters of a state; ``flags`` ask for its thresholds too."""
    return Request(
        Message.GETAE,
        encode.encode_event_request(state_id, flags),
        answer=Message.NEWAE,
        decode=decode.decode_event,
        subject=state_id,
    )


def set_event(event: Event) -> Request[None]:
    """Sets replay state and lifetime counters of a state (those that aren't None)."""
    source = pack_address(event.id.source)
    return Request(
        Message.NEWAE, encode.encode_event(event, source), NLM_F_REPLACE, subject=event.id
    )


def get_sad_info() -> Request[SadInfo]:
    """ip xfrm state count"""
    return Request(
        Message.GETSADINFO, _ALL_FLAGS, answer=Message.NEWSADINFO, decode=decode.decode_sad_info
    )


def get_spd_info() -> Request[SpdInfo]:
    """ip xfrm policy count"""
    return Request(
        Message.GETSPDINFO, _ALL_FLAGS, answer=Message.NEWSPDINFO, decode=decode.decode_spd_info
    )


def get_default_policy() -> Request[DefaultPolicy]:
    """ip xfrm policy getdefault"""
    return Request(
        Message.GETDEFAULT,
        encode.encode_default_policy(_NO_DEFAULTS),
        answer=Message.GETDEFAULT,
        decode=decode.decode_default_policy,
    )


def set_default_policy(default: DefaultPolicy) -> Request[None]:
    """ip xfrm policy setdefault"""
    return Request(Message.SETDEFAULT, encode.encode_default_policy(default))
