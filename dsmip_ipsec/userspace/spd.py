"""The SPD: policies, found by selector and priority (RFC 4301 §4.4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsmip_ipsec.ipsec.esp_packet import PacketView
from dsmip_ipsec.ipsec.model import Direction, Policy, Selector
from dsmip_ipsec.wire.ip import IPPROTO_MH


class HiddenByFragment(Exception):
    """A policy asks for what this fragment doesn't show: whether it matches can't be told.

    Internal: the engine makes a drop of it, for letting the packet pass by a weaker policy could
    mean to let it pass in clear.
    """


def matches(selector: Selector, seen: PacketView) -> bool:
    """Whether a packet is one of those that ``selector`` means. Raises HiddenByFragment."""
    if seen.version != selector.source.version:
        return False
    if seen.source not in selector.source or seen.destination not in selector.destination:
        return False
    if not selector.protocol:
        return True
    if seen.protocol is None:
        raise HiddenByFragment
    if seen.protocol != selector.protocol:
        return False
    wanted = selector.mobility_header_type
    if wanted is None:
        return True
    if seen.mobility_header_type is None and seen.protocol == IPPROTO_MH and seen.fragment:
        raise HiddenByFragment
    return seen.mobility_header_type == wanted.value


class PolicyDatabase:
    """Policies by what the kernel knows them by: direction and selector. Of those that match,
    the lowest priority number wins; among equals, the one that was there first."""

    def __init__(self) -> None:
        self._policies: dict[Direction, dict[Selector, Policy]] = {
            direction: {} for direction in Direction
        }
        self._ordered: dict[Direction, list[Policy]] = {direction: [] for direction in Direction}

    def put(self, policy: Policy) -> None:
        """Add a policy, or replace the one with its key at once."""
        self._policies[policy.direction][policy.selector] = policy
        self._sort(policy.direction)

    def remove(self, key: tuple[Direction, Selector]) -> bool:
        """Take a policy away; False if there is none."""
        direction, selector = key
        found = self._policies[direction].pop(selector, None) is not None
        self._sort(direction)
        return found

    def replace(self, policies: Iterable[Policy]) -> None:
        """All policies at once: there is no moment without."""
        kept: dict[Direction, dict[Selector, Policy]] = {direction: {} for direction in Direction}
        for policy in policies:
            kept[policy.direction][policy.selector] = policy
        self._policies = kept
        for direction in Direction:
            self._sort(direction)

    def find(self, direction: Direction, seen: PacketView) -> Policy | None:
        """The policy for a packet. Raises HiddenByFragment."""
        for policy in self._ordered[direction]:
            if matches(policy.selector, seen):
                return policy
        return None

    def all(self) -> Iterator[Policy]:
        """All policies, by direction and priority."""
        for direction in Direction:
            yield from self._ordered[direction]

    def _sort(self, direction: Direction) -> None:
        # sorted() is stable, and a dict keeps the place of a key that is put again.
        self._ordered[direction] = sorted(
            self._policies[direction].values(), key=lambda policy: policy.priority
        )
