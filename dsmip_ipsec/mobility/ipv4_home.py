"""IPv4 home addresses and prefixes at the home agent: authorisation and leases
(RFC 5555 §2.5, §3.1.1, §3.2.1, §4.5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.mobility.ipv4_prefix_pool import IPv4PrefixPool
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

    ``leased``: the address is from the pool, ``leased_prefixes``: those prefixes are. A lease
    bounds the binding's lifetime.
    """

    home_address: IPv4Interface | None
    prefixes: tuple[IPv4Network, ...]
    acknowledgements: tuple[IPv4AddressAck, ...]
    leased: bool
    leased_prefixes: tuple[IPv4Network, ...] = ()


NO_GRANT = IPv4Grant(None, (), (), False)


class _Granting:
    """The options of one binding update, one after the other."""

    def __init__(
        self,
        home_address: IPv6Address,
        subscriber: Subscriber,
        pool: IPv4Pool,
        prefix_pool: IPv4PrefixPool,
    ) -> None:
        self.home_address = home_address
        self.subscriber = subscriber
        self.pool = pool
        self.prefix_pool = prefix_pool
        self.address: IPv4Interface | None = None
        self.leased = False
        self.prefixes: list[IPv4Network] = []
        self.leased_prefixes: list[IPv4Network] = []
        self.acknowledgements: list[IPv4AddressAck] = []

    def serve(self, request: IPv4HomeAddress) -> None:
        """Grant or refuse one option."""
        address = request.address
        static = self.subscriber.ipv4_home_address
        if static is not None and address == static.ip:
            self._give(static)
        elif address == UNSPECIFIED_IPV4:
            if request.prefix_request or request.prefix_len < 32:
                self._new_prefix(request)
            else:
                self._new_address(request)
        elif (lease := self.pool.lease(self.home_address)) is not None and lease.ip == address:
            self.leased = True
            self._give(lease)
        elif not is_unicast_ipv4(address):
            self._refuse(IPv4AckStatus.INVALID_IPV4_ADDRESS, address)
        elif request.prefix_len < 32 or self._known_prefix(address, 32) is not None:
            # A refresh names what it was given; §3.1.1: P "must be ignored" then.
            known = self._known_prefix(address, request.prefix_len)
            if known is None:
                self._refuse(IPv4AckStatus.PREFIX_ALLOCATION_UNAUTHORIZED, address)
            else:
                self._give_prefix(known, address)
        else:
            self._refuse(IPv4AckStatus.INCORRECT_IPV4_HOME_ADDRESS, address)

    def _new_address(self, request: IPv4HomeAddress) -> None:
        offer = self.subscriber.ipv4_home_address
        if offer is None and self.subscriber.dynamic_ipv4:
            offer = self.pool.allocate(self.home_address)
            self.leased = self.leased or offer is not None
        if offer is None:
            self._refuse(IPv4AckStatus.DYNAMIC_ASSIGNMENT_NOT_AVAILABLE, request.address)
        else:
            self._give(offer)

    def _new_prefix(self, request: IPv4HomeAddress) -> None:
        """RFC 5555 §4.5: "allocate a prefix with the requested length", and §3.2.1: or of
        another, which then "overrides what the mobile node requested". Each request of one
        update gets a prefix of its own; an earlier answer may have been lost, so what is leased
        already comes first."""
        wanted = request.prefix_len
        own = [each for each in self.subscriber.ipv4_prefixes if each not in self.prefixes]
        leased = [
            each for each in self.prefix_pool.leases(self.home_address) if each not in self.prefixes
        ]
        choices = sorted(own, key=lambda each: each.prefixlen != wanted)
        choices += sorted(leased, key=lambda each: each.prefixlen != wanted)
        if choices:
            self._give_prefix(choices[0])
            return
        if not self.subscriber.dynamic_ipv4_prefix:
            if self.subscriber.ipv4_prefixes:  # the same again, rather than none
                self._give_prefix(self.subscriber.ipv4_prefixes[0])
            else:
                self._refuse(IPv4AckStatus.PREFIX_ALLOCATION_UNAUTHORIZED, request.address)
            return
        new = self.prefix_pool.allocate(self.home_address, wanted)
        if new is None:
            # Authorised, but there is none: of the codes there are, 132 says that.
            self._refuse(IPv4AckStatus.DYNAMIC_ASSIGNMENT_NOT_AVAILABLE, request.address)
        else:
            self._give_prefix(new)

    def _known_prefix(self, address: IPv4Address, length: int) -> IPv4Network | None:
        """The prefix that a refresh names: of exactly this length, with this address in it."""
        for prefix in (
            *self.subscriber.ipv4_prefixes,
            *self.prefix_pool.leases(self.home_address),
        ):
            if prefix.prefixlen == length and address in prefix:
                return prefix
        return None

    def _give(self, offer: IPv4Interface) -> None:
        self.address = offer
        length = offer.network.prefixlen
        self.acknowledgements.append(
            IPv4AddressAck(IPv4AckStatus.SUCCESS, length, IPv4Address(offer.ip))
        )

    def _give_prefix(self, prefix: IPv4Network, address: IPv4Address | None = None) -> None:
        if prefix not in self.prefixes:
            self.prefixes.append(prefix)
            if prefix in self.prefix_pool.leases(self.home_address):
                self.leased_prefixes.append(prefix)
        self.acknowledgements.append(
            IPv4AddressAck(
                IPv4AckStatus.SUCCESS,
                prefix.prefixlen,
                prefix.network_address if address is None else address,
            )
        )

    def _refuse(self, status: IPv4AckStatus, address: IPv4Address) -> None:
        self.acknowledgements.append(IPv4AddressAck(status, 0, address))


def grant_ipv4(
    requests: Sequence[IPv4HomeAddress],
    home_address: IPv6Address,
    subscriber: Subscriber,
    pool: IPv4Pool,
    prefix_pool: IPv4PrefixPool,
) -> IPv4Grant:
    """Check and serve the IPv4 home address options of one binding update (RFC 5555 §4.5).

    Each option gets one acknowledgement option, in the same order. A refused option does not
    refuse the binding update: the IPv6 binding stands by itself. A home address has one IPv4
    home address at most, its static or its leased one, however often it is asked for.
    """
    granting = _Granting(home_address, subscriber, pool, prefix_pool)
    for request in requests:
        granting.serve(request)
    return IPv4Grant(
        granting.address,
        tuple(granting.prefixes),
        tuple(granting.acknowledgements),
        granting.leased,
        tuple(granting.leased_prefixes),
    )
