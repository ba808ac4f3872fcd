"""Configuration of the daemons: TOML files, validated, unknown keys refused."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsmip_ipsec import toml_checks
from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.mobility.mobile_node_config import MAX_PREFIXES
from dsmip_ipsec.node.configured_sas import AssociationSection

# Who applies ESP: the kernel, with keys from IKE, or this process, with configured keys.
IpsecKind = Literal["kernel", "userspace"]

IKE_TIMEOUT_S = 15.0  # for charon to do what it is asked for
# Who puts on and takes off Mobile IPv6's extension headers; "auto": the kernel, where it can.
NativeSignalling = Literal["auto", "kernel", "own"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IkeSection(_Section):
    """How to reach charon, and what its configuration calls things.

    ``connection`` leads to the home agent's IPv4 address, ``ipv6_connection`` to its IPv6 one;
    they differ in that only. Without one of them, IKE begins over the other family alone.
    """

    vici_socket: Path
    connection: str = ""
    ipv6_connection: str = ""
    timeout_s: float = Field(default=IKE_TIMEOUT_S, gt=0)
    mobility_mode: MobilityMode = MobilityMode.MOBIKE

    @model_validator(mode="after")
    def _some_connection(self) -> IkeSection:
        if not self.connection and not self.ipv6_connection:
            raise ValueError("connection or ipv6_connection has to be named")
        return self

    def connection_from(self, care_of_address: IPv4Address | IPv6Address) -> str:
        """The one that begins at such a care-of address; "": there is none."""
        return self.connection if care_of_address.version == 4 else self.ipv6_connection


class HomeAgentIkeSection(_Section):
    """Without ``vici_socket``, the daemon sees what charon does in the kernel only: it doesn't
    notice that charon restarted, nor which SAs are left over from before."""

    vici_socket: Path | None = None
    timeout_s: float = Field(default=IKE_TIMEOUT_S, gt=0)
    mobility_mode: MobilityMode = MobilityMode.MOBIKE


class PeerSection(_Section):
    """One mobile node as both ends describe it. ``associations``: for user-space IPsec only.

    ``prefix_discovery_reqid`` and ``return_routability_reqid``: of SAs of their own for what RFC
    4877 §4.3 and §4.2 protect, the latter where payload isn't protected; 0: IKE makes none.
    ``mobile_network_prefixes``: of the networks behind it, if it is a mobile router (RFC 3963);
    the home agent permits these and no others.
    """

    home_address: IPv6Address
    ipv4_home_address: IPv4Address | None = None
    mobile_network_prefixes: tuple[IPv6Network, ...] = Field(default=(), max_length=MAX_PREFIXES)
    signalling_reqid: int = Field(ge=1, le=0xFFFFFFFF)
    mirror_reqid: int = Field(ge=1, le=0xFFFFFFFF)
    data_reqid: int = Field(ge=1, le=0xFFFFFFFF)
    prefix_discovery_reqid: int = Field(default=0, ge=0, le=0xFFFFFFFF)
    return_routability_reqid: int = Field(default=0, ge=0, le=0xFFFFFFFF)
    associations: tuple[AssociationSection, ...] = Field(default=(), repr=False)


class HomeAgentSection(_Section):
    """The home agent's addresses as this end uses them.

    ``behind_nat``: a static NAPT is before it (RFC 5555 §1.3, scenario 3), and ESP in UDP
    wherever a mobile node is. Mobile nodes have the NAT's outside address as
    ``home_agent_ipv4``, the home agent itself its own.
    """

    home_agent: IPv6Address
    home_agent_ipv4: IPv4Address
    behind_nat: bool = False


class MobileNodeConfig(_Section):
    """The mobile node's daemon. ``lifetime_s`` is the binding lifetime that it asks for.

    ``interfaces``: those on which it detects movement by itself, the preferred one first; empty:
    it moves by command only. ``home_prefix``: by which it knows its home link.
    ``force_udp``: ask for UDP encapsulation in IPv4 networks without NAT too (F, RFC 5555 §3.1.3),
    where plain ESP doesn't pass. With MOBIKE, charon needs ``encap = yes`` for it.
    ``explicit_prefixes``: a mobile router names its prefixes in each binding update, instead of
    leaving them to what the home agent has configured (RFC 3963 §5.2).
    """

    control_socket: Path
    interfaces: tuple[str, ...] = ()
    home_prefix: IPv6Network | None = None
    ipv4_home_prefix_length: int = Field(default=32, ge=1, le=32)
    home_agent: HomeAgentSection
    mobile_node: PeerSection
    ipsec: IpsecKind = "kernel"
    native_signalling: NativeSignalling = "auto"
    ike: IkeSection | None = None
    lifetime_s: int = Field(default=600, ge=4, le=4 * 0xFFFF)
    force_udp: bool = False
    explicit_prefixes: bool = True
    protect_data: bool = True
    handover_timeout_s: float = Field(default=15.0, gt=0)

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> MobileNodeConfig:
        _check_keys(self.ipsec, (self.mobile_node,), protect_data=self.protect_data)
        if (self.ipsec == "kernel") != (self.ike is not None):
            raise ValueError('a section "ike" belongs to ipsec = "kernel", and only there')
        return self

    @property
    def _moves(self) -> bool:
        return _moves_associations(self.ipsec, self.ike)

    def peering(self, *, native: bool = False) -> Peering:
        """``native``: the kernel sees to Mobile IPv6's extension headers."""
        node, protect = self.mobile_node, self.protect_data
        return _peering(
            Role.MOBILE_NODE, self.home_agent, node, protect, self._moves, native=native
        )


