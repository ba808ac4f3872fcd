"""IPv4 home addresses and prefixes at the home agent: authorisation and leases
(RFC 5555 §2.5, §3.1.1, §3.2.1, §4.5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.wire.options import IPv4AckStatus, IPv4AddressAck, IPv4HomeAddress

UNSPECIFIED_IPV4 = IPv4Address(0)


def is_unicast_ipv4(address: IPv4Address) -> bool:
    """True for an address that one host may have: private ones count, 0/8, 127/8, multicast,
    240/4 and broadcast don't."""
    first = int(address) >> 24
    return 0 < first < 224 and first != 127


class IPv4Pool:
    """Dynamic IPv4 home addresses. A lease belongs to an IPv6 home address, and lives as long as
    the binding (RFC 5555 §2.5: the shorter of both lifetimes is the binding's)."""

    __slots__ = ("_fresh", "_leases", "_released", "_reserved")

    def __init__(self, networks: Sequence[IPv4Network], reserved: frozenset[IPv4Address]) -> None:
        """``reserved`` addresses inside the networks (routers, static subscribers) are never
        given out."""
        self._fresh: Iterator[IPv4Address] = (
            address for network in networks for address in network.hosts()
        )
        self._reserved = reserved
        self._released: deque[IPv4Interface] = deque()
        self._leases: dict[int, IPv4Interface] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def lease(self, home_address: IPv6Address) -> IPv4Interface | None:
        """The address leased to a home address, None without a lease."""
        return self._leases.get(int(home_address))

    def allocate(self, home_address: IPv6Address) -> IPv4Interface | None:
        """The lease of a home address, a new one if needed; None when the pool is empty.

        Addresses that were never used come first, then the one released longest ago, so that
        late packets seldom meet a new owner.
        """
        lease = self._leases.get(int(home_address))
        if lease is not None:
            return lease
        for address in self._fresh:
            if address not in self._reserved:
                lease = IPv4Interface((address, 32))
                break
        else:
            if not self._released:
                return None
            lease = self._released.popleft()
        self._leases[int(home_address)] = lease
        return lease

    def release(self, home_address: IPv6Address) -> None:
        """End the lease of a home address, if it has one."""
        lease = self._leases.pop(int(home_address), None)
        if lease is not None:
            self._released.append(lease)


@dataclass(frozen=True, slots=True)
class IPv4Grant:
    """What a binding update's IPv4 home address options came to.

    ``leased``: the address is from the pool, so the lease bounds the binding's lifetime.
    """

    home_address: IPv4Interface | None
    prefixes: tuple[IPv4Network, ...]
    acknowledgements: tuple[IPv4AddressAck, ...]
    leased: bool


NO_GRANT = IPv4Grant(None, (), (), False)


def grant_ipv4(
    requests: Sequence[IPv4HomeAddress],
    home_address: IPv6Address,
    subscriber: Subscriber,
    pool: IPv4Pool,
) -> IPv4Grant:
    """Check and serve the IPv4 home address options of one binding update (RFC 5555 §4.5).

    Each option gets one acknowledgement option, in the same order. A refused option does not
    refuse the binding update: the IPv6 binding stands by itself. A home address has one IPv4
    home address at most, its static or its leased one, however often it is asked for.
    """
    granted: IPv4Interface | None = None
    leased = False
    prefixes: list[IPv4Network] = []
    acknowledgements: list[IPv4AddressAck] = []
    for request in requests:
        address = request.address
        static = subscriber.ipv4_home_address
        offer: IPv4Interface | None = None
        status = IPv4AckStatus.SUCCESS
        if static is not None and address == static.ip:
            offer = static
        elif address == UNSPECIFIED_IPV4:
            if request.prefix_request or request.prefix_len < 32:
                prefix = _prefix_of_length(subscriber.ipv4_prefixes, request.prefix_len)
                if prefix is None:
                    status = IPv4AckStatus.PREFIX_ALLOCATION_UNAUTHORIZED
                else:
                    _grant_prefix(prefix, prefixes, acknowledgements)
                    continue
            else:
                offer = static
                if offer is None and subscriber.dynamic_ipv4:
                    offer = pool.allocate(home_address)
                    leased = leased or offer is not None
                if offer is None:
                    status = IPv4AckStatus.DYNAMIC_ASSIGNMENT_NOT_AVAILABLE
        elif (lease := pool.lease(home_address)) is not None and lease.ip == address:
            offer = lease
            leased = True
        elif not is_unicast_ipv4(address):
            status = IPv4AckStatus.INVALID_IPV4_ADDRESS
        elif request.prefix_len < 32:
            # A refresh names what it was given; §3.1.1: P "must be ignored" then.
            known = _prefix_with(subscriber.ipv4_prefixes, address, request.prefix_len)
            if known is None:
                status = IPv4AckStatus.PREFIX_ALLOCATION_UNAUTHORIZED
            else:
                _grant_prefix(known, prefixes, acknowledgements, address)
                continue
        else:
            status = IPv4AckStatus.INCORRECT_IPV4_HOME_ADDRESS
        if offer is None:
            acknowledgements.append(IPv4AddressAck(status, 0, address))
            continue
        granted = offer
        length = offer.network.prefixlen
        acknowledgements.append(IPv4AddressAck(IPv4AckStatus.SUCCESS, length, offer.ip))
    return IPv4Grant(granted, tuple(prefixes), tuple(acknowledgements), leased)


def _grant_prefix(
    prefix: IPv4Network,
    prefixes: list[IPv4Network],
    acknowledgements: list[IPv4AddressAck],
    address: IPv4Address | None = None,
) -> None:
    if prefix not in prefixes:
        prefixes.append(prefix)
    acknowledgements.append(
        IPv4AddressAck(
            IPv4AckStatus.SUCCESS,
            prefix.prefixlen,
            prefix.network_address if address is None else address,
        )
    )


def _prefix_of_length(prefixes: Sequence[IPv4Network], length: int) -> IPv4Network | None:
    """RFC 5555 §4.5: "allocate a prefix with the requested length", and §3.2.1: or of another,
    which then "overrides what the mobile node requested"."""
    for prefix in prefixes:
        if prefix.prefixlen == length:
            return prefix
    return prefixes[0] if prefixes else None


def _prefix_with(
    prefixes: Sequence[IPv4Network], address: IPv4Address, length: int
) -> IPv4Network | None:
    """The prefix that a refresh names: of exactly this length, with this address in it."""
    for prefix in prefixes:
        if prefix.prefixlen == length and address in prefix:
            return prefix
    return None
