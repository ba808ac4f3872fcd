"""When a home agent sends mobile prefix advertisements (RFC 6275 §10.6.2).

Every mobile node with a binding is in one of these states::

    state       what happens                                  then
    ---------   -------------------------------------------   -----------------------------------
    QUIET       MaxMobPfxAdvInterval without advertisement    SCHEDULED
                prefixes changed                              SCHEDULED, after RAND_ADV_DELAY
    SCHEDULED   its time                                      sent; UNANSWERED
    UNANSWERED  PREFIX_ADV_TIMEOUT, doubled each time         sent again, PREFIX_ADV_RETRIES times
                ... and after the last of them                GIVEN_UP
                prefixes changed                              SCHEDULED (with all prefixes)
    GIVEN_UP    binding update                                SCHEDULED, at once
    any         mobile prefix solicitation (acknowledges)     answered at once; QUIET
                binding gone                                  forgotten

An advertisement is made when it is sent, of all prefixes there are then. So one that waits is
always replaced by a newer one, and what an unacknowledged one said is in the next.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from ipaddress import IPv6Address

from dsmip_ipsec.mobility.constants import (
    MAX_MOB_PFX_ADV_INTERVAL,
    MIN_MOB_PFX_ADV_INTERVAL,
    PREFIX_ADV_RETRIES,
    PREFIX_ADV_TIMEOUT,
)


class PrefixAdvertising:
    """The schedule of all mobile nodes. ``random_bits(n)`` gives an integer of n random bits."""

    __slots__ = ("_at", "_given_up", "_heap", "_random_bits", "_scheduled", "_sent")

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self._random_bits = random_bits
        self._at: dict[int, float] = {}  # when to send next, by home address
        self._heap: list[tuple[float, int]] = []  # of _at, and of times that hold no longer
        self._sent: dict[int, int] = {}  # transmissions since the last acknowledgement
        self._scheduled: set[int] = set()
        self._given_up: set[int] = set()

    def began(self, home_address: IPv6Address, now: float) -> None:
        """A binding was created."""
        self._set(int(home_address), now + MAX_MOB_PFX_ADV_INTERVAL)

    def refreshed(self, home_address: IPv6Address, now: float) -> None:
        """A binding update came: if advertising was given up, "the home agent SHOULD begin
        transmitting the unsolicited Advertisement again"."""
        if self._given_up and int(home_address) in self._given_up:
            self._given_up.discard(int(home_address))
            self._set(int(home_address), now)

    def ended(self, home_address: IPv6Address) -> None:
        """The binding is gone: "cancel any scheduled advertisements to the mobile node"."""
        key = int(home_address)
        self._at.pop(key, None)
        self._settle(key)

    def changed(self, home_address: IPv6Address, preferred: float, now: float) -> None:
        """Prefixes changed that matter to this mobile node, whose own prefix stays preferred for
        ``preferred`` seconds. One that is scheduled already stays where it is."""
        key = int(home_address)
        if key in self._scheduled:
            return
        self._settle(key)
        self._scheduled.add(key)
        longest = min(MAX_MOB_PFX_ADV_INTERVAL, int(max(0.0, min(preferred, 1e9))))
        span = abs(longest - MIN_MOB_PFX_ADV_INTERVAL)
        delay = MIN_MOB_PFX_ADV_INTERVAL + (self._random_bits(32) % span if span else 0)
        self._set(key, now + delay)

    def acknowledged(self, home_address: IPv6Address, now: float) -> None:
        """A solicitation came, and is answered. (Without a binding, nothing is remembered.)"""
        key = int(home_address)
        if key in self._at or key in self._given_up:
            self._settle(key)
            self._set(key, now + MAX_MOB_PFX_ADV_INTERVAL)

    def due(self, now: float) -> list[IPv6Address]:
        """The home addresses to send an advertisement to at ``now``."""
        send: list[IPv6Address] = []
        while self._heap and self._heap[0][0] <= now:
            at, key = heappop(self._heap)
            if self._at.get(key) != at:
                continue
            sent = self._sent.get(key, 0)
            if sent > PREFIX_ADV_RETRIES:
                del self._at[key], self._sent[key]
                self._given_up.add(key)
                continue
            send.append(IPv6Address(key))
            self._scheduled.discard(key)
            self._sent[key] = sent + 1
            self._set(key, now + PREFIX_ADV_TIMEOUT * 2**sent)
        return send

    def next_deadline(self) -> float | None:
        """When to call :meth:`due` next, None if never."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _settle(self, key: int) -> None:
        self._sent.pop(key, None)
        self._scheduled.discard(key)
        self._given_up.discard(key)

    def _set(self, key: int, at: float) -> None:
        self._at[key] = at
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = sorted((when, each) for each, when in self._at.items())
        else:
            heappush(self._heap, (at, key))
