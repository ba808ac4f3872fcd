"""IPsec objects as our engines see them: selectors, policies, security associations, keys.

They are values: frozen, comparable, free of any kernel's encoding. ``kernel/`` translates them.
Vocabulary of RFC 4301: a policy (SPD entry) has a selector and a template; an SA (SAD entry) has
an SPI, addresses, a mode and keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, NamedTuple

from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@lru_cache(maxsize=16384)
def host_network(address: Address) -> Network:
    """The network of one address. Kept, since making one costs more than all else in a policy, and
    every change of a binding asks for the same ones."""
    return ip_network(address)


_PROTOCOLS = {IPPROTO_MH: "mh", IPPROTO_ICMPV6: "icmpv6"}


class Direction(Enum):
    """The three SPD directions of Linux; RFC 4301's inbound is ``IN`` (local) and ``FWD``."""

    IN = "in"
    OUT = "out"
    FWD = "fwd"

    __hash__ = object.__hash__  # there is one of each; Enum's own hashes the name


class Mode(Enum):
    TRANSPORT = "transport"
    TUNNEL = "tunnel"


class Action(Enum):
    """What a policy does with a packet: ``PROTECT`` by its template, ``BLOCK`` (discard), or
    ``BYPASS``: it travels in clear, whatever weaker policies say."""

    PROTECT = "protect"
    BLOCK = "block"
    BYPASS = "bypass"


class MobilityHeaderType(Enum):
    """Mobility Header types that policies tell apart (RFC 6275 §6.1)."""

    BINDING_REFRESH_REQUEST = 0
    BINDING_UPDATE = 5
    BINDING_ACKNOWLEDGEMENT = 6
    BINDING_ERROR = 7


class Extension(Enum):
    """IPv6 extension headers of Mobile IPv6 that the kernel adds and takes like IPsec's.

    RFC 6275 §6.3 and §6.4: the first lets a mobile node's packet travel from its care-of address
    with ESP keyed on the home address, the second leads the answer to the care-of address.
    """

    HOME_ADDRESS_OPTION = "home address option"
    TYPE2_ROUTING = "type 2 routing header"


class SecretKey:
    """Key octets that never print.

    Compares in value; ``fingerprint`` tells two keys apart in diagnostics without revealing one.
    """

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = bytes(octets)

    def reveal(self) -> bytes:
        """The octets. Call this only to hand them to a cipher, a kernel or a key export."""
        return self._octets

    @property
    def fingerprint(self) -> str:
        """Six hexadecimal digits of the key's SHA-256."""
        return hashlib.sha256(self._octets).hexdigest()[:6]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and self._octets == other._octets

    def __hash__(self) -> int:
        return hash(self._octets)

    def __len__(self) -> int:
        return len(self._octets)

    def __repr__(self) -> str:
        return f"<SecretKey {8 * len(self._octets)} bits>"

    def __reduce__(self) -> str:
        raise TypeError("a SecretKey can't be pickled")


@dataclass(frozen=True, slots=True)
class Selector:
    """Which packets: networks, upper-layer protocol (0: any), Mobility Header or ICMPv6 type
    (None: any)."""

    source: Network
    destination: Network
    protocol: int = 0
    mobility_header_type: MobilityHeaderType | None = None
    icmpv6_type: int | None = None
    # Policies are looked up by their selectors, and ipaddress hashes slowly.
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __hash__(self) -> int:
        return self._hash

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise ValueError("a selector's networks must be of one family")
        if self.mobility_header_type is not None and self.protocol != IPPROTO_MH:
            raise ValueError("a Mobility Header type needs protocol 135")
        if self.icmpv6_type is not None and self.protocol != IPPROTO_ICMPV6:
            raise ValueError("an ICMPv6 type needs protocol 58")
        parts = self.source, self.destination, self.protocol, self.mobility_header_type
        object.__setattr__(self, "_hash", hash((*parts, self.icmpv6_type)))

    def __str__(self) -> str:
        text = f"{self.source} -> {self.destination}"
        if self.protocol:
            text += f" proto {_PROTOCOLS.get(self.protocol, self.protocol)}"
        if self.mobility_header_type is not None:
            text += f" type {self.mobility_header_type.value}"
        if self.icmpv6_type is not None:
            text += f" type {self.icmpv6_type}"
        return text


