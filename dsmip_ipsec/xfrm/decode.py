"""From the octets of messages to views. Every malformed buffer gives XfrmDecodeError."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6, AF_UNSPEC, ntohl, ntohs
from typing import Any

from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import (
    REPLAY_WINDOW_MAX,
    XFRM_INF,
    Action,
    Attribute,
    DefaultAction,
    Direction,
    EncapType,
    EventFlag,
    ExtraFlag,
    Mode,
    PolicyFlag,
    PolicyType,
    Protocol,
    Share,
    StateFlag,
)
from dsmip_ipsec.xfrm.errors import XfrmDecodeError, XfrmEncodeError
from dsmip_ipsec.xfrm.structs import unpack, unpack_address, unpack_network
from dsmip_ipsec.xfrm.types import (
    Algorithm,
    CurrentLifetime,
    DefaultPolicy,
    Encap,
    Event,
    Key,
    KmAddress,
    Lifetime,
    Mark,
    Migration,
    Policy,
    PolicyId,
    RawAttribute,
    Replay,
    SadInfo,
    Selector,
    SpdInfo,
    State,
    StateId,
    Statistics,
    Template,
)

Attributes = Mapping[int, bytes]

_NO_LIMITS = Lifetime()
_UNLIMITED = ((XFRM_INF,) * 4 + (0,) * 4,)

# Attributes that views have fields for, or that only repeat others.
_STATE_ATTRIBUTES = frozenset(
    {
        Attribute.ALG_AUTH,
        Attribute.ALG_CRYPT,
        Attribute.ALG_COMP,
        Attribute.ALG_AEAD,
        Attribute.ALG_AUTH_TRUNC,
        Attribute.ENCAP,
        Attribute.LTIME_VAL,
        Attribute.REPLAY_VAL,
        Attribute.REPLAY_ESN_VAL,
        Attribute.REPLAY_THRESH,
        Attribute.ETIMER_THRESH,
        Attribute.SRCADDR,
        Attribute.COADDR,
        Attribute.LASTUSED,
        Attribute.MARK,
        Attribute.TFCPAD,
        Attribute.SA_EXTRA_FLAGS,
        Attribute.PAD,
        Attribute.SET_MARK,
        Attribute.SET_MARK_MASK,
        Attribute.IF_ID,
        Attribute.MTIMER_THRESH,
        Attribute.SA,
    }
)
_POLICY_ATTRIBUTES = frozenset(
    {
        Attribute.TMPL,
        Attribute.POLICY_TYPE,
        Attribute.MARK,
        Attribute.IF_ID,
        Attribute.LASTUSED,
        Attribute.PAD,
        Attribute.POLICY,
    }
)


def parse_attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """Attributes by number; of several with one number the last, as the kernel has it."""
    return dict(c.iterate_attributes(data, offset))


def decode_selector(data: bytes) -> Selector:
    """struct xfrm_selector."""
    unpack(c.SELECTOR, data, "a selector")
    return _selector(data[: c.SELECTOR.size])


@lru_cache(maxsize=4096)
def _selector(data: bytes) -> Selector:
    (
        daddr,
        saddr,
        dport,
        dport_mask,
        sport,
        sport_mask,
        family,
        prefix_destination,
        prefix_source,
        protocol,
        interface,
        user,
    ) = c.SELECTOR.unpack(data)
    source = destination = None
    source_bits = destination_bits = 0
    if family != AF_UNSPEC:
        source, source_bits = unpack_network(saddr, family, prefix_source)
        destination, destination_bits = unpack_network(daddr, family, prefix_destination)
    return Selector(
        source,
        destination,
        protocol,
        ntohs(sport) if sport_mask or sport else None,
        ntohs(dport) if dport_mask or dport else None,
        ntohs(sport_mask) if sport_mask or sport else 0xFFFF,
        ntohs(dport_mask) if dport_mask or dport else 0xFFFF,
        interface,
        user,
        source_bits,
        destination_bits,
    )


def decode_state(data: bytes, offset: int = 0) -> State:
    """struct xfrm_usersa_info and its attributes (NEWSA, UPDSA, answers to GETSA)."""
    unpack(c.USERSA_INFO, data, "an SA", offset)
    return decode_state_parts(
        data[offset : offset + c.USERSA_INFO.size],
        parse_attributes(data, offset + c.USERSA_INFO.size),
    )


def decode_state_parts(info: bytes, attributes: Attributes) -> State:
    """A state from struct xfrm_usersa_info and attributes that stand apart from it."""
    fields = unpack(c.USERSA_INFO, info, "an SA")
    selector, daddr, spi, protocol, saddr = fields[:5]
    sequence, reqid, family, mode, replay_window, flags = fields[20:]
    get = attributes.get
    current = fields[13:17]
    auth = get(Attribute.ALG_AUTH_TRUNC)
    plain_auth = get(Attribute.ALG_AUTH)
    authentication = None
    if auth is not None:
        authentication = _algorithm_icv(auth)
    elif plain_auth is not None:
        authentication = _algorithm(plain_auth)
    if family not in (AF_INET, AF_INET6):
        raise XfrmDecodeError(f"an SA's address family {family} is neither IPv4 nor IPv6")
    try:
        return State(
            destination=unpack_address(daddr, family),
            source=unpack_address(saddr, family),
            spi=ntohl(spi),
            protocol=Protocol(protocol),
            mode=Mode(mode),
            reqid=reqid,
            selector=_selector(selector),
            aead=_optional(get(Attribute.ALG_AEAD), _algorithm_icv),
            encryption=_optional(get(Attribute.ALG_CRYPT), _algorithm),
            authentication=authentication,
            compression=_optional(get(Attribute.ALG_COMP), _algorithm),
            encap=_optional(get(Attribute.ENCAP), decode_encap),
            flags=StateFlag(flags),
            extra_flags=ExtraFlag(_u32(attributes, Attribute.SA_EXTRA_FLAGS) or 0),
            replay=_replay(attributes, replay_window) or Replay(window=min(replay_window, 32)),
            lifetime=_limits(fields[5:13]),
            current=_current(attributes) or CurrentLifetime(*current),
            mark=_mark(attributes),
            output_mark=_output_mark(attributes),
            if_id=_u32(attributes, Attribute.IF_ID) or 0,
            care_of_address=_care_of_address(attributes, family),
            tfc_pad=_u32(attributes, Attribute.TFCPAD) or 0,
            mapping_threshold=_u32(attributes, Attribute.MTIMER_THRESH),
            replay_threshold=_u32(attributes, Attribute.REPLAY_THRESH),
            timer_threshold=_u32(attributes, Attribute.ETIMER_THRESH),
            sequence=sequence,
            statistics=Statistics(*fields[17:20]),
            last_used=_last_used(attributes),
            extra=_extra(attributes, _STATE_ATTRIBUTES),
        )
    except XfrmEncodeError as error:
        raise XfrmDecodeError(f"the kernel's SA makes no sense: {error.message}") from None


def decode_state_id(data: bytes, attributes: Attributes | None = None) -> StateId:
    """struct xfrm_usersa_id, with MARK and SRCADDR from attributes."""
    daddr, spi, family, protocol = unpack(c.USERSA_ID, data, "an SA's identity")
    source = attributes.get(Attribute.SRCADDR) if attributes else None
    return StateId(
        unpack_address(daddr, family),
        ntohl(spi),
        Protocol(protocol),
        _mark(attributes) if attributes else None,
        unpack_address(_sized(source, 16, "SRCADDR"), family) if source is not None else None,
    )


def decode_policy(data: bytes, offset: int = 0) -> Policy:
    """struct xfrm_userpolicy_info and its attributes (NEWPOLICY, answers to GETPOLICY)."""
    unpack(c.USERPOLICY_INFO, data, "a policy", offset)
    return decode_policy_parts(
        data[offset : offset + c.USERPOLICY_INFO.size],
        parse_attributes(data, offset + c.USERPOLICY_INFO.size),
    )


def decode_policy_parts(info: bytes, attributes: Attributes) -> Policy:
    """A policy from struct xfrm_userpolicy_info and attributes that stand apart from it."""
    fields = unpack(c.USERPOLICY_INFO, info, "a policy")
    priority, index, direction, action, flags, share = fields[13:]
    return Policy(
        direction=Direction(direction),
        selector=_selector(fields[0]),
        templates=decode_templates(attributes.get(Attribute.TMPL, b"")),
        priority=priority,
        action=Action(action),
        type=_policy_type(attributes),
        index=index,
        mark=_mark(attributes),
        if_id=_u32(attributes, Attribute.IF_ID) or 0,
        flags=PolicyFlag(flags),
        share=Share(share),
        lifetime=_limits(fields[1:9]),
        current=CurrentLifetime(*fields[9:13]),
        last_used=_last_used(attributes),
        extra=_extra(attributes, _POLICY_ATTRIBUTES),
    )


def decode_policy_id(data: bytes, attributes: Attributes) -> PolicyId:
    """struct xfrm_userpolicy_id with its attributes."""
    selector, index, direction = unpack(c.USERPOLICY_ID, data, "a policy's identity")
    return PolicyId(
        Direction(direction),
        _selector(selector),
        _policy_type(attributes),
        index,
        _mark(attributes),
        _u32(attributes, Attribute.IF_ID) or 0,
    )


def decode_templates(data: bytes) -> tuple[Template, ...]:
    """An array of struct xfrm_user_tmpl."""
    size = c.TEMPLATE.size
    if len(data) % size:
        raise XfrmDecodeError(f"{len(data)} octets are no whole number of templates")
    return tuple(_template(data[at : at + size]) for at in range(0, len(data), size))


@lru_cache(maxsize=4096)
def _template(data: bytes) -> Template:
    (
        daddr,
        spi,
        protocol,
        family,
        saddr,
        reqid,
        mode,
        share,
        optional,
        authentication,
        encryption,
        compression,
    ) = c.TEMPLATE.unpack(data)
    return Template(
        unpack_address(saddr, family),
        unpack_address(daddr, family),
        Protocol(protocol),
        Mode(mode),
        reqid,
        ntohl(spi),
        bool(optional),
        Share(share),
        authentication,
        encryption,
        compression,
    )


def decode_encap(data: bytes) -> Encap:
    """struct xfrm_encap_tmpl. Its family isn't told; an original address above 32 bits is IPv6."""
    type_, sport, dport, original = unpack(c.ENCAP, data, "ENCAP")
    address = None
    if original != c.ZERO_ADDRESS:
        address = unpack_address(original, AF_INET6 if any(original[4:]) else AF_INET)
    return Encap(ntohs(sport), ntohs(dport), EncapType(type_), address)


