"""Movement detection in IPv4 networks: DNAv4 (RFC 4436; RFC 5555 §4.4.4).

When the link comes up, every network that the node has an operable address of is tested at once by
a unicast ARP request to its gateway, in parallel with DHCP; the first answer wins, and DHCP's word
is final but for manually assigned addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

from dsmip_ipsec.mobility.ipv4_home import is_unicast_ipv4
from dsmip_ipsec.mobility.movement_types import (
    ArpReply,
    Lease,
    MovementOutput,
    ProbeGateway,
    RequestLease,
)

# RFC 4436 §2.1: "retransmit no more than twice"; "no more than once a second". The interval
# between the former is ours.
PROBES: Final = 3
PROBE_INTERVAL: Final = 1.0
DAMPING: Final = 1.0
# Networks that are remembered.
MAX_NETWORKS: Final = 8


class IPv4Movement:
    """One interface in IPv4. ``lease`` is the configuration that is confirmed here, None without.

    ``reachability_test``: False where DHCP is authenticated (RFC 4436 §2.1 [c]: ARP is not).
    ``test_manual``: also for manually assigned addresses (§2.4: "SHOULD NOT be enabled by
    default").
    """

    def __init__(self, *, reachability_test: bool = True, test_manual: bool = False) -> None:
        self.lease: Lease | None = None
        self.testing = False
        self._reachability_test = reachability_test
        self._test_manual = test_manual
        # Those that were used last stand last.
        self._networks: list[Lease] = []
        self._candidates: tuple[Lease, ...] = ()
        self._tries = 0
        self._due_at: float | None = None
        self._begun_at: float | None = None

    def link_up(self, now: float) -> list[MovementOutput]:
        """Begin the procedure; within a second of the last one, when that is over."""
        if self._begun_at is not None and now < self._begun_at + DAMPING:
            self.testing = True
            self._tries = 0
            self._candidates = ()
            self._due_at = self._begun_at + DAMPING
            return []
        return self._begin(now)

    def link_down(self) -> None:
        """What was confirmed isn't any more. The network stays known."""
        self._stop()

    def arp_reply(self, reply: ArpReply, now: float) -> None:
        """§2.1.1: both addresses of the gateway must match. The first match wins."""
        if not self.testing:
            return
        for candidate in self._candidates:
            if (
                candidate.gateway == reply.address
                and candidate.gateway_link_address == reply.link_address
                and _operable(candidate, now)
            ):
                self._use(candidate)
                return

    def leased(self, lease: Lease) -> None:
        """DHCP's answer, or a manual configuration. §2.1: it overrides what a test confirmed,
        "unless the address confirmed via the reachability test has been manually assigned"."""
        address = IPv4Address(lease.address.ip)
        if not is_unicast_ipv4(address) or address.is_link_local:
            return
        self._remember(lease)
        present = self.lease
        if present is not None and present.manual and not lease.manual:
            return
        self._use(lease)

    def lost(self) -> None:
        """DHCP says that there is no address for us here."""
        present = self.lease
        if present is None or not present.manual:
            if present is not None:
                self._forget(present)
            self._stop()

    def tick(self, now: float) -> list[MovementOutput]:
        """Do what is due."""
        outputs: list[MovementOutput] = []
        present = self.lease
        if present is not None and not _operable(present, now):
            self._forget(present)
            self._stop()
            outputs.append(RequestLease(None))
        if self._due_at is None or self._due_at > now:
            return outputs
        if self._tries == 0:
            return outputs + self._begin(now)
        if self._tries >= PROBES:
            # Nobody answers: we are somewhere else. DHCP goes on by itself.
            if present is None or not present.manual or present in self._candidates:
                self._stop()
            self.testing = False
            self._due_at = None
            return outputs
        return outputs + self._probe(now)

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`."""
        deadlines = [] if self._due_at is None else [self._due_at]
        if self.lease is not None and self.lease.expires_at is not None:
            deadlines.append(self.lease.expires_at)
        return min(deadlines, default=None)

    def _begin(self, now: float) -> list[MovementOutput]:
        """§2, §2.2: tests and DHCP in parallel."""
        self._begun_at = now
        self._networks = [each for each in self._networks if _operable(each, now)]
        known = [each for each in self._networks if not each.manual]
        # INIT-REBOOT with the address that was used last, else INIT.
        address = IPv4Address(known[-1].address.ip) if known else None
        outputs: list[MovementOutput] = [RequestLease(address)]
        self._candidates = tuple(
            each
            for each in self._networks
            if self._reachability_test
            and each.gateway_link_address
            and (self._test_manual or not each.manual)
        )
        self.testing = True
        self._tries = 0
        if not self._candidates:
            # DHCP alone; what was confirmed before stays as long as tests would take.
            self._tries = PROBES
            self._due_at = now + PROBES * PROBE_INTERVAL
            return outputs
        return outputs + self._probe(now)

    def _probe(self, now: float) -> list[MovementOutput]:
        self._tries += 1
        self._due_at = now + PROBE_INTERVAL
        return [
            ProbeGateway(each.gateway, each.gateway_link_address, IPv4Address(each.address.ip))
            for each in self._candidates
        ]

    def _use(self, lease: Lease) -> None:
        self._stop()
        self.lease = lease
        self._remember(lease)

    def _stop(self) -> None:
        """Neither tests nor a confirmed address."""
        self.lease = None
        self.testing = False
        self._candidates = ()
        self._due_at = None

    def _forget(self, lease: Lease) -> None:
        self._networks = [each for each in self._networks if each is not lease]

    def _remember(self, lease: Lease) -> None:
        """One entry for each network: its gateway, by both addresses, and our address there."""
        self._networks = [each for each in self._networks if not _same_network(each, lease)]
        self._networks.append(lease)
        del self._networks[:-MAX_NETWORKS]


def _same_network(a: Lease, b: Lease) -> bool:
    """A lease that is told again, with the gateway's link address now, is no other network."""
    if a.gateway != b.gateway:
        return False
    links = {a.gateway_link_address, b.gateway_link_address}
    return len(links) == 1 or (b"" in links and a.address == b.address)


def _operable(lease: Lease, now: float) -> bool:
    """RFC 4436 §1: an "operable" address has a lease that isn't over; and §2.3: link-local ones
    are none of ours (:func:`is_unicast_ipv4` has seen to loopback and the like)."""
    address = lease.address.ip
    return not address.is_link_local and (lease.expires_at is None or lease.expires_at > now)