@dataclass(frozen=True, slots=True)
class ExtensionTemplate:
    """The extension header that a policy asks for outside ESP.

    ``required`` False, possible inbound only: a packet may come without it, as it does inside UDP
    over IPv4, but with it only under this policy.
    """

    extension: Extension
    reqid: int
    required: bool

    def __str__(self) -> str:
        return f"{'with' if self.required else 'with or without'} {self.extension.value}"


@dataclass(frozen=True, slots=True)
class Template:
    """The SA that a policy asks for (always ESP), and perhaps an extension header outside it.

    Unspecified addresses (:: or 0.0.0.0) are wildcards, possible inbound only: an inbound
    template with wildcards stays true at every handover, and matches SAs whose address has
    stale octets behind it.
    """

    mode: Mode
    source: Address
    destination: Address
    reqid: int
    extension: ExtensionTemplate | None = None

    def __str__(self) -> str:
        ends = "any" if self.source.is_unspecified else f"{self.source} -> {self.destination}"
        text = f"esp {self.mode.value} {ends} reqid {self.reqid}"
        return text if self.extension is None else f"{text} {self.extension}"


@dataclass(frozen=True, slots=True)
class Policy:
    """An SPD entry. Lower ``priority`` wins, as in Linux."""

    direction: Direction
    selector: Selector
    priority: int
    action: Action = Action.PROTECT
    template: Template | None = None

    def __post_init__(self) -> None:
        if (self.action is Action.PROTECT) != (self.template is not None):
            raise ValueError("a protecting policy has a template, another one has none")

    @property
    def key(self) -> tuple[Direction, Selector]:
        """What the kernel knows a policy by."""
        return self.direction, self.selector

    def __str__(self) -> str:
        what = str(self.template) if self.template is not None else self.action.value
        return f"{self.direction.value} {self.selector} priority {self.priority}: {what}"


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """UDP encapsulation of ESP (RFC 3948): ports of the outer UDP header, in host order."""

    source_port: int
    destination_port: int

    def __str__(self) -> str:
        return f"udp {self.source_port} -> {self.destination_port}"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A kernel algorithm by its crypto API name; ``icv_bits`` for AEAD and truncated MACs."""

    name: str
    key: SecretKey
    icv_bits: int = 0


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When an SA ends (hard) or IKE is to replace it (soft): octets, packets, and seconds since it
    was added or first used. None: never (RFC 4301 §4.4.2.1)."""

    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None
    soft_add_seconds: int | None = None
    hard_add_seconds: int | None = None
    soft_use_seconds: int | None = None
    hard_use_seconds: int | None = None


UNLIMITED = Lifetime()


@dataclass(frozen=True, slots=True)
class Mark:
    """The bits of ``mask`` of a packet's mark, matched or set."""

    value: int
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """A SAD entry, one direction, as it was negotiated: what passes through it (sequence numbers,
    the anti-replay window's content, octets so far) is the kernel's and moves with it there.

    ``selector`` is None for a tunnel SA that carries every family. ``replay_window`` in packets.
    """

    spi: int
    source: Address
    destination: Address
    mode: Mode
    reqid: int
    aead: Algorithm | None = None
    encryption: Algorithm | None = None
    authentication: Algorithm | None = None
    selector: Selector | None = None
    encapsulation: Encapsulation | None = None
    replay_window: int = 32
    esn: bool = False
    lifetime: Lifetime = UNLIMITED
    mark: Mark | None = None
    output_mark: Mark | None = None

    @property
    def key(self) -> tuple[Address, int]:
        """What the kernel knows an ESP SA by."""
        return self.destination, self.spi

    def moved(
        self, source: Address, destination: Address, encapsulation: Encapsulation | None
    ) -> SecurityAssociation:
        """This SA with another outer header. (As dataclasses.replace does it, in half the time.)"""
        return SecurityAssociation(
            self.spi, source, destination, self.mode, self.reqid, self.aead, self.encryption,
            self.authentication, self.selector, encapsulation, self.replay_window, self.esn,
            self.lifetime, self.mark, self.output_mark,
        )  # fmt: skip

    def __str__(self) -> str:
        text = (
            f"esp {self.mode.value} {self.source} -> {self.destination} "
            f"spi 0x{self.spi:08x} reqid {self.reqid}"
        )
        if self.encapsulation is not None:
            text += f" {self.encapsulation}"
        return text