def decode_event(data: bytes) -> Event:
    """struct xfrm_aevent_id with its attributes (NEWAE)."""
    state_id, _, flags, reqid = unpack(c.AEVENT_ID, data, "an SA event")
    attributes = parse_attributes(data, c.AEVENT_ID.size)
    return Event(
        id=decode_state_id(state_id, attributes),
        reqid=reqid,
        flags=EventFlag(flags),
        replay=_replay(attributes, 0),
        current=_current(attributes),
        replay_threshold=_u32(attributes, Attribute.REPLAY_THRESH),
        timer_threshold=_u32(attributes, Attribute.ETIMER_THRESH),
        if_id=_u32(attributes, Attribute.IF_ID) or 0,
    )


def decode_migrations(data: bytes) -> tuple[Migration, ...]:
    """An array of struct xfrm_user_migrate."""
    size = c.MIGRATE.size
    if len(data) % size:
        raise XfrmDecodeError(f"{len(data)} octets are no whole number of migrations")
    out = []
    for at in range(0, len(data), size):
        old_d, old_s, new_d, new_s, protocol, mode, _, reqid, old_family, new_family = (
            c.MIGRATE.unpack_from(data, at)
        )
        out.append(
            Migration(
                unpack_address(old_s, old_family),
                unpack_address(old_d, old_family),
                unpack_address(new_s, new_family),
                unpack_address(new_d, new_family),
                Protocol(protocol),
                Mode(mode),
                reqid,
            )
        )
    return tuple(out)


