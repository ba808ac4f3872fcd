"""The mobile node's binding update list (RFC 6275 §11.1, RFC 5555 §4.4.2).

Two things live here: the *entries*, one for each home address that the home agent has
acknowledged ("two entries in its binding update list: one for the IPv6 home address and another
for the IPv4 home address"), and the *outstanding* binding updates, against which acknowledgements
are matched (RFC 6275 §11.7.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.mobility.constants import SEQUENCE_MODULUS, SEQUENCE_WINDOW
from dsmip_ipsec.mobility.types import Binding, IPAddress
from dsmip_ipsec.wire.options import IPv4HomeAddress


def next_sequence(sequence: int) -> int:
    """The sequence number after ``sequence`` (RFC 6275 §9.5.1: modulo 2**16)."""
    return (sequence + 1) % SEQUENCE_MODULUS


def sequence_greater(sequence: int, than: int) -> bool:
    """RFC 6275 §9.5.1: ``sequence`` is *not* greater when it "lies in the range of the last
    received number and the preceding 32768 values, inclusive"."""
    return 0 < (sequence - than) % SEQUENCE_MODULUS < SEQUENCE_WINDOW


# Unanswered updates that are remembered. At 32 s each, an acknowledgement for an older one is
# hours late.
_MAX_OUTSTANDING = 64


@dataclass(frozen=True, slots=True)
class SentUpdate:
    """What one binding update says, apart from what the configuration says.

    ``lifetime_units`` are of 4 s; zero removes the binding. ``ipv4_options`` ask for IPv4 home
    address and prefix, in this order.
    """

    sequence: int
    sent_at: float
    care_of_address: IPAddress
    lifetime_units: int
    force_udp: bool
    ipv4_options: tuple[IPv4HomeAddress, ...]
    udp_over_ipv6: bool = False

    @property
    def over_udp(self) -> bool:
        """RFC 5555 §4.2: "MUST always tunnel binding updates in UDP when located in an IPv4-only
        network"; over IPv6 only as the last resort of §4.4.1."""
        return self.care_of_address.version == 4 or self.udp_over_ipv6


@dataclass(frozen=True, slots=True)
class BindingUpdateListEntry:
    """One home address at one home agent, as acknowledged."""

    home_agent: IPv6Address
    home_address: IPAddress
    care_of_address: IPAddress
    lifetime: int
    expires_at: float
    udp_encapsulation: bool


class BindingUpdateList:
    """What was sent to the home agent and what it acknowledged."""

    __slots__ = ("_binding", "_outstanding")

    def __init__(self) -> None:
        self._binding: Binding | None = None
        # In order of sending, which is the order of sequence numbers.
        self._outstanding: dict[int, SentUpdate] = {}

    @property
    def binding(self) -> Binding | None:
        """The registration in force, None without one."""
        return self._binding

    @binding.setter
    def binding(self, binding: Binding | None) -> None:
        self._binding = binding

    def __iter__(self) -> Iterator[BindingUpdateListEntry]:
        """One entry for the IPv6 home address, and one for the IPv4 home address if the home
        agent accepted that (RFC 5555 §4.4.2)."""
        binding = self._binding
        if binding is None:
            return
        homes: tuple[IPAddress, ...] = (binding.home_address,)
        if binding.ipv4_home_address is not None:
            homes = (*homes, IPv4Address(binding.ipv4_home_address.ip))
        for home_address in homes:
            yield BindingUpdateListEntry(
                binding.home_agent,
                home_address,
                binding.care_of_address,
                binding.lifetime,
                binding.expires_at,
                binding.udp_encapsulation,
            )

    @property
    def outstanding(self) -> bool:
        """True while some binding update waits for its acknowledgement."""
        return bool(self._outstanding)

    def sent(self, update: SentUpdate) -> None:
        """Record a binding update that has just been sent."""
        self._outstanding[update.sequence] = update
        if len(self._outstanding) > _MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]

    def match(self, sequence: int) -> SentUpdate | None:
        """The outstanding binding update with this sequence number."""
        return self._outstanding.get(sequence)

    def last(self) -> SentUpdate | None:
        """The outstanding binding update that was sent last."""
        for sequence in reversed(self._outstanding):
            return self._outstanding[sequence]
        return None

    def settle(self, sequence: int) -> None:
        """An acknowledgement for ``sequence`` came: it and all sent before it are settled.

        Later retransmissions stay outstanding. The home agent has seen, or will see, those too,
        and what it then says (another NAT mapping, say) is newer.
        """
        for known in list(self._outstanding):
            del self._outstanding[known]
            if known == sequence:
                return

    def forget_outstanding(self) -> None:
        """Acknowledgements of what was sent so far no longer count (the mobile node has moved)."""
        self._outstanding.clear()
