"""Layouts against linux/xfrm.h as C lays it out (ctypes follows the platform's C compiler)."""

from __future__ import annotations

import ctypes
import struct
import sys
from ctypes import c_char, c_int, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Any

import pytest
from xfrm_samples import MEANINGS, SUB_POLICY, TRANSPORT_STATE, TUNNEL_STATE

from dsmip_ipsec.xfrm import Policy, State, attributes, encode, messages, structs

Address = c_uint8 * 16


class Selector(ctypes.Structure):
    _fields_ = (
        ("daddr", c_uint32 * 4),
        ("saddr", c_uint32 * 4),
        ("dport", c_uint16),
        ("dport_mask", c_uint16),
        ("sport", c_uint16),
        ("sport_mask", c_uint16),
        ("family", c_uint16),
        ("prefixlen_d", c_uint8),
        ("prefixlen_s", c_uint8),
        ("proto", c_uint8),
        ("ifindex", c_int),
        ("user", c_uint32),
    )


class Id(ctypes.Structure):
    _fields_ = (("daddr", c_uint32 * 4), ("spi", c_uint32), ("proto", c_uint8))


class LifetimeCfg(ctypes.Structure):
    _fields_ = (("limits", c_uint64 * 8),)


class LifetimeCur(ctypes.Structure):
    _fields_ = (("values", c_uint64 * 4),)


class Stats(ctypes.Structure):
    _fields_ = (("replay_window", c_uint32), ("replay", c_uint32), ("integrity_failed", c_uint32))


class UsersaInfo(ctypes.Structure):
    _fields_ = (
        ("sel", Selector),
        ("id", Id),
        ("saddr", c_uint32 * 4),
        ("lft", LifetimeCfg),
        ("curlft", LifetimeCur),
        ("stats", Stats),
        ("seq", c_uint32),
        ("reqid", c_uint32),
        ("family", c_uint16),
        ("mode", c_uint8),
        ("replay_window", c_uint8),
        ("flags", c_uint8),
    )


class UsersaId(ctypes.Structure):
    _fields_ = (
        ("daddr", c_uint32 * 4),
        ("spi", c_uint32),
        ("family", c_uint16),
        ("proto", c_uint8),
    )


class AeventId(ctypes.Structure):
    _fields_ = (
        ("sa_id", UsersaId),
        ("saddr", c_uint32 * 4),
        ("flags", c_uint32),
        ("reqid", c_uint32),
    )


class UserspiInfo(ctypes.Structure):
    _fields_ = (("info", UsersaInfo), ("min", c_uint32), ("max", c_uint32))


class UserpolicyInfo(ctypes.Structure):
    _fields_ = (
        ("sel", Selector),
        ("lft", LifetimeCfg),
        ("curlft", LifetimeCur),
        ("priority", c_uint32),
        ("index", c_uint32),
        ("dir", c_uint8),
        ("action", c_uint8),
        ("flags", c_uint8),
        ("share", c_uint8),
    )


class UserpolicyId(ctypes.Structure):
    _fields_ = (("sel", Selector), ("index", c_uint32), ("dir", c_uint8))


class UserpolicyType(ctypes.Structure):
    _fields_ = (("type", c_uint8), ("reserved1", c_uint16), ("reserved2", c_uint8))


class UserTmpl(ctypes.Structure):
    _fields_ = (
        ("id", Id),
        ("family", c_uint16),
        ("saddr", c_uint32 * 4),
        ("reqid", c_uint32),
        ("mode", c_uint8),
        ("share", c_uint8),
        ("optional", c_uint8),
        ("aalgos", c_uint32),
        ("ealgos", c_uint32),
        ("calgos", c_uint32),
    )


class EncapTmpl(ctypes.Structure):
    _fields_ = (
        ("type", c_uint16),
        ("sport", c_uint16),
        ("dport", c_uint16),
        ("oa", c_uint32 * 4),
    )


class UserAcquire(ctypes.Structure):
    _fields_ = (
        ("id", Id),
        ("saddr", c_uint32 * 4),
        ("sel", Selector),
        ("policy", UserpolicyInfo),
        ("algos", c_uint32 * 3),
        ("seq", c_uint32),
    )


class UserExpire(ctypes.Structure):
    _fields_ = (("state", UsersaInfo), ("hard", c_uint8))


class UserPolexpire(ctypes.Structure):
    _fields_ = (("pol", UserpolicyInfo), ("hard", c_uint8))


class UserReport(ctypes.Structure):
    _fields_ = (("proto", c_uint8), ("sel", Selector))


class UserKmaddress(ctypes.Structure):
    _fields_ = (
        ("local", c_uint32 * 4),
        ("remote", c_uint32 * 4),
        ("reserved", c_uint32),
        ("family", c_uint16),
    )


class UserMigrate(ctypes.Structure):
    _fields_ = (
        ("addresses", c_uint32 * 16),
        ("proto", c_uint8),
        ("mode", c_uint8),
        ("reserved", c_uint16),
        ("reqid", c_uint32),
        ("old_family", c_uint16),
        ("new_family", c_uint16),
    )


class UserMapping(ctypes.Structure):
    _fields_ = (
        ("id", UsersaId),
        ("reqid", c_uint32),
        ("old_saddr", c_uint32 * 4),
        ("new_saddr", c_uint32 * 4),
        ("ports", c_uint16 * 2),
    )


class AddressFilter(ctypes.Structure):
    _fields_ = (
        ("saddr", c_uint32 * 4),
        ("daddr", c_uint32 * 4),
        ("family", c_uint16),
        ("splen", c_uint8),
        ("dplen", c_uint8),
    )