def decode_km_address(data: bytes) -> KmAddress:
    """struct xfrm_user_kmaddress."""
    local, remote, _, family = unpack(c.KMADDRESS, data, "KMADDRESS")
    return KmAddress(unpack_address(local, family), unpack_address(remote, family))


def decode_sad_info(data: bytes) -> SadInfo:
    """NEWSADINFO: u32 flags, then XFRMA_SAD_CNT (1) and XFRMA_SAD_HINFO (2)."""
    unpack(c.U32, data, "SAD information")
    attributes = parse_attributes(data, 4)
    (states,) = unpack(c.U32, attributes.get(1, b""), "the number of SAs")
    buckets, buckets_max = unpack(c.PAIR32, attributes.get(2, b""), "the SAD's hash sizes")
    return SadInfo(states, buckets, buckets_max)


def decode_spd_info(data: bytes) -> SpdInfo:
    """NEWSPDINFO: u32 flags, then XFRMA_SPD_INFO (1) and XFRMA_SPD_HINFO (2)."""
    unpack(c.U32, data, "SPD information")
    attributes = parse_attributes(data, 4)
    counts = unpack(c.SPDINFO, attributes.get(1, b""), "the numbers of policies")
    hashes = unpack(c.PAIR32, attributes.get(2, b""), "the SPD's hash sizes")
    return SpdInfo(*counts, *hashes)


def decode_default_policy(data: bytes) -> DefaultPolicy:
    """struct xfrm_userpolicy_default."""
    inbound, forward, outbound = unpack(c.USERPOLICY_DEFAULT, data, "the default policy")
    return DefaultPolicy(DefaultAction(inbound), DefaultAction(forward), DefaultAction(outbound))


