"""Which ICMPv6 messages a raw socket hears (RFC 3542 §3.2)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection

# linux/icmpv6.h: not in Python's socket module.
_ICMPV6_FILTER = 1


def hear_only(raw: socket.socket, types: Collection[int]) -> None:
    """Let only messages of ``types`` (0 to 255) through to ``raw`` from now on. Raises OSError."""
    blocked = [0xFFFFFFFF] * 8  # a bit set for each type that is not to be passed
    for kind in types:
        blocked[kind >> 5] &= ~(1 << (kind & 31))
    raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *blocked))
