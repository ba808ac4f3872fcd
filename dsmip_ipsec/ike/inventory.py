"""What is known about a deployment before any daemon starts: who, which addresses, which keys.

Everything that the templates render comes from these immutable descriptions; both ends are
rendered from the same ones, so that they can't disagree.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import proposals, quoting


class MobilityMode(enum.Enum):
    """How the IKE_SA follows a mobile node (RFC 5555 §5.1, RFC 4555)."""

    MOBIKE = "mobike"
    K_BIT = "k-bit"
    RENEGOTIATE = "renegotiate"


@dataclass(frozen=True, slots=True)
class Certificate:
    """An end's X.509 credentials, PEM. The private key never shows in a repr."""

    certificate: bytes
    ca_certificate: bytes
    private_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        for name, pem, marker in (
            ("certificate", self.certificate, b"-----BEGIN CERTIFICATE-----"),
            ("ca_certificate", self.ca_certificate, b"-----BEGIN CERTIFICATE-----"),
            ("private_key", self.private_key, b"PRIVATE KEY-----"),
        ):
            if marker not in pem:
                raise ConfigError(f"{name} is not PEM", hint=f"it has to contain {marker.decode()}")


@dataclass(frozen=True, slots=True)
class PresharedKey:
    """A key shared by one mobile node and the home agent; at least 16 octets, random ones."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ConfigError(
                f"a pre-shared key of {len(self.secret)} octets is too short",
                hint="use at least 16 random octets: a short or guessable key can be found "
                "off-line by whoever poses as the home agent (RFC 7296 §2.15)",
            )


@dataclass(frozen=True, slots=True)
class EapPassword:
    """EAP-MD5 (RFC 3748 §5.4): the home agent shows its certificate, then the mobile node proves
    that it knows ``password``. EAP-MD5 makes no key of its own, so nothing but the home agent's
    certificate stands against someone in the middle (RFC 7296 §2.16)."""

    identity: str
    password: bytes = field(repr=False)
    ca_certificate: bytes

    def __post_init__(self) -> None:
        quoting.identity(self.identity, "EAP identity")
        if not 8 <= len(self.password) <= 256:
            raise ConfigError(
                f"an EAP password of {len(self.password)} octets",
                hint="use 8 to 256 octets, better random ones",
            )


@dataclass(frozen=True, slots=True)
class EapAka:
    """EAP-AKA (RFC 4187) with a software USIM: ``key`` is K, ``opc`` is OPc, 16 octets each (3GPP
    TS 35.206). charon needs a plugin that computes Milenage (``eap-aka-3gpp``); Debian 12's
    packages have EAP-AKA itself, but none of those."""

    identity: str
    key: bytes = field(repr=False)
    opc: bytes = field(repr=False)
    ca_certificate: bytes

    def __post_init__(self) -> None:
        quoting.identity(self.identity, "EAP identity")
        if len(self.key) != 16 or len(self.opc) != 16:
            raise ConfigError("EAP-AKA needs K and OPc of 16 octets each")


Credentials = Certificate | PresharedKey | EapPassword | EapAka


class Revocation(enum.Enum):
    """How charon takes revocation lists (swanctl.conf(5), ``revocation``): STRICT fails without a
    valid one, RELAXED fails only for what a list revokes."""

    STRICT = "strict"
    RELAXED = "relaxed"


class IkeOver(enum.Enum):
    """The home agent's addresses at which mobile nodes may begin IKE. Each has a connection of its
    own there, and the care-of address's family decides between them (docs/decisions.md)."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    DUAL = "dual"


@dataclass(frozen=True, slots=True)
class HomeAgent:
    """The home agent. ``ipv4`` is the address that mobile nodes on IPv4 reach it at; ``ipv6`` its
    address on the home link, which binding updates are addressed to; ``ike_over`` tells at
    which of them IKE may begin (MOBIKE may use both later). Behind a static NAPT ``ipv4`` is its
    own address, and ``outer_ipv4`` the one that mobile nodes reach it at."""

    identity: str
    ipv6: IPv6Address
    ipv4: IPv4Address
    certificate: Certificate | None = None
    ike_over: IkeOver = IkeOver.DUAL
    outer_ipv4: IPv4Address | None = None

    @property
    def over_ipv4(self) -> bool:
        """Whether IKE may begin over IPv4."""
        return self.ike_over is not IkeOver.IPV6

    @property
    def over_ipv6(self) -> bool:
        """Whether IKE may begin over IPv6."""
        return self.ike_over is not IkeOver.IPV4

    def __post_init__(self) -> None:
        quoting.identity(self.identity, "home agent identity")


