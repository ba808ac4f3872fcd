"""IPv4 prefixes for mobile routers that ask for one (RFC 5555 §3.1.1 P, §4.5)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Network, IPv6Address

from dsmip_ipsec.mobility.constants import MAX_LEASED_IPV4_PREFIXES


class IPv4PrefixPool:
    """Prefixes cut out of larger networks as they are asked for, and put together again.

    A lease belongs to an IPv6 home address and lives as long as its binding. ``shortest``: no
    prefix shorter than this is given out, whatever is asked for.
    """

    __slots__ = ("_free", "_leases", "_roots", "_shortest")

    def __init__(self, networks: Sequence[IPv4Network], shortest: int) -> None:
        self._roots = frozenset(networks)
        self._free: set[IPv4Network] = set(networks)
        self._shortest = shortest
        self._leases: dict[int, list[IPv4Network]] = {}

    def __len__(self) -> int:
        return sum(len(leased) for leased in self._leases.values())

    def leases(self, home_address: IPv6Address) -> tuple[IPv4Network, ...]:
        """The prefixes leased to a home address, in the order in which they were."""
        return tuple(self._leases.get(int(home_address), ()))

    def allocate(self, home_address: IPv6Address, length: int) -> IPv4Network | None:
        """One more prefix of ``length``, else the next smaller one there is (§4.5: "of any
        length"); None when there is none, or enough were given to this home address."""
        if len(self.leases(home_address)) >= MAX_LEASED_IPV4_PREFIXES or not self._free:
            return None
        length = max(length, self._shortest)
        # The tightest block that is large enough; failing that, the largest one there is.
        enough = [block for block in self._free if block.prefixlen <= length]
        block = (
            max(enough, key=lambda free: (free.prefixlen, -int(free.network_address)))
            if enough
            else min(self._free, key=lambda free: (free.prefixlen, int(free.network_address)))
        )
        self._free.discard(block)
        while block.prefixlen < length:
            block, other = block.subnets()
            self._free.add(other)
        self._leases.setdefault(int(home_address), []).append(block)
        return block

    def keep(self, home_address: IPv6Address, wanted: Collection[IPv4Network] = ()) -> None:
        """End the leases of a home address, except those of ``wanted`` (RFC 5555 §4.4.2.1: a
        binding update replaces what the one before had set)."""
        leased = self._leases.pop(int(home_address), None)
        if leased is None:
            return
        kept = [prefix for prefix in leased if prefix in wanted]
        if kept:
            self._leases[int(home_address)] = kept
        for prefix in leased:
            if prefix not in wanted:
                self._give_back(prefix)

    def _give_back(self, block: IPv4Network) -> None:
        while block not in self._roots:
            whole = block.supernet()
            first, second = whole.subnets()
            other = second if block == first else first
            if other not in self._free:
                break
            self._free.discard(other)
            block = whole
        self._free.add(block)
