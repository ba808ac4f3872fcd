"""The models of an inventory file (:mod:`dsmip_ipsec.node.inventory_file` reads one).

An inventory describes one home agent and its mobile nodes. Keys and secrets aren't in it: they
are made at the first rendering, or are in files that it names.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import proposals, quoting
from dsmip_ipsec.ike.inventory import IkeOver, IkeSettings, MobilityMode, Revocation
from dsmip_ipsec.ike.pki import KeyType
from dsmip_ipsec.mobility.mobile_node_config import MAX_PREFIXES

_DEFAULTS = IkeSettings()


def _identity(value: str) -> str:
    return _refused(lambda: quoting.identity(value, "the identity"))


def _ike_proposal(value: str) -> str:
    return _refused(lambda: proposals.check(value, "IKE", "the proposal"))


def _esp_proposal(value: str) -> str:
    return _refused(lambda: proposals.check(value, "ESP", "the proposal"))


def _interface(value: str) -> str:
    return _refused(lambda: quoting.interface(value))


def _refused(check: object) -> str:
    assert callable(check)
    try:
        return str(check())
    except ConfigError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None


def _relative(value: str) -> str:
    parts = value.split("/")
    if not value or value.startswith("/") or ".." in parts or len(value) > 255:
        raise ValueError(
            "should be a file in the inventory's directory or below, without '..' in its path"
        )
    if not value.isprintable():
        raise ValueError("should be a file name of printable characters")
    return value


def _no_scope(value: IPv6Address) -> IPv6Address:
    if value.scope_id is not None:
        raise ValueError("should have no scope")
    return value


def _installed(value: str) -> str:
    if ".." in value.split("/"):
        raise ValueError("should have no '..' in its path")
    return value


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    # Not pydantic's min_length, which counts those that are wrong as missing.
    if not values:
        raise ValueError("should have at least one")
    return values


def _ca_name(value: str) -> str:
    # X.520 (upper bound of a common name), which charon and openssl count in octets.
    if not value.strip() or not value.isprintable() or len(value.encode()) > 64:
        raise ValueError("should be 1 to 64 octets of printable characters")
    return value


Identity = Annotated[str, AfterValidator(_identity)]
IkeProposal = Annotated[str, AfterValidator(_ike_proposal)]
EspProposal = Annotated[str, AfterValidator(_esp_proposal)]
Interface = Annotated[str, AfterValidator(_interface)]
File = Annotated[str, AfterValidator(_relative)]
HomeIPv6 = Annotated[IPv6Address, AfterValidator(_no_scope)]
# A section of swanctl.conf, a directory and a file name.
NodeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
Seconds = Annotated[int, Field(ge=0, le=30 * 86400)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Psk(_Table):
    """A pre-shared key: made at random, unless ``file`` names one."""

    kind: Literal["psk"]
    file: File | None = None


class X509(_Table):
    """A certificate of the deployment's own CA, or (all three files) somebody else's."""

    kind: Literal["x509"]
    key_type: KeyType = KeyType.ECDSA
    days: int = Field(default=365, ge=1, le=36500)
    certificate_file: File | None = None
    private_key_file: File | None = None
    ca_certificate_file: File | None = None


class EapMd5(_Table):
    """EAP-MD5 with a password: made at random, unless ``file`` names one."""

    kind: Literal["eap-md5"]
    eap_identity: Identity | None = None
    file: File | None = None


class EapAkaTable(_Table):
    """EAP-AKA; ``file`` holds K and OPc as 64 hexadecimal digits."""

    kind: Literal["eap-aka"]
    eap_identity: Identity | None = None
    file: File


Credentials = Annotated[Psk | X509 | EapMd5 | EapAkaTable, Field(discriminator="kind")]


class HomeAgentTable(_Table):
    """``ike_over``: at which of its addresses mobile nodes begin IKE. ``outer_ipv4``: behind a
    static NAPT, where they reach it."""

    identity: Identity
    ipv6: HomeIPv6
    ipv4: IPv4Address
    outer_ipv4: IPv4Address | None = None
    ike_over: IkeOver = IkeOver.DUAL
    interfaces: tuple[Interface, ...] = ()
    credentials: Credentials = X509(kind="x509")


class MobileNodeTable(_Table):
    """Home addresses that aren't given come from the pools. ``mobile_network_prefixes``: of the
    networks behind a mobile router (RFC 3963)."""

    identity: Identity
    home_address: HomeIPv6 | None = None
    ipv4_home_address: IPv4Address | None = None
    mobile_network_prefixes: tuple[IPv6Network, ...] = Field(default=(), max_length=MAX_PREFIXES)
    interfaces: tuple[Interface, ...] = ()
    credentials: Credentials = Psk(kind="psk")


class PoolsTable(_Table):
    """Where home addresses are taken from, in the order of the file; without ``ipv4``, mobile
    nodes have no IPv4 home address unless they name one."""

    ipv6: IPv6Network | None = None
    ipv4: IPv4Network | None = None


class IkeTable(_Table):
    """As :class:`dsmip_ipsec.ike.inventory.IkeSettings`, which has the defaults.
    ``prefix_discovery`` and ``return_routability``: SAs of their own for what RFC 4877 §4.3 and
    §4.2 protect; the latter only where payload isn't protected, which it belongs to else."""

    mobility_mode: MobilityMode = _DEFAULTS.mobility
    ike_proposals: Annotated[tuple[IkeProposal, ...], AfterValidator(_some)] = (
        _DEFAULTS.ike_proposals
    )
    esp_proposals: Annotated[tuple[EspProposal, ...], AfterValidator(_some)] = (
        _DEFAULTS.esp_proposals
    )
    rekey_time_s: Seconds = _DEFAULTS.ike_rekey_time
    child_rekey_time_s: Seconds = _DEFAULTS.child_rekey_time
    reauth_time_s: Seconds = _DEFAULTS.reauth_time
    dpd_delay_s: int = Field(default=_DEFAULTS.dpd_delay, ge=1, le=3600)
    retransmit_timeout_s: float = Field(default=_DEFAULTS.retransmit_timeout, ge=0.05, le=60)
    retransmit_base: float = Field(default=_DEFAULTS.retransmit_base, ge=1, le=10)
    retransmit_tries: int = Field(default=_DEFAULTS.retransmit_tries, ge=0, le=20)
    nat_keepalive_s: int = Field(default=_DEFAULTS.nat_keepalive, ge=0, le=3600)
    replay_window: int = Field(default=_DEFAULTS.replay_window, ge=0, le=4096)
    revocation: Revocation = _DEFAULTS.revocation
    configuration_payload: bool = _DEFAULTS.configuration_payload
    prefix_discovery: bool = False
    return_routability: bool = False