@dataclass(frozen=True, slots=True)
class MobileNode:
    """One mobile node. ``name`` names its connection at both ends.

    ``signalling_reqid`` and ``data_reqid`` (1 … 2³²-1) tie the SAs that charon negotiates to the
    policies that we install; they are unique per mobile node on a home agent, as is
    ``mirror_reqid`` of the daemons' own SAs (None: no daemon is configured from this).
    ``mobile_network_prefixes``: of the networks behind a mobile router (RFC 3963).
    ``prefix_discovery_reqid`` and ``return_routability_reqid``: of SAs of their own for mobile
    prefix discovery, and for HoTI and HoT where payload isn't protected (RFC 4877 §4.2, §4.3); 0:
    none.
    """

    name: str
    identity: str
    home_address: IPv6Address
    credentials: Credentials
    signalling_reqid: int
    data_reqid: int
    ipv4_home_address: IPv4Address | None = None
    mirror_reqid: int | None = None
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()
    prefix_discovery_reqid: int = 0
    return_routability_reqid: int = 0

    @property
    def home_addresses(self) -> tuple[IPv6Address | IPv4Address, ...]:
        ipv4 = self.ipv4_home_address
        return (self.home_address, ipv4) if ipv4 is not None else (self.home_address,)

    def __post_init__(self) -> None:
        quoting.section_name(self.name, "mobile node name")
        quoting.identity(self.identity, "mobile node identity")
        for label, reqid in (
            ("signalling_reqid", self.signalling_reqid),
            ("data_reqid", self.data_reqid),
        ):
            if not 0 < reqid < 1 << 32:
                raise ConfigError(f"{label} {reqid} is outside 1 … 4294967295")
        if self.signalling_reqid == self.data_reqid:
            raise ConfigError(
                f"{self.name}: signalling_reqid and data_reqid are both {self.data_reqid}",
                hint="the kernel chooses a policy's SA by reqid, so they must differ",
            )


