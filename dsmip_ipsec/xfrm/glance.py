"""What a notification is about, without decoding all of it.

A listener who knows an object already needs little of what is told of it: what it is known by, and
whether the rest is as it was. Comparing octets takes a tenth of the time that views of them take.
Malformed octets raise XfrmDecodeError, as they do in decode.py.
"""

from __future__ import annotations

from functools import lru_cache
from socket import ntohl
from struct import Struct
from typing import NamedTuple

from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import Attribute, PolicyType
from dsmip_ipsec.xfrm.decode import decode_encap
from dsmip_ipsec.xfrm.structs import unpack, unpack_address
from dsmip_ipsec.xfrm.types import Address, Encap

# Of struct xfrm_usersa_info: daddr, SPI and protocol, saddr; reqid and family.
_ENDS = Struct("=16sIB3x16s")
_OWNER = Struct("=IH")
_ENDS_AT, _OWNER_AT = 56, 208
# What neither the outer header nor traffic changes: selector; SPI and protocol; lifetimes; reqid;
# mode, replay window, flags.
_LASTING = ((0, 56), (72, 80), (96, 160), (208, 212), (214, 217))
_END = c.USERSA_INFO.size
# Counters, times and what repeats the header; ENCAP belongs to the outer header.
_PASSING = frozenset(
    {
        Attribute.ENCAP,
        Attribute.LTIME_VAL,
        Attribute.LASTUSED,
        Attribute.REPLAY_VAL,
        Attribute.SRCADDR,
        Attribute.PAD,
    }
)
# Of struct xfrm_userpolicy_info: selector and lifetimes; priority; direction, action, flags, share.
_POLICY_LASTING = ((0, 120), (152, 156), (160, 164))
_POLICY_END = c.USERPOLICY_INFO.size
_MAIN = c.USERPOLICY_TYPE.pack(PolicyType.MAIN, 0, 0)


class StateGlance(NamedTuple):
    """Where a state's outer header leads, and in ``rest`` all octets that stay when it moves
    (keys among them: not to be printed)."""

    destination: Address
    spi: int
    protocol: int
    source: Address
    reqid: int
    encap: Encap | None
    rest: bytes

    def __repr__(self) -> str:
        return f"<StateGlance spi {self.spi:#010x} to {self.destination}>"


class GoneGlance(NamedTuple):
    """What a deleted state was known by, and whose it was."""

    destination: Address
    spi: int
    protocol: int
    reqid: int


def state_reqid(octets: bytes) -> int:
    """The reqid in a NEWSA or UPDSA."""
    unpack(c.USERSA_INFO, octets, "an SA")
    reqid, _ = _OWNER.unpack_from(octets, _OWNER_AT)
    return int(reqid)


def glance_at_state(octets: bytes) -> StateGlance:
    """NEWSA, UPDSA."""
    unpack(c.USERSA_INFO, octets, "an SA")
    daddr, spi, protocol, saddr = _ENDS.unpack_from(octets, _ENDS_AT)
    reqid, family = _OWNER.unpack_from(octets, _OWNER_AT)
    rest = [octets[start:end] for start, end in _LASTING]
    encap = None
    for number, value in c.iterate_attributes(octets, _END):
        if number == Attribute.ENCAP:
            encap = _encap(value)
        elif number == Attribute.REPLAY_ESN_VAL:
            rest += (c.NLATTR.pack(len(value), number), value[:4], value[20:24])  # its sizes
        elif number not in _PASSING:
            rest += (c.NLATTR.pack(len(value), number), value)
    return StateGlance(
        unpack_address(daddr, family), ntohl(spi), protocol, unpack_address(saddr, family),
        reqid, encap, b"".join(rest),
    )  # fmt: skip


def glance_at_deletion(octets: bytes) -> GoneGlance | None:
    """DELSA; None if the kernel doesn't say whose the state was."""
    daddr, spi, family, protocol = unpack(c.USERSA_ID, octets, "an SA's identity")
    for number, value in c.iterate_attributes(octets, c.USERSA_ID.size):
        if number == Attribute.SA:
            return GoneGlance(
                unpack_address(daddr, family), ntohl(spi), protocol, state_reqid(value)
            )
    return None


def lasting_policy(octets: bytes) -> bytes | None:
    """Of NEWPOLICY and UPDPOLICY, request or notification, the octets that the kernel keeps as they
    were given; None: there is a mark or something else that not every policy has."""
    unpack(c.USERPOLICY_INFO, octets, "a policy")
    rest = [octets[start:end] for start, end in _POLICY_LASTING]
    for number, value in c.iterate_attributes(octets, _POLICY_END):
        if number == Attribute.TMPL:
            rest.append(value)
        elif number != Attribute.POLICY_TYPE or value != _MAIN:
            return None
    return b"".join(rest)


# Not of more than ports and addresses, and there are few of them.
_encap = lru_cache(maxsize=4096)(decode_encap)