def _optional(data: bytes | None, decoder: Any) -> Any:
    return None if data is None else decoder(data)


def _sized(data: bytes, size: int, what: str) -> bytes:
    if len(data) < size:
        raise XfrmDecodeError(f"{what} needs {size} octets and has {len(data)}")
    return data


def _u32(attributes: Attributes, number: Attribute) -> int | None:
    data = attributes.get(number)
    if data is None:
        return None
    value: int = unpack(c.U32, data, "a 32-bit attribute")[0]
    return value


def _mark(attributes: Attributes) -> Mark | None:
    data = attributes.get(Attribute.MARK)
    return None if data is None else Mark(*unpack(c.MARK, data, "MARK"))


def _output_mark(attributes: Attributes) -> Mark | None:
    value = _u32(attributes, Attribute.SET_MARK)
    if value is None:
        return None
    mask = _u32(attributes, Attribute.SET_MARK_MASK)
    return Mark(value, 0xFFFFFFFF if mask is None else mask)


def _care_of_address(attributes: Attributes, family: int) -> Any:
    data = attributes.get(Attribute.COADDR)
    return None if data is None else unpack_address(_sized(data, 16, "COADDR"), family)


def _last_used(attributes: Attributes) -> int:
    data = attributes.get(Attribute.LASTUSED)
    return 0 if data is None else int(unpack(c.U64, data, "LASTUSED")[0])


def _policy_type(attributes: Attributes) -> PolicyType:
    data = attributes.get(Attribute.POLICY_TYPE)
    if data is None:
        return PolicyType.MAIN
    return PolicyType(unpack(c.USERPOLICY_TYPE, data, "POLICY_TYPE")[0])


def _current(attributes: Attributes) -> CurrentLifetime | None:
    data = attributes.get(Attribute.LTIME_VAL)
    return None if data is None else CurrentLifetime(*unpack(c.LIFETIME_CURRENT, data, "LTIME_VAL"))


def _limits(values: tuple[int, ...]) -> Lifetime:
    if values in _UNLIMITED:
        return _NO_LIMITS
    counts = [None if value == XFRM_INF else value for value in values[:4]]
    seconds = [value or None for value in values[4:]]
    return Lifetime(*counts, *seconds)


def decode_replay(attributes: Attributes) -> Replay:
    """REPLAY_ESN_VAL or REPLAY_VAL; the latter doesn't tell its window."""
    return _replay(attributes, 0) or Replay()


def _replay(attributes: Attributes, window: int) -> Replay | None:
    data = attributes.get(Attribute.REPLAY_ESN_VAL)
    if data is not None:
        words, oseq, seq, oseq_hi, seq_hi, window = unpack(c.REPLAY_ESN, data, "REPLAY_ESN_VAL")
        bitmap = data[c.REPLAY_ESN.size :]
        if len(bitmap) < 4 * words or not (window + 31) // 32 <= words <= REPLAY_WINDOW_MAX // 32:
            raise XfrmDecodeError(
                f"a replay window of {window} packets has {words} words and {len(bitmap)} octets"
            )
        values = tuple(c.U32.unpack_from(bitmap, 4 * word)[0] for word in range(words))
        return Replay(window, oseq, seq, oseq_hi, seq_hi, values, extended=True)
    data = attributes.get(Attribute.REPLAY_VAL)
    if data is None:
        return None
    oseq, seq, bits = unpack(c.REPLAY, data, "REPLAY_VAL")
    # The kernel keeps no more than 32 packets in this form, whatever window it was given.
    return Replay(min(window, 32), oseq, seq, bitmap=(bits,))


def _algorithm_name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "backslashreplace")


def _key(data: bytes, offset: int, bits: int) -> Key:
    octets = (bits + 7) // 8
    if len(data) - offset < octets:
        raise XfrmDecodeError(f"a key of {bits} bits runs past its attribute")
    return Key(data[offset : offset + octets])


def _algorithm(data: bytes) -> Algorithm:
    name, bits = unpack(c.ALGORITHM, data, "an algorithm")
    return Algorithm(_algorithm_name(name), _key(data, c.ALGORITHM.size, bits))


def _algorithm_icv(data: bytes) -> Algorithm:
    name, bits, icv_bits = unpack(c.ALGORITHM_ICV, data, "an algorithm")
    return Algorithm(_algorithm_name(name), _key(data, c.ALGORITHM_ICV.size, bits), icv_bits)


def _extra(attributes: Attributes, known: frozenset[Attribute]) -> tuple[RawAttribute, ...]:
    return tuple((number, data) for number, data in attributes.items() if number not in known)
