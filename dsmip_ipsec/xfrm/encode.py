"""From views to the octets of messages: the payloads behind the netlink header."""

from __future__ import annotations

from collections.abc import Sequence
from socket import htonl, htons

from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import (
    XFRM_INF,
    Attribute,
    Direction,
    EventFlag,
    PolicyType,
    Protocol,
)
from dsmip_ipsec.xfrm.errors import XfrmEncodeError
from dsmip_ipsec.xfrm.structs import pack, pack_address, pack_attribute
from dsmip_ipsec.xfrm.types import (
    AddressFilter,
    Algorithm,
    CurrentLifetime,
    DefaultPolicy,
    Encap,
    Event,
    KmAddress,
    Lifetime,
    Mark,
    Migration,
    Policy,
    PolicyId,
    RawAttribute,
    Replay,
    Selector,
    State,
    StateId,
    Template,
    address_family,
)

_NO_LIMITS = Lifetime()
_UNUSED = CurrentLifetime()
_UNLIMITED = (XFRM_INF,) * 4 + (0,) * 4


def encode_selector(selector: Selector) -> bytes:
    """struct xfrm_selector."""
    source, destination = selector.source, selector.destination
    sport, dport = selector.source_port, selector.destination_port
    prefixes = (0, 0)
    saddr = daddr = c.ZERO_ADDRESS
    if source is not None and destination is not None:
        saddr = c.pack_network(source, selector.source_host_bits)
        daddr = c.pack_network(destination, selector.destination_host_bits)
        prefixes = (destination.prefixlen, source.prefixlen)
    return pack(
        c.SELECTOR,
        daddr,
        saddr,
        _port(dport),
        0 if dport is None else _port(selector.destination_port_mask),
        _port(sport),
        0 if sport is None else _port(selector.source_port_mask),
        selector.family,
        *prefixes,
        selector.protocol,
        selector.interface,
        selector.user,
    )


def encode_state(state: State) -> bytes:
    """struct xfrm_usersa_info and its attributes (NEWSA, UPDSA)."""
    return encode_state_info(state) + b"".join(_state_attributes(state))


def encode_state_info(state: State) -> bytes:
    """struct xfrm_usersa_info alone."""
    replay = state.replay
    return pack(
        c.USERSA_INFO,
        encode_selector(state.selector),
        pack_address(state.destination),
        _spi(state.spi),
        state.protocol,
        pack_address(state.source),
        *_limits(state.lifetime),
        # Lifetimes used so far, statistics: not read by the kernel here, see LTIME_VAL.
        *(0,) * 7,
        state.sequence,
        state.reqid,
        state.family,
        state.mode,
        # With REPLAY_ESN_VAL the window is there, and the kernel insists on 0 here.
        0 if replay.extended else replay.window,
        state.flags,
    )


def _state_attributes(state: State) -> list[bytes]:
    out: list[bytes] = []
    if state.aead is not None:
        out.append(pack_attribute(Attribute.ALG_AEAD, _algorithm_icv(state.aead)))
    if state.authentication is not None:
        out.append(pack_attribute(Attribute.ALG_AUTH_TRUNC, _algorithm_icv(state.authentication)))
    if state.encryption is not None:
        out.append(pack_attribute(Attribute.ALG_CRYPT, _algorithm(state.encryption)))
    if state.compression is not None:
        out.append(pack_attribute(Attribute.ALG_COMP, _algorithm(state.compression)))
    if state.encap is not None:
        out.append(pack_attribute(Attribute.ENCAP, encode_encap(state.encap)))
    out.extend(_replay_attribute(state.replay))
    if state.current != _UNUSED:
        out.append(pack_attribute(Attribute.LTIME_VAL, _current(state.current)))
    out.extend(_thresholds(state.replay_threshold, state.timer_threshold))
    out.extend(_mark_attributes(state.mark, state.if_id))
    if state.output_mark is not None:
        out.append(pack_attribute(Attribute.SET_MARK, pack(c.U32, state.output_mark.value)))
        out.append(pack_attribute(Attribute.SET_MARK_MASK, pack(c.U32, state.output_mark.mask)))
    if state.extra_flags:
        out.append(pack_attribute(Attribute.SA_EXTRA_FLAGS, pack(c.U32, state.extra_flags)))
    if state.care_of_address is not None:
        out.append(pack_attribute(Attribute.COADDR, pack_address(state.care_of_address)))
    if state.tfc_pad:
        out.append(pack_attribute(Attribute.TFCPAD, pack(c.U32, state.tfc_pad)))
    if state.mapping_threshold is not None:
        out.append(pack_attribute(Attribute.MTIMER_THRESH, pack(c.U32, state.mapping_threshold)))
    out.extend(_raw(state.extra))
    return out