@dataclass(frozen=True, slots=True)
class ExtensionState:
    """The kernel's leave to add or to take an extension header of Mobile IPv6, one direction.

    ``source`` and ``destination`` are home address and home agent (or the other way round), as
    they stand inside. ``care_of_address`` is what the kernel writes outside; the unspecified
    address, possible inbound only, takes any: the first BU from a new care-of address has to
    arrive, and what it says is believed by the engine only after ESP.
    """

    extension: Extension
    source: IPv6Address
    destination: IPv6Address
    care_of_address: IPv6Address
    reqid: int

    @property
    def key(self) -> tuple[Extension, IPv6Address, IPv6Address]:
        """What the kernel knows such a state by."""
        return self.extension, self.source, self.destination

    def __str__(self) -> str:
        where = "any" if self.care_of_address.is_unspecified else str(self.care_of_address)
        return (
            f"{self.extension.value} {self.source} -> {self.destination} care-of {where} "
            f"reqid {self.reqid}"
        )


UDP_TUNNELS = "dsmip-udp"


INTERFACE_PREFIXES: Final = {4: "dsmip4-", 6: "dsmip6-"}
"""How the names of tunnels' interfaces begin, by the version of their outer header."""


class TunnelKey(NamedTuple):
    """What a tunnel is known by. A mobile node has one tunnel, and for the moment of a handover to
    the other family, or into UDP, two."""

    home_address: IPv6Address
    version: int
    """Of the outer header."""
    udp: bool

    @property
    def interface(self) -> str:
        """The name of its interface, at most 15 octets. Those in UDP share one, a TUN: the port is
        the daemon's (docs/decisions.md)."""
        if self.udp:
            return UDP_TUNNELS
        digest = hashlib.sha256(self.home_address.packed).hexdigest()
        return f"{INTERFACE_PREFIXES[self.version]}{digest[:8]}"

    def __str__(self) -> str:
        udp = " in udp" if self.udp else ""
        return f"tunnel of {self.home_address}{udp} in ipv{self.version}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel without IPsec, for the payload of one mobile node (RFC 5555 §4.4.3, §4.5.1).

    IPv4 and IPv6 packets both go through it, in IPv6 or IPv4 as its ends are. ``encapsulation``:
    in UDP, of DSMIPv6's port (RFC 5555 §4.2).
    """

    home_address: IPv6Address
    local: Address
    remote: Address
    encapsulation: Encapsulation | None = None

    def __post_init__(self) -> None:
        if self.local.version != self.remote.version:
            raise ValueError("a tunnel's ends must be of one family")

    @property
    def key(self) -> TunnelKey:
        return TunnelKey(self.home_address, self.local.version, self.encapsulation is not None)

    def __str__(self) -> str:
        text = f"{self.local} -> {self.remote}"
        return text if self.encapsulation is None else f"{text} {self.encapsulation}"


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """A route into a tunnel; ``source``: preferred for packets of this node."""

    destination: Network
    tunnel: TunnelKey
    source: Address | None = None

    @property
    def key(self) -> tuple[IPv6Address, Network]:
        """A route of one mobile node's; which of its tunnels it leads to may change."""
        return self.tunnel.home_address, self.destination

    def __str__(self) -> str:
        text = f"{self.destination} into {self.tunnel}"
        return text if self.source is None else f"{text} source {self.source}"
