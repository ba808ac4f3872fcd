"""The IPsec engine: SPD and SAD applied to packets, without input or output (RFC 4301 §5).

Outbound, a packet is matched against the policies and leaves as ESP, or not at all. Inbound, ESP
is undone, and what comes out must be what the inbound policies ask for. What no policy knows is
dropped (RFC 4301 §5: "traffic that doesn't match is discarded"), unless the engine was told to
let it pass: an engine behind a TUN sees nothing but what it has to protect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ipsec import esp_packet
from dsmip_ipsec.ipsec.esp_ciphers import Random
from dsmip_ipsec.ipsec.esp_errors import (
    DummyPacket,
    IntegrityError,
    ReplayError,
    SequenceExhausted,
)
from dsmip_ipsec.ipsec.esp_packet import CongestionError, PacketView
from dsmip_ipsec.ipsec.model import (
    Action,
    Address,
    Direction,
    Mode,
    Policy,
    SecurityAssociation,
    Selector,
)
from dsmip_ipsec.ipsec.plan import Operation, Verb
from dsmip_ipsec.userspace.outcome import Drop, DropReason
from dsmip_ipsec.userspace.sad import AssociationDatabase, Entry, Key, satisfies
from dsmip_ipsec.userspace.spd import HiddenByFragment, PolicyDatabase, matches
from dsmip_ipsec.wire.esp import Encapsulated, classify, parse_esp
from dsmip_ipsec.wire.ip import (
    IKE_NATT_PORT,
    IPPROTO_ESP,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
    IPPROTO_UDP,
)

_MAX_PACKET: Final = 0xFFFF
_FLOWS_MAX: Final = 4096
_FLOW_PACKET_MAX: Final = 0xFF00


@dataclass(frozen=True, slots=True)
class Mapping:
    """An authentic packet of an SA came from another outer source than the last one, or, if it
    is the first, than the SA says: a NAT rebinding, or a handover (XFRM_MSG_MAPPING)."""

    key: Key
    source: Address
    port: int | None


class Engine:
    """One node's IPsec.

    ``random`` gives unpredictable octets. ``local_addresses`` (care-of addresses included) tells
    what is for this node (IN) from what it forwards (FWD); None: a host, all is for it.
    ``bypass_unmatched``: let pass what no policy knows. ``drops`` counts by reason.
    """

    def __init__(
        self,
        random: Random,
        *,
        local_addresses: Iterable[Address] | None = None,
        bypass_unmatched: bool = False,
    ) -> None:
        self._policies = PolicyDatabase()
        self._associations = AssociationDatabase(random)
        self._local = frozenset(local_addresses) if local_addresses is not None else None
        self._bypass = bypass_unmatched
        self._mappings: list[Mapping] = []
        # What was found once holds until policies or SAs change. Addresses and protocol of a flow
        # -> the tunnel SA that it goes by, ready to use; the same -> the SA that it may come by;
        # outer addresses, ports and SPI -> the SA and its peer.
        self._flows: dict[bytes, tuple[Entry, Callable[[bytes], bytes]]] = {}
        self._accepted: dict[bytes, Entry] = {}
        self._tunnels: dict[bytes, tuple[Entry, tuple[Address, int | None] | None]] = {}
        # Where UDP-encapsulated ESP is expected; None: to be found out.
        self._ports: frozenset[tuple[Address, int]] | None = None
        self.drops: Counter[DropReason] = Counter()

    def set_local_addresses(self, addresses: Iterable[Address] | None) -> None:
        self._forget()
        self._local = frozenset(addresses) if addresses is not None else None

    # --- what the SPD and SAD hold ---

    @property
    def policies(self) -> tuple[Policy, ...]:
        return tuple(self._policies.all())

    @property
    def associations(self) -> tuple[Entry, ...]:
        """SAs with their counters, oldest first."""
        return tuple(self._associations)

    def put_policy(self, policy: Policy) -> None:
        """Add a policy, or replace the one with its direction and selector."""
        self._forget()
        self._policies.put(policy)

    def remove_policy(self, key: tuple[Direction, Selector]) -> bool:
        """False if there is none."""
        self._forget()
        return self._policies.remove(key)

    def replace_policies(self, policies: Iterable[Policy]) -> None:
        """Exchange the whole SPD at once."""
        self._forget()
        self._policies.replace(policies)

    def add_association(self, association: SecurityAssociation, *, esn: bool = False) -> None:
        """Raises :class:`AssociationExists`, :class:`AlgorithmError`, :class:`EspError`."""
        self._forget()
        self._associations.add(association, esn=esn)

    def remove_association(self, key: Key) -> bool:
        """False if there is none."""
        self._forget()
        return self._associations.remove(key)

    def move_association(self, key: Key, moved: SecurityAssociation) -> None:
        """Change addresses and encapsulation at a handover; keys and counters stay. Raises
        :class:`NoSuchAssociation`, :class:`AssociationExists`, :class:`EspError`."""
        self._forget()
        self._associations.move(key, moved)

    def apply(self, operations: Iterable[Operation]) -> None:
        """Carry out a plan, as the kernel's reconciler would. Raises :class:`EspError`."""
        for operation in operations:
            subject = operation.subject
            if isinstance(subject, Policy):
                if operation.verb is Verb.DELETE_POLICY:
                    self.remove_policy(subject.key)
                else:
                    self.put_policy(subject)
            elif not isinstance(subject, SecurityAssociation):
                continue  # Mobile IPv6's extension headers are the business of who calls us
            elif operation.verb is Verb.MOVE_ASSOCIATION:
                was = operation.before
                key = was.key if isinstance(was, SecurityAssociation) else subject.key
                self.move_association(key, subject)
            elif operation.verb is Verb.DELETE_ASSOCIATION:
                self.remove_association(subject.key)
            else:
                self.add_association(subject)

    def _forget(self) -> None:
        self._flows.clear()
        self._accepted.clear()
        self._tunnels.clear()
        self._ports = None

    def take_mappings(self) -> tuple[Mapping, ...]:
        """Changed outer sources since the last call, in order."""
        taken = tuple(self._mappings)
        self._mappings.clear()
        return taken

    # --- outbound ---

    def outbound(self, packet: bytes) -> tuple[bytes, ...] | Drop:
        """What leaves for a packet of this node or one that it forwards. Never raises."""
        key = _flow_key(packet)
        known = self._flows.get(key) if key is not None else None
        if known is not None:
            entry, encapsulate = known
            try:
                outer = encapsulate(packet)
            except SequenceExhausted:
                self._flows.clear()  # another SA may do
            else:
                entry.packets += 1
                entry.octets += len(packet)
                return (outer,)
        try:
            return self._outbound(packet, key)
        except DsmipError as error:
            return self._dropped(error)

    def _outbound(self, packet: bytes, key: bytes | None) -> tuple[bytes, ...] | Drop:
        seen = esp_packet.view(packet)
        try:
            policy = self._policies.find(Direction.OUT, seen)
            if policy is None:
                return (packet,) if self._bypass else self._drop(DropReason.NO_POLICY)
            if policy.action is Action.BLOCK or policy.template is None:
                return self._drop(DropReason.BLOCKED, str(policy))
            exhausted = False
            for entry in self._associations.outbound(policy.template, seen):
                try:
                    return self._protect(entry, packet[: seen.length], seen, key)
                except SequenceExhausted:
                    exhausted = True
        except HiddenByFragment:
            return self._drop(DropReason.FRAGMENT, "no policy can be chosen for a fragment")
        return self._drop(
            DropReason.SEQUENCE_EXHAUSTED if exhausted else DropReason.NO_ASSOCIATION, str(policy)
        )

    def _protect(
        self, entry: Entry, packet: bytes, seen: PacketView, key: bytes | None
    ) -> tuple[bytes, ...] | Drop:
        if entry.association.mode is Mode.TRANSPORT:
            if seen.fragment:
                return self._drop(DropReason.FRAGMENT, "transport mode protects whole datagrams")
            outer = esp_packet.to_transport(entry.sender, packet, seen)
        else:
            # Enough for the outer headers of either family.
            if entry.sender.length(len(packet)) + 48 > _MAX_PACKET:
                return self._drop(DropReason.TOO_BIG, f"{len(packet)} octets for a tunnel")
            encapsulate = esp_packet.encapsulator(entry.sender)
            outer = encapsulate(packet)
            if key is not None:
                if len(self._flows) >= _FLOWS_MAX:
                    self._flows.clear()
                self._flows[key] = entry, encapsulate
        entry.packets += 1
        entry.octets += len(packet)
        return (outer,)

    def dummies(self) -> tuple[bytes, ...]:
        """A dummy packet (RFC 4303 §2.6) for each tunnel SA that outbound policies lead to."""
        found: dict[Key, Entry] = {}
        for policy in self._policies.all():
            template = policy.template
            if policy.direction is not Direction.OUT or template is None:
                continue
            for entry in self._associations:
                sa = entry.association
                if (
                    sa.mode is Mode.TUNNEL
                    and satisfies(sa, template)
                    and not template.source.is_unspecified
                ):
                    found[sa.key] = entry
        return tuple(esp_packet.dummy(entry.sender) for entry in found.values())

    # --- inbound ---

    def inbound(self, packet: bytes) -> bytes | Drop:
        """What arrives for a packet from the network. Never raises."""
        try:
            key, start = _tunnel_key(packet)
            known = self._tunnels.get(key) if key is not None else None
            if known is None:
                return self._inbound(packet, key)
            entry, peer = known
            payload, next_header = entry.receiver.open(packet[start:])
            flow = _flow_key(payload)
            if (
                flow is not None
                and self._accepted.get(flow) is entry
                and entry.peer is peer
                and next_header == (IPPROTO_IPV6 if payload[0] >= 0x60 else IPPROTO_IPIP)
            ):
                entry.packets += 1
                entry.octets += len(payload)
                return payload
            seen = esp_packet.view(packet)
            port = packet[20] << 8 | packet[21] if seen.protocol == IPPROTO_UDP else None
            self._note_peer(entry, seen, port)
            return self._deliver(entry, packet, seen, payload, next_header, key)
        except DsmipError as error:
            return self._dropped(error)

    def _inbound(self, packet: bytes, key: bytes | None) -> bytes | Drop:
        seen = esp_packet.view(packet)
        if not self._is_local(seen):
            return self._check(packet[: seen.length], seen, None)
        if seen.protocol == IPPROTO_ESP:
            if seen.fragment:
                return self._drop(DropReason.FRAGMENT, "reassemble before IPsec (RFC 4301 §5.2)")
            return self._open(packet, seen, packet[seen.offset : seen.length], None, key)
        if seen.protocol == IPPROTO_UDP and not seen.fragment:
            sport, dport, payload = esp_packet.split_udp(packet, seen)
            if dport == IKE_NATT_PORT or (seen.destination, dport) in self._encapsulated():
                kind, payload = classify(payload)
                if kind is Encapsulated.ESP:
                    return self._open(packet, seen, payload, sport, key)
                ike = kind is Encapsulated.IKE
                return self._drop(DropReason.IKE if ike else DropReason.KEEPALIVE)
        return self._check(packet[: seen.length], seen, None)

    def _is_local(self, seen: PacketView) -> bool:
        return self._local is None or seen.destination in self._local

    def _encapsulated(self) -> frozenset[tuple[Address, int]]:
        """Where SAs expect UDP: port 4500 as a rule, but nothing says that it has to be."""
        if self._ports is None:
            self._ports = frozenset(
                (entry.association.destination, ports.destination_port)
                for entry in self._associations
                if (ports := entry.association.encapsulation) is not None
            )
        return self._ports

    def _open(
        self, packet: bytes, seen: PacketView, esp: bytes, port: int | None, key: bytes | None
    ) -> bytes | Drop:
        header, _ = parse_esp(esp)
        entry = self._associations.inbound(seen.destination, header.spi)
        if entry is None or (entry.association.encapsulation is None) != (port is None):
            return self._drop(
                DropReason.NO_ASSOCIATION, f"spi 0x{header.spi:08x} to {seen.destination}"
            )
        payload, next_header = entry.receiver.open(esp)
        self._note_peer(entry, seen, port)
        return self._deliver(entry, packet, seen, payload, next_header, key)

    def _deliver(
        self,
        entry: Entry,
        packet: bytes,
        seen: PacketView,
        payload: bytes,
        next_header: int,
        key: bytes | None,
    ) -> bytes | Drop:
        """What is left of an authentic packet; ``seen`` is the view of the outer one."""
        association = entry.association
        entry.packets += 1
        entry.octets += len(payload)
        if association.mode is Mode.TUNNEL:
            inner = esp_packet.from_tunnel(
                payload, next_header, seen.traffic_class, association.spi
            )
        else:
            inner = esp_packet.from_transport(packet, seen, payload, next_header)
        inside = esp_packet.view(inner)
        # RFC 4301 §5.2 step 4 and 5: is this packet one for this SA?
        try:
            fits = association.selector is None or matches(association.selector, inside)
        except HiddenByFragment:
            fits = False
        if not fits:
            return self._drop(DropReason.SELECTOR, f"spi 0x{association.spi:08x}")
        result = self._check(inner, inside, association)
        if key is not None and association.mode is Mode.TUNNEL and result is inner:
            flow = _flow_key(inner)
            if flow is not None:
                if max(len(self._accepted), len(self._tunnels)) >= _FLOWS_MAX:
                    self._forget()
                self._accepted[flow] = entry
                self._tunnels[key] = entry, entry.peer
        return result

    def _check(
        self, packet: bytes, seen: PacketView, association: SecurityAssociation | None
    ) -> bytes | Drop:
        """The inbound policy check (RFC 4301 §5.2): was it protected as it should have been?"""
        direction = Direction.IN if self._is_local(seen) else Direction.FWD
        try:
            policy = self._policies.find(direction, seen)
        except HiddenByFragment:
            return self._drop(DropReason.FRAGMENT, "no policy can be chosen for a fragment")
        if policy is None:
            return packet if self._bypass else self._drop(DropReason.NO_POLICY)
        if policy.action is Action.BLOCK or policy.template is None:
            return self._drop(DropReason.BLOCKED, str(policy))
        if association is None:
            return self._drop(DropReason.UNPROTECTED, str(policy))
        if not satisfies(association, policy.template):
            return self._drop(DropReason.WRONG_ASSOCIATION, f"{association} for {policy}")
        return packet

    def _note_peer(self, entry: Entry, seen: PacketView, port: int | None) -> None:
        association = entry.association
        if entry.peer is None:
            ports = association.encapsulation
            entry.peer = association.source, ports.source_port if ports is not None else None
        came_from = seen.source, port
        if came_from != entry.peer:  # the same tuple otherwise: known tunnels compare by identity
            entry.peer = came_from
            self._mappings.append(Mapping(association.key, seen.source, port))

    # --- drops ---

    def _drop(self, reason: DropReason, detail: str = "") -> Drop:
        self.drops[reason] += 1
        return Drop(reason, detail)

    def _dropped(self, error: DsmipError) -> Drop:
        reason = next(
            (reason for kind, reason in _REASONS if isinstance(error, kind)), DropReason.MALFORMED
        )
        return self._drop(reason, error.message)