@dataclass(frozen=True, slots=True)
class IkeSettings:
    """Algorithms and timers, shared by both ends. All times are seconds.

    ESP proposals are without extended sequence numbers by default: at the rates of a mobile node
    2³² packets outlast every rekey_time, MIGRATE and state replacement carry the 32-bit replay
    state in one small attribute, and tshark can't decrypt ESN captures.

    ``force_udp``: ESP is encapsulated in UDP without NAT too (the F flag, RFC 5555 §3.1.3).

    ``copy_df``: the outer IPv4 header of data SAs has the DF bit that the inner packet has (an IPv6
    one's counts as set), and the path MTU is found (RFC 4301 §8.1). False: never, so that paths
    below 1280 octets and ESP's overhead carry IPv6, in fragments (RFC 4459 §3.1).

    ``reauth_time`` 0: no reauthentication but by the daemons' own doing. With
    ``configuration_payload``, mobile nodes ask for their home addresses in IKE_AUTH and the home
    agent hands out those that are their own (RFC 7296 §2.19, as in RFC 5026 §5.3).

    The timers notice a dead peer in ``dpd_delay`` plus :meth:`retransmission_time`, 14.4 s by
    default.
    """

    ike_proposals: tuple[str, ...] = ("aes128gcm16-prfsha256-ecp256",)
    esp_proposals: tuple[str, ...] = ("aes128gcm16-ecp256",)
    mobility: MobilityMode = MobilityMode.MOBIKE
    protect_data: bool = True
    force_udp: bool = False
    copy_df: bool = True
    dpd_delay: int = 4
    ike_rekey_time: int = 4 * 3600
    child_rekey_time: int = 3600
    retransmit_timeout: float = 0.5
    retransmit_base: float = 1.5
    retransmit_tries: int = 5
    nat_keepalive: int = 20
    replay_window: int = 256
    reauth_time: int = 0
    revocation: Revocation = Revocation.RELAXED
    configuration_payload: bool = False

    def __post_init__(self) -> None:
        uses: tuple[tuple[str, proposals.Use, tuple[str, ...]], ...] = (
            ("ike_proposals", "IKE", self.ike_proposals),
            ("esp_proposals", "ESP", self.esp_proposals),
        )
        for label, use, named in uses:
            if not named:
                raise ConfigError(f"{label} is empty", hint='name at least one, or "default"')
            for proposal in named:
                proposals.check(proposal, use, label)
        for label, value, low, high in (
            ("dpd_delay", self.dpd_delay, 1, 3600),
            ("ike_rekey_time", self.ike_rekey_time, 0, 30 * 86400),
            ("child_rekey_time", self.child_rekey_time, 0, 30 * 86400),
            ("reauth_time", self.reauth_time, 0, 30 * 86400),
            ("retransmit_timeout", self.retransmit_timeout, 0.05, 60),
            ("retransmit_base", self.retransmit_base, 1.0, 10),
            ("retransmit_tries", self.retransmit_tries, 0, 20),
            ("nat_keepalive", self.nat_keepalive, 0, 3600),
            ("replay_window", self.replay_window, 0, 4096),
        ):
            if not low <= value <= high:  # False for NaN too
                raise ConfigError(f"{label} = {value} is outside {low} … {high}")

    def retransmission_time(self) -> float:
        """Seconds from the first transmission of an unanswered IKE request until charon gives the
        peer up (strongswan.conf(5), IKEv2 RETRANSMISSION)."""
        return sum(
            self.retransmit_timeout * self.retransmit_base**i
            for i in range(self.retransmit_tries + 1)
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """One home agent and its mobile nodes. Names, identities, home addresses and reqids are
    unique, since each of them decides what a peer may do. ``revocation_list``: the CA's, PEM."""

    home_agent: HomeAgent
    mobile_nodes: tuple[MobileNode, ...]
    settings: IkeSettings = IkeSettings()
    revocation_list: bytes | None = None

    def __post_init__(self) -> None:
        seen: dict[tuple[str, object], str] = {}
        for mn in self.mobile_nodes:
            keys: list[tuple[str, object]] = [
                ("name", mn.name),
                # RFC 4301 §4.4.3: the PAD is looked up by identity, and names compare
                # without regard to case.
                ("identity", mn.identity.lower()),
                ("home address", mn.home_address),
                ("reqid", mn.signalling_reqid),
                ("reqid", mn.data_reqid),
            ]
            others = mn.prefix_discovery_reqid, mn.return_routability_reqid
            keys += [("reqid", reqid) for reqid in others if reqid]
            if mn.mirror_reqid is not None:
                keys.append(("reqid", mn.mirror_reqid))
            if mn.ipv4_home_address is not None:
                keys.append(("IPv4 home address", mn.ipv4_home_address))
            if isinstance(mn.credentials, EapPassword | EapAka):
                keys.append(("EAP identity", mn.credentials.identity.lower()))
            for key in keys:
                if key in seen:
                    raise ConfigError(
                        f"mobile nodes {seen[key]} and {mn.name} share the {key[0]} {key[1]}",
                        hint="give each mobile node its own",
                    )
                seen[key] = mn.name
            if mn.identity.lower() == self.home_agent.identity.lower():
                raise ConfigError(f"mobile node {mn.name} has the home agent's identity")
            if not isinstance(mn.credentials, PresharedKey) and self.home_agent.certificate is None:
                raise ConfigError(
                    f"mobile node {mn.name} wants a certificate from the home agent, which has "
                    "none",
                    hint="issue one for the home agent, or use pre-shared keys",
                )

    def mobile_node(self, name: str) -> MobileNode:
        """The mobile node of that name. :raises ConfigError: there is none."""
        for mn in self.mobile_nodes:
            if mn.name == name:
                return mn
        raise ConfigError(
            f"no mobile node named {name!r}",
            hint="known: " + (", ".join(mn.name for mn in self.mobile_nodes) or "none"),
        )
