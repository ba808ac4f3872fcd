"""Layouts of the C structures of linux/xfrm.h on 64-bit kernels, and primitives to fill them.

Everything is in native byte order with explicit padding; fields that C declares big-endian
(ports, SPIs) pass through htons/htonl, their own inverses. Sizes and offsets are checked against
the C layout in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6
from typing import Any

from dsmip_ipsec.xfrm.constants import NLA_TYPE_MASK
from dsmip_ipsec.xfrm.errors import XfrmDecodeError, XfrmEncodeError
from dsmip_ipsec.xfrm.types import Address, Network, RawAttribute

NLMSGHDR = struct.Struct("=IHHII")
NLATTR = struct.Struct("=HH")

SELECTOR = struct.Struct("=16s16sHHHHHBBB3xiI")
LIFETIME_CURRENT = struct.Struct("=4Q")
USERSA_INFO = struct.Struct("=56s16sIB3x16s8Q4Q3IIIHBBB7x")
USERSA_ID = struct.Struct("=16sIHBx")
USERSPI_RANGE = struct.Struct("=II")
USERSA_FLUSH = struct.Struct("=B")
AEVENT_ID = struct.Struct("=24s16sII")
USERPOLICY_INFO = struct.Struct("=56s8Q4QIIBBBB4x")
USERPOLICY_ID = struct.Struct("=56sIB3x")
USERPOLICY_TYPE = struct.Struct("=BxHBx")
USERPOLICY_DEFAULT = struct.Struct("=BBB")
TEMPLATE = struct.Struct("=16sIB3xH2x16sIBBBxIII")
ACQUIRE = struct.Struct("=16sIB3x16s56s168sIIII")
EXPIRE = struct.Struct("=224sB7x")
POLEXPIRE = struct.Struct("=168sB7x")
REPORT = struct.Struct("=B3x56s")
MAPPING = struct.Struct("=24sI16s16sHH")
MIGRATE = struct.Struct("=16s16s16s16sBBHIHH")
KMADDRESS = struct.Struct("=16s16sIH2x")
ENCAP = struct.Struct("=HHH2x16s")
ALGORITHM = struct.Struct("=64sI")
ALGORITHM_ICV = struct.Struct("=64sII")
REPLAY = struct.Struct("=III")
REPLAY_ESN = struct.Struct("=IIIIII")
MARK = struct.Struct("=II")
ADDRESS_FILTER = struct.Struct("=16s16sHBB")
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")
PAIR32 = struct.Struct("=II")
SPDINFO = struct.Struct("=6I")

_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")
ZERO_ADDRESS = bytes(16)


def pack(layout: struct.Struct, *values: Any) -> bytes:
    """``layout.pack`` whose errors are ours: a value out of its field's range."""
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise XfrmEncodeError(f"a value doesn't fit its field: {error}") from None


def unpack(layout: struct.Struct, data: bytes, what: str, offset: int = 0) -> tuple[Any, ...]:
    """``layout.unpack_from`` whose errors are ours: the structure runs past the buffer."""
    if len(data) - offset < layout.size:
        raise XfrmDecodeError(
            f"{what} needs {layout.size} octets, {max(len(data) - offset, 0)} are left",
            offset=offset,
        )
    return layout.unpack_from(data, offset)


def pack_attribute(number: int, payload: bytes) -> bytes:
    """One attribute with its header, padded to four octets."""
    length = len(payload) + 4
    if length > 0xFFFF:
        raise XfrmEncodeError(f"attribute {number} is too long: {length} octets")
    return NLATTR.pack(length, number) + payload + _PADDING[-length & 3]


def iterate_attributes(data: bytes, offset: int = 0) -> Iterator[RawAttribute]:
    """Attributes in the order they stand, without their flag bits."""
    end = len(data)
    while end - offset >= 4:
        length, number = NLATTR.unpack_from(data, offset)
        if not 4 <= length <= end - offset:
            raise XfrmDecodeError(
                f"attribute {number & NLA_TYPE_MASK} says it has {length} octets, "
                f"{end - offset} are left",
                offset=offset,
            )
        yield number & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def pack_address(address: Address | None) -> bytes:
    """xfrm_address_t: 16 octets, an IPv4 address zero-padded (the kernel compares all 16)."""
    if address is None:
        return ZERO_ADDRESS
    return address.packed.ljust(16, b"\0")


@lru_cache(maxsize=8192)
def unpack_address(raw: bytes, family: int) -> Address:
    """The address in the 16 octets of an xfrm_address_t. An IPv4 address is the first four: the
    others may be stale (strongSwan leaves some after a change of family)."""
    if family == AF_INET:
        return IPv4Address(raw[:4])
    if family == AF_INET6:
        return IPv6Address(raw[:16])
    raise XfrmDecodeError(f"address family {family} is neither IPv4 nor IPv6")


@lru_cache(maxsize=8192)
def unpack_network(raw: bytes, family: int, prefix_length: int) -> tuple[Network, int]:
    """The network, and the address bits behind its prefix."""
    value = int(unpack_address(raw, family))
    width = 32 if family == AF_INET else 128
    if prefix_length > width:
        raise XfrmDecodeError(f"prefix length {prefix_length} is above {width}")
    host_bits = value & ((1 << (width - prefix_length)) - 1)
    if family == AF_INET:
        return IPv4Network((value - host_bits, prefix_length)), host_bits
    return IPv6Network((value - host_bits, prefix_length)), host_bits


@lru_cache(maxsize=8192)
def pack_network(network: Network, host_bits: int) -> bytes:
    """xfrm_address_t of a network and the bits behind its prefix."""
    if not 0 <= host_bits <= int(network.hostmask):
        raise XfrmEncodeError(f"host bits {host_bits:#x} don't fit behind {network}")
    width = 4 if network.version == 4 else 16
    return (int(network.network_address) | host_bits).to_bytes(width, "big").ljust(16, b"\0")