_REASONS: Final[tuple[tuple[type[DsmipError], DropReason], ...]] = (
    (ReplayError, DropReason.REPLAY),
    (IntegrityError, DropReason.INTEGRITY),
    (DummyPacket, DropReason.DUMMY),
    (CongestionError, DropReason.CONGESTION),
)


def _flow_key(packet: bytes) -> bytes | None:
    """What tells the policy for a packet, where its fixed header is enough for that: not for
    Mobility Headers (their type counts), extension headers, and packets of a wrong length or
    one that could grow too long."""
    if not 40 <= len(packet) <= _FLOW_PACKET_MAX:
        return None
    first = packet[0]
    if first >> 4 == 6:
        if packet[6] in _NO_FLOW or (packet[4] << 8 | packet[5]) + 40 != len(packet):
            return None
        return packet[6:40]
    if first == 0x45 and (packet[2] << 8 | packet[3]) == len(packet):
        return packet[9:10] + packet[12:20]
    return None


def _tunnel_key(packet: bytes) -> tuple[bytes | None, int]:
    """What tells the SA for an outer packet of the plainest kind, and where ESP starts in it;
    None for all others, and where ECN wants a second look.

    The checksum of the IPv4 header isn't looked at: what it covers and ESP doesn't is in the
    key, which is only known where a packet with a right checksum was before.
    """
    if len(packet) < 44:
        return None, 0
    first = packet[0]
    if first == 0x45:
        length = packet[2] << 8 | packet[3]
        if length != len(packet) or packet[1] & 3 or packet[6] & 0x3F or packet[7]:
            return None, 0
        if packet[9] == IPPROTO_ESP:
            return packet[12:24], 20
        if packet[9] == IPPROTO_UDP and (packet[24] << 8 | packet[25]) == length - 20:
            return packet[12:24] + packet[28:32], 28
        return None, 0
    length = 40 + (packet[4] << 8 | packet[5])
    if first == 0x60 and packet[6] == IPPROTO_ESP and not packet[1] & 0x30:
        return (packet[8:44], 40) if length == len(packet) else (None, 0)
    return None, 0


# Hop-by-hop, routing, fragment, ESP, destination options, Mobility Header.
_NO_FLOW: Final = frozenset({0, 43, 44, 50, 60, 135})
