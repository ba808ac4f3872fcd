"""The home agent's binding cache (RFC 6275 §9.1, §10.1; RFC 5555 §2.3, §4.5).

Keyed by IPv6 home address, with an index by IPv4 home address: "two binding cache entries" for
one binding update, which can only live and die together (RFC 5555 §4.4.2.1).

A home registration that was deleted stays for MAX_DELETE_BCE_TIMEOUT as a *tombstone*, so that a
delayed binding update can't bring it back (RFC 6275 §10.3.2).

Expiry is a heap with at most one useful item per entry: refreshing a binding only moves a time in
the entry, and the heap item, when its own time comes, is put back at the entry's. So a refresh
costs no heap operation, and 100 000 bindings cost a refresh no more than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.mobility.types import Binding

# The heap may hold this many items more than twice the number of entries before it is rebuilt
# (items become useless when an entry goes, or is given an earlier time).
_HEAP_SLACK = 64


class BindingCacheEntry:
    """What the home agent keeps for a home address.

    ``binding`` is None for a tombstone. ``sequence`` is that of the last binding update that
    passed RFC 6275 §9.5.1, whether it was then accepted or not. ``deadline`` is when the binding
    expires, or the tombstone goes.
    """

    __slots__ = ("binding", "deadline", "home_address", "queued", "sequence")

    def __init__(
        self, home_address: IPv6Address, binding: Binding | None, sequence: int, deadline: float
    ) -> None:
        self.home_address = home_address
        self.binding = binding
        self.sequence = sequence
        self.deadline = deadline
        self.queued = deadline  # time of this entry's one useful heap item, never after deadline

    def __repr__(self) -> str:
        return (
            f"BindingCacheEntry({self.home_address}, sequence={self.sequence}, "
            f"deadline={self.deadline}, binding={self.binding!r})"
        )


class BindingCache:
    """A mapping from IPv6 home address to :class:`BindingCacheEntry`, ordered by expiry.

    ``len()`` and iteration are over bindings in force; tombstones don't count.
    """

    __slots__ = ("_entries", "_heap", "_ipv4", "_live")

    def __init__(self) -> None:
        # Keyed by int: hashing and comparing IPv6Address objects is several times slower.
        self._entries: dict[int, BindingCacheEntry] = {}
        self._ipv4: dict[int, int] = {}
        self._heap: list[tuple[float, int]] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def __iter__(self) -> Iterator[Binding]:
        for entry in self._entries.values():
            if entry.binding is not None:
                yield entry.binding

    def __contains__(self, home_address: object) -> bool:
        return isinstance(home_address, IPv6Address) and self.get(home_address) is not None

    def entry(self, home_address: IPv6Address) -> BindingCacheEntry | None:
        """The entry of a home address, be it a binding or a tombstone."""
        return self._entries.get(int(home_address))

    def get(self, home_address: IPv6Address) -> Binding | None:
        """The binding in force for an IPv6 home address."""
        entry = self._entries.get(int(home_address))
        return None if entry is None else entry.binding

    def get_ipv4(self, home_address: IPv4Address) -> Binding | None:
        """The binding in force for an IPv4 home address (RFC 5555 §2.3)."""
        key = self._ipv4.get(int(home_address))
        return None if key is None else self._entries[key].binding

    def put(self, binding: Binding) -> None:
        """Create or replace the entry of ``binding.home_address`` (RFC 5555 §4.4.2.1: the new
        message replaces everything the old one had set)."""
        key = int(binding.home_address)
        entry = self._entries.get(key)
        if entry is None:
            entry = BindingCacheEntry(
                binding.home_address, binding, binding.sequence, binding.expires_at
            )
            self._entries[key] = entry
            self._live += 1
            heappush(self._heap, (entry.queued, key))
            if binding.ipv4_home_address is not None:
                self._ipv4[int(binding.ipv4_home_address)] = key
            return
        old = entry.binding
        if old is None:
            self._live += 1
            old_ipv4 = None
        else:
            old_ipv4 = old.ipv4_home_address
        if binding.ipv4_home_address is not old_ipv4:
            if old_ipv4 is not None:
                self._ipv4.pop(int(old_ipv4), None)
            if binding.ipv4_home_address is not None:
                self._ipv4[int(binding.ipv4_home_address)] = key
        entry.binding = binding
        entry.sequence = binding.sequence
        self._reschedule(key, entry, binding.expires_at)

    def bury(self, home_address: IPv6Address, until: float) -> Binding | None:
        """Turn a binding into a tombstone that goes at ``until``. Returns the binding it was."""
        key = int(home_address)
        entry = self._entries.get(key)
        if entry is None:
            return None
        old = entry.binding
        if old is not None:
            self._forget(old)
            entry.binding = None
        self._reschedule(key, entry, until)
        return old

    def remove(self, home_address: IPv6Address) -> None:
        """Forget a home address at once, tombstone and all."""
        entry = self._entries.pop(int(home_address), None)
        if entry is not None and entry.binding is not None:
            self._forget(entry.binding)

    def expire(self, now: float) -> list[Binding]:
        """Remove what is due at ``now``. Returns the bindings among it, oldest deadline first."""
        expired: list[Binding] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            queued, key = heappop(heap)
            entry = self._entries.get(key)
            if entry is None or entry.queued != queued:
                continue  # the entry has gone, or another item stands for it
            if entry.deadline > now:
                entry.queued = entry.deadline
                heappush(heap, (entry.queued, key))
                continue
            del self._entries[key]
            if entry.binding is not None:
                self._forget(entry.binding)
                expired.append(entry.binding)
        return expired

    def next_deadline(self) -> float | None:
        """When :meth:`expire` should be called next (perhaps to find nothing), None if never."""
        return self._heap[0][0] if self._heap else None

    def _forget(self, binding: Binding) -> None:
        self._live -= 1
        if binding.ipv4_home_address is not None:
            self._ipv4.pop(int(binding.ipv4_home_address), None)

    def _reschedule(self, key: int, entry: BindingCacheEntry, deadline: float) -> None:
        entry.deadline = deadline
        if deadline >= entry.queued:
            return
        entry.queued = deadline
        if len(self._heap) > 2 * len(self._entries) + _HEAP_SLACK:
            self._heap = [(other.queued, k) for k, other in self._entries.items()]
            heapify(self._heap)
        else:
            heappush(self._heap, (deadline, key))