def encode_state_id(state_id: StateId) -> bytes:
    """struct xfrm_usersa_id with MARK and SRCADDR (GETSA, DELSA)."""
    out = _state_id(state_id)
    if state_id.mark is not None:
        out += b"".join(_mark_attributes(state_id.mark, 0))
    if state_id.source is not None:
        out += pack_attribute(Attribute.SRCADDR, pack_address(state_id.source))
    return out


def encode_state_filter(
    protocol: Protocol = Protocol.NONE, address_filter: AddressFilter | None = None
) -> bytes:
    """Attributes of a dump of states (which has no structure in front)."""
    out = b""
    if protocol:
        out += pack_attribute(Attribute.PROTO, pack(c.USERSA_FLUSH, protocol))
    if address_filter is not None:
        source, destination = address_filter.source, address_filter.destination
        out += pack_attribute(
            Attribute.ADDRESS_FILTER,
            pack(
                c.ADDRESS_FILTER,
                c.pack_network(source, 0),
                c.pack_network(destination, 0),
                address_family(source),
                source.prefixlen,
                destination.prefixlen,
            ),
        )
    return out


def encode_state_flush(protocol: Protocol) -> bytes:
    """struct xfrm_usersa_flush."""
    return pack(c.USERSA_FLUSH, protocol)


def encode_spi_request(state: State, low: int, high: int) -> bytes:
    """struct xfrm_userspi_info (ALLOCSPI): a larval state and the range of its SPI."""
    if not 0 < low <= high <= 0xFFFFFFFF:
        raise XfrmEncodeError(f"no SPI can lie in {low:#x}..{high:#x}")
    return (
        encode_state_info(state)
        + pack(c.USERSPI_RANGE, low, high)
        + b"".join(_mark_attributes(state.mark, state.if_id))
    )


def encode_policy(policy: Policy) -> bytes:
    """struct xfrm_userpolicy_info and its attributes (NEWPOLICY, UPDPOLICY)."""
    out = pack(
        c.USERPOLICY_INFO,
        encode_selector(policy.selector),
        *_limits(policy.lifetime),
        *(0,) * 4,
        policy.priority,
        policy.index,
        policy.direction,
        policy.action,
        policy.flags,
        policy.share,
    )
    if policy.templates:
        out += pack_attribute(Attribute.TMPL, b"".join(map(encode_template, policy.templates)))
    out += _policy_type(policy.type)
    out += b"".join(_mark_attributes(policy.mark, policy.if_id))
    return out + b"".join(_raw(policy.extra))


def encode_policy_id(policy_id: PolicyId) -> bytes:
    """struct xfrm_userpolicy_id with its attributes (GETPOLICY, DELPOLICY)."""
    out = pack(
        c.USERPOLICY_ID,
        encode_selector(policy_id.selector),
        policy_id.index,
        policy_id.direction,
    )
    out += _policy_type(policy_id.type)
    return out + b"".join(_mark_attributes(policy_id.mark, policy_id.if_id))


def encode_policy_flush(type_: PolicyType) -> bytes:
    """Attributes of FLUSHPOLICY (which has no structure in front)."""
    return _policy_type(type_)