class HomeAgentConfig(_Section):
    """The home agent's daemon, with the mobile nodes that may register.

    ``home_link``: the interface where home addresses are defended while their mobile nodes are
    away, "" where nobody else is on that link. ``duplicate_address_detection`` is on where there
    is one, unless it says otherwise. ``home_prefixes``: home addresses elsewhere are refused.
    """

    control_socket: Path
    home_link: str = ""
    home_prefixes: tuple[IPv6Network, ...] = ()
    duplicate_address_detection: bool | None = None
    home_agent: HomeAgentSection
    mobile_nodes: tuple[PeerSection, ...] = Field(min_length=1)
    max_lifetime_s: int = Field(default=3600, ge=4, le=4 * 0xFFFF)
    nat_refresh_time_s: int = Field(default=110, ge=1)
    ike: HomeAgentIkeSection = HomeAgentIkeSection()
    protect_data: bool = True
    ipsec: IpsecKind = "kernel"
    native_signalling: NativeSignalling = "auto"

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> HomeAgentConfig:
        _check_keys(self.ipsec, self.mobile_nodes, protect_data=self.protect_data)
        return self

    @property
    def detects_duplicates(self) -> bool:
        """Whether RFC 6275 §10.3.1's duplicate address detection is done."""
        if self.duplicate_address_detection is None:
            return bool(self.home_link)
        return self.duplicate_address_detection

    @property
    def _moves(self) -> bool:
        return _moves_associations(self.ipsec, self.ike)

    def peerings(self, *, native: bool = False) -> tuple[Peering, ...]:
        """``native``: the kernel sees to Mobile IPv6's extension headers."""
        agent, protect = self.home_agent, self.protect_data
        return tuple(
            _peering(Role.HOME_AGENT, agent, node, protect, self._moves, native=native)
            for node in self.mobile_nodes
        )


def _check_keys(ipsec: IpsecKind, nodes: tuple[PeerSection, ...], *, protect_data: bool) -> None:
    others = {
        "prefix_discovery_reqid": any(node.prefix_discovery_reqid for node in nodes),
        "return_routability_reqid": any(node.return_routability_reqid for node in nodes),
    }
    for name in others:
        if ipsec == "userspace" and others[name]:
            raise ValueError(f'"{name}" belongs to ipsec = "kernel"')
    if protect_data and others["return_routability_reqid"]:
        raise ValueError(
            '"return_routability_reqid" belongs to protect_data = false: else HoTI and HoT are '
            "payload (RFC 4877 §6.4)"
        )
    if ipsec == "userspace" and not protect_data:
        raise ValueError('protect_data = false needs ipsec = "kernel"')
    if ipsec == "kernel" and any(node.associations for node in nodes):
        raise ValueError('"associations" belong to ipsec = "userspace": else IKE makes them')


def _moves_associations(ipsec: IpsecKind, ike: IkeSection | HomeAgentIkeSection | None) -> bool:
    """RFC 5555 §5.1: with MOBIKE, IKE moves the SAs, and nobody else. Without IKE, nobody else is
    there to move them."""
    return ipsec == "userspace" or (
        ike is not None and ike.mobility_mode is not MobilityMode.MOBIKE
    )


def _peering(
    role: Role,
    agent: HomeAgentSection,
    node: PeerSection,
    protect: bool,
    moves: bool,
    *,
    native: bool,
) -> Peering:
    return Peering(
        role=role,
        home_address=node.home_address,
        ipv4_home_address=node.ipv4_home_address,
        home_agent=agent.home_agent,
        home_agent_ipv4=agent.home_agent_ipv4,
        reqids=Reqids(
            node.signalling_reqid,
            node.mirror_reqid,
            node.data_reqid,
            node.prefix_discovery_reqid,
            node.return_routability_reqid,
        ),
        home_agent_behind_nat=agent.behind_nat,
        protect_data=protect,
        moves_associations=moves,
        native_signalling=native,
        mobile_network_prefixes=node.mobile_network_prefixes,
    )


Config = TypeVar("Config", MobileNodeConfig, HomeAgentConfig)


def load(path: Path, model: type[Config]) -> Config:
    """Read a daemon's configuration. Raises ConfigError, with what is wrong and on which line (no
    value is shown: it may be a key); a file that holds keys must not be others' to read."""
    kind = toml_checks.Kind(model, "a daemon's configuration", "docs/daemons.md", secrets=True)
    try:
        with path.open("rb") as file:
            others_may_read = bool(os.fstat(file.fileno()).st_mode & 0o077)
            text = toml_checks.decoded(file.read(), path)
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}", path=path, hint="give the daemon's TOML file"
        ) from error
    data, lines = toml_checks.parsed(text, path, kind)
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        raise toml_checks.validation_error(error, kind, data, lines, path) from None
    if config.ipsec == "userspace" and others_may_read:
        raise ConfigError(
            "it holds keys, and others may read it", path=path, hint=f"chmod 600 {path}"
        )
    return config
