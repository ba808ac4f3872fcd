"""What the kernel tells those who listen: typed notifications, decoded from datagrams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from socket import ntohs

from dsmip_ipsec.xfrm import decode, structs
from dsmip_ipsec.xfrm.constants import (
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    Attribute,
    Message,
    PolicyType,
    Protocol,
)
from dsmip_ipsec.xfrm.errors import XfrmDecodeError
from dsmip_ipsec.xfrm.exchange import messages
from dsmip_ipsec.xfrm.structs import unpack, unpack_address
from dsmip_ipsec.xfrm.types import (
    Address,
    DefaultPolicy,
    Encap,
    Event,
    KmAddress,
    Migration,
    Policy,
    PolicyId,
    Selector,
    State,
    StateId,
)


@dataclass(frozen=True, slots=True)
class StateAdded:
    state: State


@dataclass(frozen=True, slots=True)
class StateUpdated:
    state: State


@dataclass(frozen=True, slots=True)
class StateDeleted:
    """``state`` is what it was (None if the kernel didn't say)."""

    id: StateId
    state: State | None


@dataclass(frozen=True, slots=True)
class StatesFlushed:
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class PolicyAdded:
    policy: Policy


@dataclass(frozen=True, slots=True)
class PolicyUpdated:
    policy: Policy


@dataclass(frozen=True, slots=True)
class PolicyDeleted:
    """``policy`` is what it was (None if the kernel didn't say)."""

    id: PolicyId
    policy: Policy | None


@dataclass(frozen=True, slots=True)
class PoliciesFlushed:
    type: PolicyType


@dataclass(frozen=True, slots=True)
class Acquire:
    """A packet met ``policy`` and there is no SA. ``sequence`` numbers the request; the addresses
    are the wanted SA's, ``selector`` the packet's."""

    protocol: Protocol
    source: Address
    destination: Address
    selector: Selector
    policy: Policy
    sequence: int


@dataclass(frozen=True, slots=True)
class Expire:
    """A state's soft or hard lifetime has ended; the state comes without its keys."""

    state: State
    hard: bool


@dataclass(frozen=True, slots=True)
class PolicyExpire:
    policy: Policy
    hard: bool


@dataclass(frozen=True, slots=True)
class Migrated:
    """A policy's templates were moved by MIGRATE."""

    id: PolicyId
    migrations: tuple[Migration, ...]
    km_address: KmAddress | None
    encap: Encap | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """ESP of a state came from another outer source (a NAT that rebound). The kernel changes
    nothing itself."""

    id: StateId
    reqid: int
    old_source: Address
    new_source: Address
    old_source_port: int
    new_source_port: int


@dataclass(frozen=True, slots=True)
class Report:
    """Mobile IPv6: a packet with a home address option or routing header met no state."""

    protocol: Protocol
    selector: Selector
    care_of_address: Address | None


@dataclass(frozen=True, slots=True)
class EventNotice:
    """Counters of a state passed a threshold, or were set."""

    event: Event


@dataclass(frozen=True, slots=True)
class DefaultPolicyChanged:
    default: DefaultPolicy


@dataclass(frozen=True, slots=True)
class Overrun:
    """Notifications were lost: read the SAD and SPD again. Those that the kernel had queued before
    still come, and it queues no others until they have been read."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A notification that can't be understood: of what type, and why. Nothing else is lost."""

    message: Message
    error: XfrmDecodeError


Notification = (
    StateAdded
    | StateUpdated
    | StateDeleted
    | StatesFlushed
    | PolicyAdded
    | PolicyUpdated
    | PolicyDeleted
    | PoliciesFlushed
    | Acquire
    | Expire
    | PolicyExpire
    | Migrated
    | Mapping
    | Report
    | EventNotice
    | DefaultPolicyChanged
    | Overrun
    | Undecodable
)


# Not frozen, because many are made.
@dataclass(slots=True)
class Unread:
    """A notification that nobody has looked at (see glance.py). Its octets may hold keys."""

    message: Message
    octets: bytes = field(repr=False)

    def read(self) -> Notification:
        """Decode it; what can't be understood becomes :class:`Undecodable`."""
        return _decode(self.message, self.octets)


def unread_notifications(datagram: bytes) -> list[Unread | Overrun]:
    """The notifications in a datagram. Raises XfrmDecodeError if it isn't netlink at all."""
    out: list[Unread | Overrun] = []
    for type_, _, _, payload in messages(datagram):
        if type_ == NLMSG_OVERRUN:
            out.append(Overrun())
        elif type_ not in (NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE):
            out.append(Unread(Message(type_), payload))
    return out


def decode_notifications(datagram: bytes) -> list[Notification]:
    """As :func:`unread_notifications`, decoded; a single message that can't be understood becomes
    :class:`Undecodable`."""
    return [
        each.read() if isinstance(each, Unread) else each for each in unread_notifications(datagram)
    ]


def _decode(message: Message, payload: bytes) -> Notification:
    decoder = _DECODERS.get(message)
    try:
        if decoder is None:
            raise XfrmDecodeError(f"{message.name} is no notification that is known")
        return decoder(payload)
    except XfrmDecodeError as error:
        return Undecodable(message, error)


def _state_deleted(data: bytes) -> StateDeleted:
    unpack(structs.USERSA_ID, data, "a deleted SA")
    attributes = decode.parse_attributes(data, structs.USERSA_ID.size)
    info = attributes.get(Attribute.SA)
    state = None if info is None else decode.decode_state_parts(info, attributes)
    return StateDeleted(state.id if state else decode.decode_state_id(data, attributes), state)


def _states_flushed(data: bytes) -> StatesFlushed:
    return StatesFlushed(Protocol(unpack(structs.USERSA_FLUSH, data, "a flush of SAs")[0]))


def _policy_deleted(data: bytes) -> PolicyDeleted:
    unpack(structs.USERPOLICY_ID, data, "a deleted policy")
    attributes = decode.parse_attributes(data, structs.USERPOLICY_ID.size)
    info = attributes.get(Attribute.POLICY)
    policy = None if info is None else decode.decode_policy_parts(info, attributes)
    return PolicyDeleted(decode.decode_policy_id(data, attributes), policy)


def _policies_flushed(data: bytes) -> PoliciesFlushed:
    kind = decode.parse_attributes(data, 0).get(Attribute.POLICY_TYPE, bytes(6))
    return PoliciesFlushed(PolicyType(unpack(structs.USERPOLICY_TYPE, kind, "POLICY_TYPE")[0]))


def _acquire(data: bytes) -> Acquire:
    daddr, _, protocol, saddr, selector, info, _, _, _, sequence = unpack(
        structs.ACQUIRE, data, "an acquire"
    )
    attributes = decode.parse_attributes(data, structs.ACQUIRE.size)
    policy = decode.decode_policy_parts(info, attributes)
    # The structure has no family for these addresses: the template that asks has it.
    family = policy.templates[0].family if policy.templates else policy.selector.family
    return Acquire(
        Protocol(protocol),
        unpack_address(saddr, family),
        unpack_address(daddr, family),
        decode.decode_selector(selector),
        policy,
        sequence,
    )


def _expire(data: bytes) -> Expire:
    info, hard = unpack(structs.EXPIRE, data, "an expiry")
    attributes = decode.parse_attributes(data, structs.EXPIRE.size)
    return Expire(decode.decode_state_parts(info, attributes), bool(hard))


def _policy_expire(data: bytes) -> PolicyExpire:
    info, hard = unpack(structs.POLEXPIRE, data, "a policy's expiry")
    attributes = decode.parse_attributes(data, structs.POLEXPIRE.size)
    return PolicyExpire(decode.decode_policy_parts(info, attributes), bool(hard))


def _migrated(data: bytes) -> Migrated:
    unpack(structs.USERPOLICY_ID, data, "a migration")
    attributes = decode.parse_attributes(data, structs.USERPOLICY_ID.size)
    km_address = attributes.get(Attribute.KMADDRESS)
    encap = attributes.get(Attribute.ENCAP)
    # One MIGRATE attribute a template, or one with all of them.
    entries = b"".join(
        value
        for number, value in structs.iterate_attributes(data, structs.USERPOLICY_ID.size)
        if number == Attribute.MIGRATE
    )
    return Migrated(
        decode.decode_policy_id(data, attributes),
        decode.decode_migrations(entries),
        None if km_address is None else decode.decode_km_address(km_address),
        None if encap is None else decode.decode_encap(encap),
    )


def _mapping(data: bytes) -> Mapping:
    state_id, reqid, old, new, old_port, new_port = unpack(structs.MAPPING, data, "a mapping")
    _, _, family, _ = structs.USERSA_ID.unpack(state_id)
    return Mapping(
        decode.decode_state_id(state_id),
        reqid,
        unpack_address(old, family),
        unpack_address(new, family),
        ntohs(old_port),
        ntohs(new_port),
    )


def _report(data: bytes) -> Report:
    protocol, selector = unpack(structs.REPORT, data, "a report")
    address = decode.parse_attributes(data, structs.REPORT.size).get(Attribute.COADDR)
    if address is not None and len(address) < 16:
        raise XfrmDecodeError("a report's care-of address is cut short")
    decoded = decode.decode_selector(selector)
    return Report(
        Protocol(protocol),
        decoded,
        None if address is None else unpack_address(address, decoded.family),
    )


_DECODERS: dict[Message, Callable[[bytes], Notification]] = {
    Message.NEWSA: lambda data: StateAdded(decode.decode_state(data)),
    Message.UPDSA: lambda data: StateUpdated(decode.decode_state(data)),
    Message.DELSA: _state_deleted,
    Message.FLUSHSA: _states_flushed,
    Message.NEWPOLICY: lambda data: PolicyAdded(decode.decode_policy(data)),
    Message.UPDPOLICY: lambda data: PolicyUpdated(decode.decode_policy(data)),
    Message.DELPOLICY: _policy_deleted,
    Message.FLUSHPOLICY: _policies_flushed,
    Message.ACQUIRE: _acquire,
    Message.EXPIRE: _expire,
    Message.POLEXPIRE: _policy_expire,
    Message.MIGRATE: _migrated,
    Message.MAPPING: _mapping,
    Message.REPORT: _report,
    Message.NEWAE: lambda data: EventNotice(decode.decode_event(data)),
    Message.GETDEFAULT: lambda data: DefaultPolicyChanged(decode.decode_default_policy(data)),
    Message.SETDEFAULT: lambda data: DefaultPolicyChanged(decode.decode_default_policy(data)),
}