def encode_template(template: Template) -> bytes:
    """struct xfrm_user_tmpl."""
    return pack(
        c.TEMPLATE,
        pack_address(template.destination),
        _spi(template.spi),
        template.protocol,
        template.family,
        pack_address(template.source),
        template.reqid,
        template.mode,
        template.share,
        template.optional,
        template.authentication_algorithms,
        template.encryption_algorithms,
        template.compression_algorithms,
    )


def encode_migrate(
    selector: Selector,
    direction: Direction,
    migrations: Sequence[Migration],
    *,
    type_: PolicyType = PolicyType.MAIN,
    km_address: KmAddress | None = None,
    encap: Encap | None = None,
    if_id: int = 0,
) -> bytes:
    """struct xfrm_userpolicy_id with MIGRATE, KMADDRESS and ENCAP."""
    out = pack(c.USERPOLICY_ID, encode_selector(selector), 0, direction)
    entries = b"".join(map(_migration, migrations))
    out += pack_attribute(Attribute.MIGRATE, entries)
    if km_address is not None:
        local, remote = km_address.local, km_address.remote
        if local.version != remote.version:
            raise XfrmEncodeError("IKE's addresses must be of one family")
        out += pack_attribute(
            Attribute.KMADDRESS,
            pack(c.KMADDRESS, pack_address(local), pack_address(remote), 0, address_family(local)),
        )
    out += _policy_type(type_)
    if encap is not None:
        out += pack_attribute(Attribute.ENCAP, encode_encap(encap))
    return out + b"".join(_mark_attributes(None, if_id))


def encode_event(event: Event, source: bytes = c.ZERO_ADDRESS) -> bytes:
    """struct xfrm_aevent_id with its attributes (NEWAE)."""
    out = pack(c.AEVENT_ID, _state_id(event.id), source, event.flags, event.reqid)
    if event.replay is not None:
        out += b"".join(_replay_attribute(event.replay, always=True))
    if event.current is not None:
        out += pack_attribute(Attribute.LTIME_VAL, _current(event.current))
    out += b"".join(_thresholds(event.replay_threshold, event.timer_threshold))
    return out + b"".join(_mark_attributes(event.id.mark, event.if_id))


def encode_event_request(state_id: StateId, flags: EventFlag) -> bytes:
    """struct xfrm_aevent_id of GETAE."""
    out = pack(c.AEVENT_ID, _state_id(state_id), pack_address(state_id.source), flags, 0)
    return out + b"".join(_mark_attributes(state_id.mark, 0))


def encode_replay(replay: Replay) -> bytes:
    """REPLAY_ESN_VAL or REPLAY_VAL, as an attribute."""
    return _replay_attribute(replay, always=True)[0]


def encode_default_policy(default: DefaultPolicy) -> bytes:
    """struct xfrm_userpolicy_default."""
    return pack(c.USERPOLICY_DEFAULT, default.inbound, default.forward, default.outbound)


def encode_encap(encap: Encap) -> bytes:
    """struct xfrm_encap_tmpl."""
    return pack(
        c.ENCAP,
        encap.type,
        _port(encap.source_port),
        _port(encap.destination_port),
        pack_address(encap.original_address),
    )


def _migration(migration: Migration) -> bytes:
    old_source, old_destination = migration.old_source, migration.old_destination
    new_source, new_destination = migration.new_source, migration.new_destination
    if (
        old_source.version != old_destination.version
        or new_source.version != new_destination.version
    ):
        raise XfrmEncodeError("a migration's old and new pairs must each be of one family")
    return pack(
        c.MIGRATE,
        pack_address(old_destination),
        pack_address(old_source),
        pack_address(new_destination),
        pack_address(new_source),
        migration.protocol,
        migration.mode,
        0,
        migration.reqid,
        address_family(old_source),
        address_family(new_source),
    )


def _state_id(state_id: StateId) -> bytes:
    return pack(
        c.USERSA_ID,
        pack_address(state_id.destination),
        _spi(state_id.spi),
        state_id.family,
        state_id.protocol,
    )