class Algo(ctypes.Structure):
    _fields_ = (("name", c_char * 64), ("key_len", c_uint32))


class AlgoAead(ctypes.Structure):
    _fields_ = (("name", c_char * 64), ("key_len", c_uint32), ("icv_len", c_uint32))


@pytest.mark.parametrize(
    ("layout", "structure"),
    [
        (structs.SELECTOR, Selector),
        (structs.USERSA_INFO, UsersaInfo),
        (structs.USERSA_ID, UsersaId),
        (structs.AEVENT_ID, AeventId),
        (structs.USERPOLICY_INFO, UserpolicyInfo),
        (structs.USERPOLICY_ID, UserpolicyId),
        (structs.USERPOLICY_TYPE, UserpolicyType),
        (structs.TEMPLATE, UserTmpl),
        (structs.ENCAP, EncapTmpl),
        (structs.ACQUIRE, UserAcquire),
        (structs.EXPIRE, UserExpire),
        (structs.POLEXPIRE, UserPolexpire),
        (structs.REPORT, UserReport),
        (structs.KMADDRESS, UserKmaddress),
        (structs.MIGRATE, UserMigrate),
        (structs.MAPPING, UserMapping),
        (structs.ADDRESS_FILTER, AddressFilter),
        (structs.ALGORITHM, Algo),
        (structs.ALGORITHM_ICV, AlgoAead),
    ],
)
def test_sizes_are_those_of_c(layout: struct.Struct, structure: type[ctypes.Structure]) -> None:
    assert layout.size == ctypes.sizeof(structure)


@pytest.mark.parametrize(
    ("message", "structure"),
    [
        (messages.xfrm_usersa_info, UsersaInfo),
        (messages.xfrm_usersa_id, UsersaId),
        (messages.xfrm_userspi_info, UserspiInfo),
        (messages.xfrm_userpolicy_info, UserpolicyInfo),
        (messages.xfrm_userpolicy_id, UserpolicyId),
        (messages.xfrm_user_acquire, UserAcquire),
        (messages.xfrm_user_expire, UserExpire),
        (messages.xfrm_user_polexpire, UserPolexpire),
        (messages.xfrm_aevent_id, AeventId),
        (messages.xfrm_user_report, UserReport),
        (messages.xfrm_user_mapping, UserMapping),
        (attributes.xfrm_attributes.encap, EncapTmpl),
        (attributes.xfrm_attributes.kmaddress, UserKmaddress),
        (attributes.xfrm_attributes.policy_type, UserpolicyType),
        (attributes.xfrm_attributes.address_filter, AddressFilter),
    ],
)
def test_nlmsg_fields_have_the_sizes_of_c(message: Any, structure: type[ctypes.Structure]) -> None:
    size = sum(struct.calcsize(layout) for _, layout in message.fields)
    assert size == ctypes.sizeof(structure)


def _be(value: int, octets: int) -> int:
    """What a field that C declares big-endian reads as on this machine."""
    return int.from_bytes(value.to_bytes(octets, "big"), sys.byteorder)


def test_state_fields_stand_where_c_has_them() -> None:
    state = MEANINGS[TUNNEL_STATE]
    assert isinstance(state, State)
    info = UsersaInfo.from_buffer_copy(encode.encode_state(state))
    assert bytes(info.id.daddr) == bytes([192, 0, 2, 2]) + bytes(12)
    assert bytes(info.saddr) == bytes([192, 0, 2, 1]) + bytes(12)
    assert (info.id.spi, info.id.proto) == (_be(0xC0000001, 4), 50)
    assert (info.reqid, info.family, info.mode, info.replay_window) == (4242, 2, 1, 32)
    assert (info.flags, info.sel.family) == (0x20, 0)
    assert list(info.lft.limits) == [2**64 - 1, 1_000_000, 2**64 - 1, 2**64 - 1, 0, 3600, 0, 0]


def test_an_extended_replay_window_is_told_by_its_attribute_alone() -> None:
    state = MEANINGS[TRANSPORT_STATE]
    assert isinstance(state, State)
    info = UsersaInfo.from_buffer_copy(encode.encode_state(state))
    assert (info.replay_window, info.flags) == (0, 0x80)  # the kernel wants 0 beside ESN_VAL


def test_policy_fields_stand_where_c_has_them() -> None:
    policy = MEANINGS[SUB_POLICY]
    assert isinstance(policy, Policy)
    data = encode.encode_policy(policy)
    info = UserpolicyInfo.from_buffer_copy(data)
    assert (info.priority, info.index, info.dir, info.action) == (77, 0, 0, 0)
    selector = info.sel
    assert (selector.family, selector.prefixlen_s, selector.prefixlen_d) == (10, 128, 0)
    assert (selector.proto, selector.sport, selector.sport_mask) == (135, _be(5, 2), 0xFFFF)
    assert (selector.dport, selector.dport_mask) == (0, 0)
    template = UserTmpl.from_buffer_copy(encode.encode_template(policy.templates[0]))
    assert bytes(template.id.daddr) == bytes([192, 0, 2, 2]) + bytes(12)
    assert (template.id.proto, template.family, template.reqid) == (50, 2, 4242)
    assert (template.mode, template.optional, template.aalgos) == (1, 0, 0xFFFFFFFF)
    assert UserTmpl.from_buffer_copy(encode.encode_template(policy.templates[1])).optional == 1
