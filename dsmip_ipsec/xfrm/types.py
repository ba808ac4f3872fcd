"""Immutable views of what XFRM holds: states (SAs), policies and their parts.

Addresses are :mod:`ipaddress` objects, ports and SPIs integers in host order, keys are wrapped
so that they never print. Families mix freely: a state's addresses are the outer ones, its
selector's the inner ones. Fields that don't fit raise :class:`XfrmEncodeError`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, AF_UNSPEC

from dsmip_ipsec.xfrm.constants import (
    REPLAY_WINDOW_MAX,
    Action,
    DefaultAction,
    Direction,
    EncapType,
    EventFlag,
    ExtraFlag,
    Mode,
    PolicyFlag,
    PolicyType,
    Protocol,
    Share,
    StateFlag,
)
from dsmip_ipsec.xfrm.errors import XfrmEncodeError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
#: An attribute that this package has no view of: its number and octets.
RawAttribute = tuple[int, bytes]

ALL_BITS = 0xFFFFFFFF
_NO_STATE_FLAGS = StateFlag(0)
_AF_UNSPEC = int(StateFlag.AF_UNSPEC)
_ESN = int(StateFlag.ESN)
_NO_EXTRA_FLAGS = ExtraFlag(0)
_NO_POLICY_FLAGS = PolicyFlag(0)
_NO_EVENT_FLAGS = EventFlag(0)


def address_family(address: Address | Network) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if address.version == 4 else AF_INET6


class Key:
    """Key octets that never print; compares in constant time, can't be pickled."""

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = bytes(octets)

    def reveal(self) -> bytes:
        """The octets, for whoever hands them to a kernel or a cipher."""
        return self._octets

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._octets, other._octets)

    def __hash__(self) -> int:
        return hash((Key, self._octets))

    def __repr__(self) -> str:
        return f"<Key of {8 * len(self._octets)} bits>"

    def __reduce__(self) -> str:
        raise TypeError("a Key can't be pickled")


@dataclass(frozen=True, slots=True)
class Mark:
    """struct xfrm_mark: matches (or sets) the bits of ``mask``."""

    value: int
    mask: int = ALL_BITS