def _algorithm_name(algorithm: Algorithm) -> bytes:
    name = algorithm.name.encode("ascii", "replace")
    if not name.isascii() or b"?" in name or not 0 < len(name) < 64:
        raise XfrmEncodeError(f"{algorithm.name!r} is no name of a kernel algorithm")
    return name


def _algorithm(algorithm: Algorithm) -> bytes:
    key = algorithm.key.reveal()
    return pack(c.ALGORITHM, _algorithm_name(algorithm), 8 * len(key)) + key


def _algorithm_icv(algorithm: Algorithm) -> bytes:
    key = algorithm.key.reveal()
    head = pack(c.ALGORITHM_ICV, _algorithm_name(algorithm), 8 * len(key), algorithm.icv_bits)
    return head + key


def _replay_attribute(replay: Replay, *, always: bool = False) -> list[bytes]:
    if replay.extended:
        words = replay.bitmap
        head = pack(
            c.REPLAY_ESN,
            len(words),
            replay.oseq,
            replay.seq,
            replay.oseq_hi,
            replay.seq_hi,
            replay.window,
        )
        bitmap = b"".join([pack(c.U32, word) for word in words])
        return [pack_attribute(Attribute.REPLAY_ESN_VAL, head + bitmap)]
    if replay.seq_hi or replay.oseq_hi:
        raise XfrmEncodeError("64-bit sequence numbers need an extended replay state")
    if always or replay.oseq or replay.seq or replay.bitmap[0]:
        value = pack(c.REPLAY, replay.oseq, replay.seq, replay.bitmap[0])
        return [pack_attribute(Attribute.REPLAY_VAL, value)]
    return []


def _thresholds(replay: int | None, timer: int | None) -> list[bytes]:
    out = []
    if replay is not None:
        out.append(pack_attribute(Attribute.REPLAY_THRESH, pack(c.U32, replay)))
    if timer is not None:
        out.append(pack_attribute(Attribute.ETIMER_THRESH, pack(c.U32, timer)))
    return out


def _mark_attributes(mark: Mark | None, if_id: int) -> list[bytes]:
    out = []
    if mark is not None:
        out.append(pack_attribute(Attribute.MARK, pack(c.MARK, mark.value, mark.mask)))
    if if_id:
        out.append(pack_attribute(Attribute.IF_ID, pack(c.U32, if_id)))
    return out


def _policy_type(type_: PolicyType) -> bytes:
    # Without CONFIG_XFRM_SUB_POLICY a kernel knows the main type only, and its absence means it.
    if type_ == PolicyType.MAIN:
        return b""
    return pack_attribute(Attribute.POLICY_TYPE, pack(c.USERPOLICY_TYPE, type_, 0, 0))


def _raw(attributes: Sequence[RawAttribute]) -> list[bytes]:
    return [pack_attribute(number, payload) for number, payload in attributes]


def _limits(lifetime: Lifetime) -> tuple[int, ...]:
    if lifetime == _NO_LIMITS:
        return _UNLIMITED
    counts = (
        lifetime.soft_bytes,
        lifetime.hard_bytes,
        lifetime.soft_packets,
        lifetime.hard_packets,
    )
    return (
        *(XFRM_INF if count is None else count for count in counts),
        lifetime.soft_add_seconds or 0,
        lifetime.hard_add_seconds or 0,
        lifetime.soft_use_seconds or 0,
        lifetime.hard_use_seconds or 0,
    )


def _current(current: CurrentLifetime) -> bytes:
    return pack(
        c.LIFETIME_CURRENT, current.bytes, current.packets, current.add_time, current.use_time
    )


def _port(port: int | None) -> int:
    if port is None:
        return 0
    if not 0 <= port <= 0xFFFF:
        raise XfrmEncodeError(f"port {port} isn't in 0..65535")
    return htons(port)


def _spi(spi: int) -> int:
    if not 0 <= spi <= 0xFFFFFFFF:
        raise XfrmEncodeError(f"SPI {spi:#x} isn't in 0..0xffffffff")
    return htonl(spi)