class DataTable(_Table):
    """Whether payload runs through ESP tunnels, and whether the DF bit does."""

    protected: bool = _DEFAULTS.protect_data
    copy_df: bool = _DEFAULTS.copy_df


class DaemonsTable(_Table):
    """What the daemons take beside addresses and IKE; see their own configuration."""

    lifetime_s: int = Field(default=600, ge=4, le=4 * 0xFFFF)
    max_lifetime_s: int = Field(default=3600, ge=4, le=4 * 0xFFFF)
    nat_refresh_time_s: int = Field(default=110, ge=1)


class CaTable(_Table):
    """The CA that is made when a certificate is wanted and there is none."""

    name: Annotated[str, AfterValidator(_ca_name)] = "dsmip-ipsec CA"
    key_type: KeyType = KeyType.ECDSA
    days: int = Field(default=3650, ge=1, le=36500)


class OverridesTable(_Table):
    """Files in strongSwan's syntax, included at the end of what is rendered."""

    swanctl: File | None = None
    strongswan: File | None = None


class InventoryFile(_Table):
    """The whole file. ``directory``: where each node will have its files; where they are
    rendered, if it isn't given."""

    home_agent: HomeAgentTable
    mobile_nodes: dict[NodeName, MobileNodeTable] = Field(min_length=1)
    pools: PoolsTable = PoolsTable()
    ike: IkeTable = IkeTable()
    data: DataTable = DataTable()
    daemons: DaemonsTable = DaemonsTable()
    ca: CaTable = CaTable()
    overrides: dict[NodeName, OverridesTable] = {}
    directory: Annotated[str, AfterValidator(_installed)] | None = Field(
        default=None, pattern=r"^/[A-Za-z0-9._/-]{1,90}$"
    )