@dataclass(frozen=True, slots=True)
class Selector:
    """struct xfrm_selector: which packets, by their inner header.

    Without networks it has no family (AF_UNSPEC) and lets every packet pass: what a tunnel state
    that carries both families needs. For ICMP and the Mobility Header ``source_port`` is the
    type and ``destination_port`` the code (0 for the Mobility Header); None is any.
    The ``*_host_bits`` are address bits behind the prefix, as an integer: the kernel keeps and
    compares them (so they are needed to find such a policy again); well-formed ones are 0.
    """

    source: Network | None = None
    destination: Network | None = None
    protocol: int = 0
    source_port: int | None = None
    destination_port: int | None = None
    source_port_mask: int = 0xFFFF
    destination_port_mask: int = 0xFFFF
    interface: int = 0
    user: int = 0
    source_host_bits: int = 0
    destination_host_bits: int = 0

    def __post_init__(self) -> None:
        source, destination = self.source, self.destination
        if source is None or destination is None:
            if source is not destination:
                raise XfrmEncodeError("a selector needs both networks or none")
        elif source.version != destination.version:
            raise XfrmEncodeError(
                f"a selector's networks must be of one family, not {source} and {destination}"
            )

    @property
    def family(self) -> int:
        return address_family(self.source) if self.source is not None else AF_UNSPEC


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm by the name that the kernel's crypto API has for it.

    ``icv_bits``: truncation of a MAC, or ICV of an AEAD. 0 for a MAC means the kernel's default,
    which for hmac(sha256) is 96 bits, not RFC 4868's 128. AEAD keys include the salt.
    """

    name: str
    key: Key
    icv_bits: int = 0


@dataclass(frozen=True, slots=True)
class Encap:
    """struct xfrm_encap_tmpl: UDP encapsulation of ESP (RFC 3948)."""

    source_port: int
    destination_port: int
    type: EncapType = EncapType.ESPINUDP
    original_address: Address | None = None


@dataclass(frozen=True, slots=True)
class Lifetime:
    """struct xfrm_lifetime_cfg; None is unlimited. ``add``: seconds since the object was added,
    ``use``: since it was first used."""

    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None
    soft_add_seconds: int | None = None
    hard_add_seconds: int | None = None
    soft_use_seconds: int | None = None
    hard_use_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class CurrentLifetime:
    """struct xfrm_lifetime_cur: octets and packets so far; times in seconds since 1970."""

    bytes: int = 0
    packets: int = 0
    add_time: int = 0
    use_time: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """Anti-replay state of an SA, and its outbound sequence number.

    ``extended`` says that the kernel keeps it as struct xfrm_replay_state_esn, which windows
    above 32 packets and 64-bit sequence numbers (StateFlag.ESN) need; it is set by itself for
    the former. ``bitmap``: 32-bit words, one when not extended, else as many as the window has.
    """

    window: int = 0
    oseq: int = 0
    seq: int = 0
    oseq_hi: int = 0
    seq_hi: int = 0
    bitmap: tuple[int, ...] = ()
    extended: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.window <= REPLAY_WINDOW_MAX:
            raise XfrmEncodeError(
                f"a replay window of {self.window} packets isn't in 0..{REPLAY_WINDOW_MAX}"
            )
        if self.window > 32 and not self.extended:
            object.__setattr__(self, "extended", True)
        words = (self.window + 31) // 32 if self.extended else 1
        if len(self.bitmap) < words:
            padded = self.bitmap + (0,) * (words - len(self.bitmap))
            object.__setattr__(self, "bitmap", padded)

    def fresh(self) -> Replay:
        """The same window with every counter at zero."""
        return Replay(window=self.window, extended=self.extended)


@dataclass(frozen=True, slots=True)
class Statistics:
    """struct xfrm_stats: packets outside the window, replayed, and of wrong integrity."""

    replay_window: int = 0
    replay: int = 0
    integrity_failed: int = 0


@dataclass(frozen=True, slots=True)
class StateId:
    """What the kernel finds a state by: destination, SPI, protocol and mark.

    ``source`` is needed for the protocols without an SPI (home address option, routing header).
    """

    destination: Address
    spi: int
    protocol: Protocol = Protocol.ESP
    mark: Mark | None = None
    source: Address | None = None

    @property
    def family(self) -> int:
        return address_family(self.destination)


@dataclass(frozen=True, slots=True)
class State:
    """An SA (struct xfrm_usersa_info and its attributes).

    ``output_mark`` is XFRMA_SET_MARK, ``mapping_threshold`` XFRMA_MTIMER_THRESH (seconds between
    two MAPPING notifications; None: one for every packet from a new source),
    ``care_of_address`` XFRMA_COADDR (Mobile IPv6 states), ``tfc_pad`` XFRMA_TFCPAD.
    ``statistics``, ``last_used`` and ``current`` are the kernel's; ``current`` is sent too when
    it isn't all zero, so that lifetimes go on. ``extra`` holds attributes without a view (a
    security context, hardware offload, those of newer kernels): they are sent back as they came.
    """

    destination: Address
    source: Address
    spi: int
    protocol: Protocol = Protocol.ESP
    mode: Mode = Mode.TRANSPORT
    reqid: int = 0
    selector: Selector = field(default_factory=Selector)
    aead: Algorithm | None = None
    encryption: Algorithm | None = None
    authentication: Algorithm | None = None
    compression: Algorithm | None = None
    encap: Encap | None = None
    flags: StateFlag = _NO_STATE_FLAGS
    extra_flags: ExtraFlag = _NO_EXTRA_FLAGS
    replay: Replay = field(default_factory=Replay)
    lifetime: Lifetime = field(default_factory=Lifetime)
    current: CurrentLifetime = field(default_factory=CurrentLifetime)
    mark: Mark | None = None
    output_mark: Mark | None = None
    if_id: int = 0
    care_of_address: Address | None = None
    tfc_pad: int = 0
    mapping_threshold: int | None = None
    replay_threshold: int | None = None
    timer_threshold: int | None = None
    sequence: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    last_used: int = 0
    extra: tuple[RawAttribute, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise XfrmEncodeError(
                f"a state's addresses must be of one family, not {self.source} and "
                f"{self.destination}",
                hint="the inner family is the selector's",
            )
        care_of_address = self.care_of_address
        if care_of_address is not None and care_of_address.version != self.source.version:
            raise XfrmEncodeError("a state's care-of address must be of its own family")
        flags = int(self.flags)
        if self.selector.source is None and not flags & _AF_UNSPEC:
            # Without the flag the kernel would give the selector the state's own family.
            object.__setattr__(self, "flags", self.flags | StateFlag.AF_UNSPEC)
        if flags & _ESN and not self.replay.extended:
            object.__setattr__(self, "replay", replace(self.replay, extended=True, bitmap=()))

    @property
    def family(self) -> int:
        return address_family(self.destination)

    @property
    def id(self) -> StateId:
        by_spi = self.protocol in (Protocol.ESP, Protocol.AH, Protocol.COMP)
        source = None if by_spi else self.source
        return StateId(self.destination, self.spi, self.protocol, self.mark, source)

    def configured(self) -> State:
        """What was configured, without what the kernel counts: for comparing two states."""
        return replace(
            self,
            replay=self.replay.fresh(),
            current=CurrentLifetime(),
            statistics=Statistics(),
            last_used=0,
            sequence=0,
        )


@dataclass(frozen=True, slots=True)
class Template:
    """struct xfrm_user_tmpl: the SA that a policy asks for. Unspecified addresses (0.0.0.0, ::)
    are wildcards; the addresses' family is the outer one."""

    source: Address
    destination: Address
    protocol: Protocol = Protocol.ESP
    mode: Mode = Mode.TRANSPORT
    reqid: int = 0
    spi: int = 0
    optional: bool = False
    share: Share = Share.ANY
    authentication_algorithms: int = ALL_BITS
    encryption_algorithms: int = ALL_BITS
    compression_algorithms: int = ALL_BITS

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise XfrmEncodeError(
                f"a template's addresses must be of one family, not {self.source} and "
                f"{self.destination}"
            )

    @property
    def family(self) -> int:
        return address_family(self.destination)


