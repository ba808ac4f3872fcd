"""Which home agents there are, by DNS (RFC 5555 §2.1, RFC 5026 §5.1, RFC 2782), and in which order
a mobile node tries them (RFC 6275 §11.4.1, §11.7.1).

:class:`DnsDiscovery` asks questions and takes answers; whoever runs a resolver carries both
(:mod:`dsmip_ipsec.node.discovery`). :class:`HomeAgentList` is what a registration walks along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.registration import is_care_of_address
from dsmip_ipsec.mobility.types import IPAddress

SERVICE: Final = "_mip6._ipv6"
"""RFC 5555 §2.1, RFC 5026 §5.1.2."""

# Whatever a DNS answer holds: no more home agents than this are kept, nor names asked for.
MAX_HOME_AGENTS: Final = 16

_MAX_NAME = 253
_MAX_LABEL = 63


@dataclass(frozen=True, slots=True)
class HomeAgentAddresses:
    """One home agent: its IPv6 address, and the IPv4 address where it takes UDP, if known."""

    address: IPv6Address
    ipv4: IPv4Address | None = None


class HomeAgentList:
    """Home agents in the order in which they are tried, and which of them failed in this round.

    A round ends with :meth:`restart` (a new network) or, when all were silent, by itself.
    """

    __slots__ = ("_agents", "_refused", "_silent", "current")

    def __init__(
        self, first: HomeAgentAddresses, others: Iterable[HomeAgentAddresses] = ()
    ) -> None:
        self.current = first
        self._agents = [first]
        self._refused: set[IPv6Address] = set()
        self._silent: set[IPv6Address] = set()
        self.learn(others)

    def __iter__(self) -> Iterator[HomeAgentAddresses]:
        return iter(tuple(self._agents))

    def learn(self, agents: Iterable[HomeAgentAddresses]) -> None:
        """Add what discovery found, in its order. A known home agent gains an IPv4 address."""
        for agent in agents:
            place = self._place(agent.address)
            if place is None:
                if len(self._agents) < MAX_HOME_AGENTS:
                    self._agents.append(agent)
            elif agent.ipv4 is not None:
                self._agents[place] = agent
                if self.current.address == agent.address:
                    self.current = agent

    def find(self, address: IPv6Address) -> HomeAgentAddresses | None:
        """The home agent with this IPv6 address."""
        place = self._place(address)
        return None if place is None else self._agents[place]

    def restart(self) -> None:
        """A new round: each may be tried again, the present one first (RFC 6275 §11.4.1: "MUST
        attempt any new registration first with that home agent")."""
        self._refused.clear()
        self._silent.clear()

    def refused(self) -> None:
        """The present one will not have us. It isn't tried again in this round."""
        self._refused.add(self.current.address)

    def silent(self) -> None:
        """The present one doesn't answer."""
        self._silent.add(self.current.address)

    def next(self, *, ipv4: bool, again: bool = False) -> HomeAgentAddresses | None:
        """The one to try after the present one, None when there is no other left. ``ipv4``: only
        one whose IPv4 address is known is of use. ``again``: those that were silent, too."""
        place = self._place(self.current.address) or 0
        for agent in (*self._agents[place + 1 :], *self._agents[:place]):
            if agent.address in self._refused or (ipv4 and agent.ipv4 is None):
                continue
            if again or agent.address not in self._silent:
                return agent
        return None

    def _place(self, address: IPv6Address) -> int | None:
        for place, agent in enumerate(self._agents):
            if agent.address == address:
                return place
        return None


class RecordType(StrEnum):
    """DNS record types that matter here."""

    SRV = "SRV"
    AAAA = "AAAA"
    A = "A"


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask the DNS. ``name`` is absolute, in small letters, without its last dot."""

    name: str
    type: RecordType


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """RFC 2782. ``target`` "" stands for ".": the service isn't offered."""

    name: str
    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """An A or AAAA record, with aliases resolved: ``name`` is what was asked for."""

    name: str
    address: IPAddress


Record: TypeAlias = ServiceRecord | AddressRecord


def normal_name(name: str) -> str:
    """A DNS name as comparisons want it: in small letters, without the last dot. Raises
    :class:`MobilityError` for what no DNS name can be (RFC 1035 §2.3.4)."""
    normal = name.lower().removesuffix(".")
    labels = normal.split(".")
    if (
        not normal
        or len(normal) > _MAX_NAME
        or not normal.isascii()
        or any(not 1 <= len(label) <= _MAX_LABEL for label in labels)
        or any(not character.isprintable() or character == " " for character in normal)
    ):
        raise MobilityError(
            "not a DNS name", hint="give a full name such as ha1.example.com, or its domain"
        )
    return normal


def order_services(
    records: Sequence[ServiceRecord], random_bits: Callable[[int], int]
) -> list[ServiceRecord]:
    """RFC 2782's order: by priority, and within one at random, in proportion to the weights
    (those of weight 0 stand first when the number is drawn, so that they have a small chance)."""
    ordered: list[ServiceRecord] = []
    for priority in sorted({record.priority for record in records}):
        left = sorted(
            (record for record in records if record.priority == priority),
            key=lambda record: record.weight != 0,
        )
        while left:
            total = sum(record.weight for record in left)
            # 32 bits are more than enough for weights of 16.
            drawn = (random_bits(32) * (total + 1)) >> 32
            running = 0
            for place, record in enumerate(left):
                running += record.weight
                if running >= drawn:
                    ordered.append(left.pop(place))
                    break
    return ordered


class DnsDiscovery:
    """Home agents by DNS: by the name of one (``name``) or by the service of a domain.

    Put the questions of :meth:`questions` to the DNS, hand what comes back to :meth:`answered`
    (an empty tuple: no such record, or no answer at all), until :attr:`done`; then take
    :meth:`home_agents`. Records in the additional section belong into the answer: they save
    questions (RFC 5026 §5.1.2).

    Nothing that an answer holds raises. Answers only count for names that were asked for.
    """

    def __init__(self, name: str, random_bits: Callable[[int], int], *, service: bool) -> None:
        self._random_bits = random_bits
        self._addresses: dict[str, list[IPAddress]] = {}
        self._targets: list[str] = []
        self._open: set[Question] = set()
        self.refused = False
        """True when the domain says that it doesn't offer the service."""
        if service:
            self._service = normal_name(f"{SERVICE}.{normal_name(name)}")
            self._open.add(Question(self._service, RecordType.SRV))
        else:
            self._service = ""
            self._ask_for([normal_name(name)])

    @property
    def done(self) -> bool:
        """True when nothing is left to ask."""
        return not self._open

    def questions(self) -> tuple[Question, ...]:
        """What to ask now; all of them may be asked at once."""
        return tuple(sorted(self._open, key=lambda question: (question.name, question.type)))

    def answered(self, question: Question, records: Iterable[Record]) -> None:
        """Take the answer to ``question``."""
        if question not in self._open:
            return
        self._open.discard(question)
        records = tuple(records)
        if question.type is RecordType.SRV:
            self._read_services(record for record in records if isinstance(record, ServiceRecord))
        for record in records:
            if isinstance(record, AddressRecord):
                self._read_address(record)

    def home_agents(self) -> tuple[HomeAgentAddresses, ...]:
        """What was found so far, the one to try first in front. Each has an IPv6 address: without
        that, there is nobody to send a binding update to."""
        found: list[HomeAgentAddresses] = []
        for target in self._targets:
            addresses = self._addresses.get(target, [])
            ipv4 = next((each for each in addresses if isinstance(each, IPv4Address)), None)
            for address in addresses:
                known = any(agent.address == address for agent in found)
                if isinstance(address, IPv6Address) and not known:
                    found.append(HomeAgentAddresses(address, ipv4))
        return tuple(found[:MAX_HOME_AGENTS])

    def _read_services(self, records: Iterable[ServiceRecord]) -> None:
        services = [record for record in records if _same(record.name, self._service)]
        offered: list[ServiceRecord] = []
        for record in services:
            # "." is no target; a broken one isn't either.
            if record.target and _valid(record.target) and record.weight >= 0:
                offered.append(record)
        self.refused = bool(services) and not any(record.target for record in services)
        targets: list[str] = []
        for record in order_services(offered, self._random_bits):
            target = normal_name(record.target)
            if target not in targets:
                targets.append(target)
        self._ask_for(targets[:MAX_HOME_AGENTS])

    def _ask_for(self, targets: list[str]) -> None:
        self._targets = targets
        for target in targets:
            self._open.add(Question(target, RecordType.AAAA))
            self._open.add(Question(target, RecordType.A))

    def _read_address(self, record: AddressRecord) -> None:
        name = next((target for target in self._targets if _same(record.name, target)), None)
        if name is None or not is_care_of_address(record.address):
            return
        known = self._addresses.setdefault(name, [])
        if record.address not in known and len(known) < MAX_HOME_AGENTS:
            known.append(record.address)
        kind = RecordType.AAAA if record.address.version == 6 else RecordType.A
        self._open.discard(Question(name, kind))


def _valid(name: str) -> bool:
    try:
        normal_name(name)
    except MobilityError:
        return False
    return True


def _same(name: str, normal: str) -> bool:
    return name.lower().removesuffix(".") == normal
