"""Tokens that carry what kernel ESP would lose.

RFC 5555 §5.2.1 wants V4ADDR and the port Z "passed with the packet" through IPsec processing, and
RFC 5555 §5.1 wants binding updates told apart from other packets after it. What the kernel does
pass is a number: a 32-bit socket mark, or a 20-bit IPv6 flow label. A :class:`TokenTable` issues
such numbers for values that it keeps, and gives each value back once.

A token means nothing to anyone who guesses it: it is drawn at random, is good for one use and for
a short time. Its fixed bits (``pattern`` under ``pattern_mask``) let one routing rule, such as
``ip -6 rule add fwmark PATTERN/PATTERN_MASK table N``, catch every token and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from dsmip_ipsec.errors import MobilityError

MARK_BITS = 32
FLOW_LABEL_BITS = 20

Value = TypeVar("Value")


class TokenTable(Generic[Value]):
    """Single-use, unguessable, expiring tokens for values of one type.

    ``random_bits(n)`` gives an integer of ``n`` random bits; hand in ``secrets.randbits``.
    ``lifetime`` is in seconds. ``capacity`` bounds the table: when it is full the oldest token is
    given up, so that a flood of packets costs its own oldest ones and never blocks. ``issued``,
    ``redeemed``, ``unknown``, ``expired`` and ``evicted`` count. ``unknown`` are tokens that were
    never issued or were used before.

    Raises :class:`MobilityError` when pattern, width and capacity don't fit together.
    """

    __slots__ = (
        "_capacity",
        "_entries",
        "_free_bits",
        "_lifetime",
        "_pattern",
        "_pattern_mask",
        "_random_bits",
        "_width",
        "evicted",
        "expired",
        "issued",
        "redeemed",
        "unknown",
    )

    def __init__(
        self,
        random_bits: Callable[[int], int],
        *,
        width: int = MARK_BITS,
        pattern: int = 0,
        pattern_mask: int = 0,
        lifetime: float = 2.0,
        capacity: int = 16384,
    ) -> None:
        space = (1 << width) - 1
        if pattern_mask & ~space or pattern & ~pattern_mask:
            raise MobilityError(
                f"token pattern {pattern:#x}/{pattern_mask:#x} doesn't fit into {width} bits",
                hint="set bits of the pattern only where its mask has them, within the width",
            )
        free_bits = tuple(bit for bit in range(width) if not pattern_mask >> bit & 1)
        # Half empty at least, so that drawing an unused number takes two attempts on average.
        if capacity < 1 or 2 * capacity > 1 << len(free_bits):
            raise MobilityError(
                f"a token table of {capacity} doesn't fit into {len(free_bits)} random bits",
                hint="use a narrower mask or a smaller capacity (at most half of the numbers)",
            )
        if lifetime <= 0:
            raise MobilityError(
                f"a token can't live for {lifetime} s", hint="give a lifetime above zero"
            )
        self._random_bits = random_bits
        self._width = width
        self._pattern = pattern
        self._pattern_mask = pattern_mask
        self._free_bits = len(free_bits)
        self._lifetime = lifetime
        self._capacity = capacity
        # Token -> (deadline, value), in order of issue, which is also the order of deadlines.
        self._entries: OrderedDict[int, tuple[float, Value]] = OrderedDict()
        self.issued = 0
        self.redeemed = 0
        self.unknown = 0
        self.expired = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:  # tokens are secrets of a kind: no numbers here
        return f"TokenTable({len(self._entries)} of {self._capacity}, {self._width} bits)"

    def matches(self, number: int) -> bool:
        """True when ``number`` has the fixed bits of this table's tokens."""
        return number & self._pattern_mask == self._pattern and not number >> self._width

    def issue(self, value: Value, now: float) -> int:
        """A new token for ``value``, never zero, unlike every other that is in force."""
        self.expire(now)
        if len(self._entries) >= self._capacity:
            self._entries.popitem(last=False)
            self.evicted += 1
        while True:
            token = self._spread(self._random_bits(self._free_bits))
            if token and token not in self._entries:
                break
        self._entries[token] = (now + self._lifetime, value)
        self.issued += 1
        return token

    def redeem(self, token: int, now: float) -> Value | None:
        """The value of ``token``, once; None when it is unknown, used or expired."""
        entry = self._entries.pop(token, None)
        if entry is None:
            self.unknown += 1
            return None
        deadline, value = entry
        if deadline <= now:
            self.expired += 1
            return None
        self.redeemed += 1
        return value

    def next_deadline(self) -> float | None:
        """When the oldest token expires, None without tokens. Nothing has to be done then:
        :meth:`issue` clears away what is due."""
        for deadline, _ in self._entries.values():
            return deadline
        return None

    def expire(self, now: float) -> None:
        """Give up every token whose time is over; ``expired`` counts them."""
        entries = self._entries
        while entries:
            token = next(iter(entries))
            if entries[token][0] > now:
                return
            del entries[token]
            self.expired += 1

    def _spread(self, bits: int) -> int:
        """Put random bits into the places that the pattern leaves free."""
        mask = self._pattern_mask
        if not mask:
            return bits
        token = self._pattern
        place = 1
        while bits:
            if not mask & place:
                if bits & 1:
                    token |= place
                bits >>= 1
            place <<= 1
        return token