@dataclass(frozen=True, slots=True)
class PolicyId:
    """What the kernel finds a policy by: direction, exact selector, type, mark and interface ID;
    with an ``index`` that is not 0, by index and type."""

    direction: Direction
    selector: Selector
    type: PolicyType = PolicyType.MAIN
    index: int = 0
    mark: Mark | None = None
    if_id: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """An SPD entry (struct xfrm_userpolicy_info and its attributes). Lower priority wins.

    ``index`` is the kernel's choice when 0. ``extra`` as in :class:`State`.
    """

    direction: Direction
    selector: Selector
    templates: tuple[Template, ...] = ()
    priority: int = 0
    action: Action = Action.ALLOW
    type: PolicyType = PolicyType.MAIN
    index: int = 0
    mark: Mark | None = None
    if_id: int = 0
    flags: PolicyFlag = _NO_POLICY_FLAGS
    share: Share = Share.ANY
    lifetime: Lifetime = field(default_factory=Lifetime)
    current: CurrentLifetime = field(default_factory=CurrentLifetime)
    last_used: int = 0
    extra: tuple[RawAttribute, ...] = field(default=(), repr=False)

    @property
    def id(self) -> PolicyId:
        """Finds this policy by its selector, whatever its index."""
        return PolicyId(self.direction, self.selector, self.type, 0, self.mark, self.if_id)

    def configured(self) -> Policy:
        """What was configured, without what the kernel counts or chose."""
        return replace(self, index=0, current=CurrentLifetime(), last_used=0)


@dataclass(frozen=True, slots=True)
class AddressFilter:
    """struct xfrm_address_filter: limits a dump of states to outer addresses in two prefixes."""

    source: Network
    destination: Network

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise XfrmEncodeError("an address filter's networks must be of one family")


@dataclass(frozen=True, slots=True)
class Migration:
    """struct xfrm_user_migrate: one template (and its SAs) from old to new outer addresses."""

    old_source: Address
    old_destination: Address
    new_source: Address
    new_destination: Address
    protocol: Protocol = Protocol.ESP
    mode: Mode = Mode.TUNNEL
    reqid: int = 0


@dataclass(frozen=True, slots=True)
class KmAddress:
    """struct xfrm_user_kmaddress: the addresses that IKE shall use from now on."""

    local: Address
    remote: Address


@dataclass(frozen=True, slots=True)
class Event:
    """struct xfrm_aevent_id: replay and lifetime counters of a state (XFRM_MSG_NEWAE)."""

    id: StateId
    reqid: int
    flags: EventFlag = _NO_EVENT_FLAGS
    replay: Replay | None = None
    current: CurrentLifetime | None = None
    replay_threshold: int | None = None
    timer_threshold: int | None = None
    if_id: int = 0


@dataclass(frozen=True, slots=True)
class SadInfo:
    """States in the SAD, its hash buckets and their limit."""

    states: int
    buckets: int
    buckets_max: int


@dataclass(frozen=True, slots=True)
class SpdInfo:
    """Policies in the SPD per direction, per-socket ones apart."""

    inbound: int
    outbound: int
    forward: int
    socket_inbound: int = 0
    socket_outbound: int = 0
    socket_forward: int = 0
    buckets: int = 0
    buckets_max: int = 0


@dataclass(frozen=True, slots=True)
class DefaultPolicy:
    """struct xfrm_userpolicy_default: what happens to packets that match no policy (5.14+)."""

    inbound: DefaultAction
    forward: DefaultAction
    outbound: DefaultAction
