"""The SAD: SAs with their replay state and counters (RFC 4301 §4.4.2).

As in the kernel, an SA stands for one direction but doesn't say which: it is found outbound by
what a policy's template asks for, inbound by destination and SPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dsmip_ipsec.ipsec.esp import EspReceiver, EspSender
from dsmip_ipsec.ipsec.esp_ciphers import Random, esp_cipher
from dsmip_ipsec.ipsec.esp_errors import AlgorithmError, EspError
from dsmip_ipsec.ipsec.esp_packet import PacketView
from dsmip_ipsec.ipsec.model import Address, Mode, SecurityAssociation, Template
from dsmip_ipsec.userspace.spd import matches

Key = tuple[Address, int]


class AssociationExists(EspError):
    """Another SA has that destination and SPI."""


class NoSuchAssociation(EspError):
    """No SA has that destination and SPI."""


@dataclass(slots=True)
class Entry:
    """An SA at work. ``peer`` is the outer source (address, and port with UDP encapsulation) of
    the last authentic packet; None before the first."""

    association: SecurityAssociation
    sender: EspSender
    receiver: EspReceiver
    packets: int = 0
    octets: int = 0
    peer: tuple[Address, int | None] | None = None


class AssociationDatabase:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._entries: dict[Key, Entry] = {}

    def add(self, association: SecurityAssociation, *, esn: bool = False) -> None:
        """Raises AssociationExists, AlgorithmError (also for an SA without integrity: RFC 4303
        has none for the careful), EspError for an impossible replay window."""
        esn = esn or association.esn
        if association.key in self._entries:
            raise AssociationExists(
                f"an SA to {association.destination} exists already",
                spi=association.spi,
                hint="delete it first, or choose another SPI",
            )
        if association.source.version != association.destination.version:
            raise EspError("source and destination are of two families", spi=association.spi)
        if not esp_cipher(association, esn=esn).integrity:
            raise AlgorithmError("an SA without integrity", spi=association.spi)
        sender = EspSender(association, esn=esn, random=self._random)
        receiver = EspReceiver(association, esn=esn)
        self._entries[association.key] = Entry(association, sender, receiver)

    def remove(self, key: Key) -> bool:
        """Take an SA away; False if there is none."""
        return self._entries.pop(key, None) is not None

    def move(self, key: Key, moved: SecurityAssociation) -> None:
        """Give an SA other addresses and another encapsulation; sequence numbers, replay window
        and counters stay. Raises NoSuchAssociation, AssociationExists, EspError if anything else
        would change."""
        entry = self._entries.get(key)
        if entry is None:
            raise NoSuchAssociation(
                f"no SA to {key[0]}", spi=key[1], hint="it was deleted or moved before"
            )
        old = entry.association
        same = replace(
            moved,
            source=old.source,
            destination=old.destination,
            encapsulation=old.encapsulation,
            selector=old.selector,
        )
        if same != old or moved.source.version != moved.destination.version:
            raise EspError(
                "only addresses, selector and encapsulation of an SA can move",
                spi=old.spi,
                hint="add a new SA for other keys or algorithms",
            )
        if moved.key != key and moved.key in self._entries:
            raise AssociationExists(f"an SA to {moved.destination} exists", spi=moved.spi)
        # The place in the order (the newest is used to send) is kept.
        self._entries = {
            moved.key if known == key else known: value for known, value in self._entries.items()
        }
        entry.association = moved
        entry.sender.association = moved
        entry.receiver.association = moved

    def inbound(self, destination: Address, spi: int) -> Entry | None:
        return self._entries.get((destination, spi))

    def outbound(self, template: Template, seen: PacketView) -> Iterator[Entry]:
        """The SAs that a packet may be sent by, newest first. May raise HiddenByFragment.

        A wildcard template means the packet's own addresses in transport mode; in tunnel mode
        it can't tell where the tunnel ends, hence matches nothing.
        """
        source, destination = template.source, template.destination
        if template.mode is Mode.TRANSPORT:
            source = seen.source if source.is_unspecified else source
            destination = seen.destination if destination.is_unspecified else destination
        for entry in reversed(list(self._entries.values())):
            sa = entry.association
            if (
                sa.reqid == template.reqid
                and sa.mode is template.mode
                and sa.source == source
                and sa.destination == destination
                and (sa.selector is None or matches(sa.selector, seen))
            ):
                yield entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())


def satisfies(association: SecurityAssociation, template: Template) -> bool:
    """Whether a packet that came by ``association`` is what an inbound template asks for;
    unspecified addresses are wildcards."""
    return (
        association.reqid == template.reqid
        and association.mode is template.mode
        and (template.source.is_unspecified or template.source == association.source)
        and (template.destination.is_unspecified or template.destination == association.destination)
    )
