"""From a deployment to the strongSwan files of one node.

The directory of a node then looks so::

    strongswan.conf         for STRONGSWAN_CONF
    swanctl.conf            SWANCTL_DIR is the directory itself
    x509/NODE.pem           the node's certificate
    x509ca/ca.pem           the CA that the peers' certificates are checked against
    x509crl/ca.pem          what that CA has revoked
    private/NODE.pem        0600
    swanctl-overrides.conf, strongswan-overrides.conf
                            the user's own settings, if any: read last, they win
    charon.vici             the VICI socket, once charon runs
    charon.log              its log, without secrets
    charon-keys.log         0600, only if the export of keys was asked for; it holds pre-shared keys
                            as well, so hand out what :mod:`dsmip_ipsec.ike.keylog` makes of it
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import authentication, quoting
from dsmip_ipsec.ike.authentication import CA_FILE, Round
from dsmip_ipsec.ike.inventory import (
    Deployment,
    HomeAgent,
    IkeSettings,
    MobileNode,
    MobilityMode,
)
from dsmip_ipsec.ike.other_children import Child, other_children
from dsmip_ipsec.ike.private_files import make_directory, remove_file, replace_file
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.resources import resource_directory

# charon takes 5.9.8's plugins in this order. openssl brings every algorithm that the proposals
# need, X.509 and the private keys; with nothing else to load and test, charon starts fastest.
PLUGINS = (
    "nonce",
    "pem",
    "pkcs1",
    "pkcs8",
    "openssl",
    "kdf",
    "x509",
    "constraints",
    "revocation",
    "pubkey",
    "kernel-netlink",
    "socket-default",
    "vici",
)

# AF_UNIX paths hold 107 octets and a zero.
_MAX_SOCKET_PATH = 107
# Half-open IKE_SAs that a home agent has at least, before it wants cookies (charon: 30 in all).
_HALF_OPEN = 30


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Where the files of one node's charon are."""

    directory: Path
    node: str
    export_keys: bool = False

    @property
    def strongswan_conf(self) -> Path:
        return self.directory / "strongswan.conf"

    @property
    def swanctl_conf(self) -> Path:
        return self.directory / "swanctl.conf"

    @property
    def vici_socket(self) -> Path:
        return self.directory / "charon.vici"

    @property
    def log_file(self) -> Path:
        return self.directory / "charon.log"

    @property
    def key_log(self) -> Path | None:
        return self.directory / "charon-keys.log" if self.export_keys else None


@dataclass(frozen=True, slots=True)
class Overrides:
    """strongSwan settings of the user's own, in strongSwan's syntax. They are included at the end
    of the rendered files: a section of the same name is merged, a key that comes later wins."""

    swanctl: bytes | None = None
    strongswan: bytes | None = None


SWANCTL_OVERRIDES = "swanctl-overrides.conf"
STRONGSWAN_OVERRIDES = "strongswan-overrides.conf"


@dataclass(frozen=True, slots=True)
class _Connection:
    name: str
    local_addresses: tuple[str, ...]
    remote_addresses: tuple[str, ...]
    local: Round
    remote: Round
    pools: tuple[str, ...]
    virtual_ips: tuple[str, ...]
    signalling_local_ts: str
    signalling_remote_ts: str
    signalling_tunnel_local_ts: tuple[str, ...]
    signalling_tunnel_remote_ts: tuple[str, ...]
    data_local_ts: tuple[str, ...]
    data_remote_ts: tuple[str, ...]
    signalling_reqid: int
    data_reqid: int
    pretends_nat: bool
    others: tuple[Child, ...]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_directory("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - not HTML; the quoting filters guard the values
    )
    environment.filters["quoted"] = quoting.quoted
    environment.filters["shell"] = lambda value: shlex.quote(str(value))
    environment.filters["typed_identity"] = quoting.typed_identity
    return environment


def template(name: str) -> jinja2.Template:
    """A template of ``templates/``, strict about what it is given."""
    return _environment().get_template(name)


def _mobility_ts(address: object) -> str:
    return f"{quoting.address(address)}[135]"  # IPPROTO_MH


def _tunnel_ts(address: object) -> tuple[str, ...]:
    # The responder chooses among its children by traffic selectors alone, never by mode. With
    # the same ones, the home agent would take "signalling" for a tunnel too, allocate its SPI
    # between the home address and itself, and leave that half-made state in the way of the
    # mirror for 165 s. A selector for "no next header" (59), which none of our packets has,
    # tells the two apart.
    return (_mobility_ts(address), f"{quoting.address(address)}[59]")


def _connections(deployment: Deployment, node: str | None) -> list[_Connection]:
    ha = deployment.home_agent
    connections = []
    for mn in deployment.mobile_nodes:
        if node is not None and mn.name != node:
            continue
        at_home_agent = node is None
        home: tuple[str, ...] = (f"{quoting.address(mn.home_address)}/128",)
        if mn.ipv4_home_address is not None:
            home += (f"{quoting.address(mn.ipv4_home_address)}/32",)
        # What the mobile node's payload may be exchanged with: anything, in the families that it
        # has a home address of.
        world = ("::/0", "0.0.0.0/0")[: len(home)]
        behind = tuple(str(prefix) for prefix in mn.mobile_network_prefixes)
        rounds = authentication.rounds(ha, mn)
        handed_out = deployment.settings.configuration_payload
        signalling = (_mobility_ts(mn.home_address), _mobility_ts(ha.ipv6))
        connection = _Connection(
            name=mn.name,
            local_addresses=_ike_addresses(ha) if at_home_agent else ("%any",),
            remote_addresses=("%any",),
            local=rounds[not at_home_agent],
            remote=rounds[at_home_agent],
            pools=tuple(pool for pool, _ in _pools(mn)) if handed_out and at_home_agent else (),
            virtual_ips=("::", "0.0.0.0")[: len(home)]  # noqa: S104 - "any of yours"
            if handed_out and not at_home_agent
            else (),
            signalling_local_ts=signalling[at_home_agent],
            signalling_remote_ts=signalling[not at_home_agent],
            signalling_tunnel_local_ts=_tunnel_ts(ha.ipv6 if at_home_agent else mn.home_address),
            signalling_tunnel_remote_ts=_tunnel_ts(mn.home_address if at_home_agent else ha.ipv6),
            data_local_ts=world if at_home_agent else home + behind,
            data_remote_ts=home + behind if at_home_agent else world,
            signalling_reqid=mn.signalling_reqid,
            data_reqid=mn.data_reqid,
            pretends_nat=False,
            others=other_children(ha, mn, at_home_agent=at_home_agent),
        )
        if at_home_agent:
            connections.append(connection)
            continue
        # charon takes the first remote address and stays with its family when it initiates: a
        # connection for each.
        if ha.over_ipv4:
            address = quoting.address(ha.outer_ipv4 or ha.ipv4)
            connections.append(
                replace(
                    connection,
                    remote_addresses=(address,),
                    pretends_nat=_pretends_nat(deployment.settings),
                )
            )
        if ha.over_ipv6:
            name, address = ipv6_connection(mn.name), quoting.address(ha.ipv6)
            connections.append(replace(connection, name=name, remote_addresses=(address,)))
    return connections


def ipv6_connection(name: str) -> str:
    """What the mobile node ``name`` calls the connection to the home agent's IPv6 address."""
    return f"{name}-ipv6"


def _pretends_nat(settings: IkeSettings) -> bool:
    """Whether mobile nodes make the home agent's charon believe in a NAT."""
    return settings.force_udp or settings.mobility is not MobilityMode.MOBIKE


def _ike_addresses(ha: HomeAgent) -> tuple[str, ...]:
    """The home agent's own, at which it takes IKE_SAs."""
    ipv4 = (quoting.address(ha.ipv4),) if ha.over_ipv4 else ()
    return (*ipv4, quoting.address(ha.ipv6)) if ha.over_ipv6 else ipv4


def _pools(mn: MobileNode) -> list[tuple[str, str]]:
    """A pool for each home address: it can be nobody else's (RFC 4877 §4.2)."""
    return [
        (f"{mn.name}-ipv{address.version}", f"{quoting.address(address)}/{address.max_prefixlen}")
        for address in mn.home_addresses
    ]


def render_swanctl(deployment: Deployment, node: str | None, *, overridden: bool = False) -> str:
    """swanctl.conf of the home agent (``node`` None) or of the mobile node named ``node``.

    It contains the pre-shared keys. On the home agent, each mobile node has a connection of its
    own, bound to its identity and limited to its home addresses: this is the PAD (RFC 4877 §4.2).

    :param overridden: whether there are overrides to include.
    :raises ConfigError: an unknown node, or a value that can't be quoted.
    """
    if node is not None:
        deployment.mobile_node(node)
    pools = (
        [pool for mn in deployment.mobile_nodes for pool in _pools(mn)]
        if deployment.settings.configuration_payload and node is None
        else []
    )
    return (
        _environment()
        .get_template("swanctl.conf.j2")
        .render(
            node=node or "the home agent",
            connections=_connections(deployment, node),
            pools=pools,
            secrets=list(authentication.secrets(deployment, node)),
            settings=deployment.settings,
            overrides=SWANCTL_OVERRIDES if overridden else None,
        )
    )


def render_strongswan(
    settings: IkeSettings,
    files: NodeFiles,
    *,
    interfaces: tuple[str, ...] = (),
    threads: int = 8,
    plugins: tuple[str, ...] = PLUGINS,
    mobile: bool = True,
    mobile_nodes: int = 1,
    overridden: bool = False,
) -> str:
    """strongswan.conf for a charon of its own in ``files.directory``.

    :param interfaces: the only ones that charon looks at; if empty, all but our TUN, which it
        would take for a path to its peer: it would announce its addresses with MOBIKE and might
        move the IKE_SA into the very tunnel that it protects. A home link is to be left out, too.
    :param threads: worker threads of charon. It keeps three or four busy for itself, and each
        ``initiate`` that waits takes one more.
    :param mobile: the node moves. Without MOBIKE, the sources of its packets then are left to
        the routes; a home agent always answers from its own address.
    :param mobile_nodes: of a home agent: how many it serves. charon protects itself against more
        IKE_SAs at a time that are half open.
    :raises ConfigError: a path that can't be quoted or is too long for a socket.
    """
    if len(os.fsencode(files.vici_socket)) > _MAX_SOCKET_PATH:
        raise ConfigError(
            f"the VICI socket's path is longer than {_MAX_SOCKET_PATH} octets: {files.vici_socket}",
            hint="choose a shorter directory",
        )
    if not 5 <= threads <= 256:
        raise ConfigError(f"threads = {threads} is outside 5 … 256")
    return (
        _environment()
        .get_template("strongswan.conf.j2")
        .render(
            node=quoting.section_name(files.node, "node name"),
            plugins=[quoting.section_name(plugin, "plugin") for plugin in plugins],
            threads=threads,
            interfaces=[quoting.interface(interface) for interface in interfaces],
            ignored=quoting.interface(TUN_NAME),
            overrides=STRONGSWAN_OVERRIDES if overridden else None,
            settings=settings,
            follows=not mobile or settings.mobility is MobilityMode.MOBIKE,
            half_open=None if mobile else max(_HALF_OPEN, mobile_nodes),
            vici_socket=files.vici_socket,
            log_file=files.log_file,
            key_log=files.key_log,
        )
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first octet on.

    :raises ConfigError: the file can't be written.
    """
    replace_file(path, content)


def write_node(
    deployment: Deployment,
    node: str | None,
    directory: Path,
    *,
    interfaces: tuple[str, ...] = (),
    export_keys: bool = False,
    threads: int = 8,
    overrides: Overrides | None = None,
    installed: Path | None = None,
) -> NodeFiles:
    """Write all files of the home agent (``node`` None) or of one mobile node.

    :param interfaces: those that lead to the other end (see :func:`render_strongswan`).
    :param installed: where the directory's content will be when charon reads it, if not there.
    :returns: the files as charon will see them.
    :raises ConfigError: a value or path that can't be rendered, or a directory that can't be
        written.
    """
    overrides = overrides or Overrides()
    files = NodeFiles(installed or directory, node or "ha", export_keys)
    strongswan_conf = render_strongswan(
        deployment.settings,
        files,
        interfaces=interfaces,
        threads=threads,
        plugins=(*PLUGINS, *authentication.plugins(deployment, node)),
        mobile=node is not None,
        mobile_nodes=len(deployment.mobile_nodes),
        overridden=overrides.strongswan is not None,
    )
    swanctl_conf = render_swanctl(deployment, node, overridden=overrides.swanctl is not None)
    for name in ("", "x509", "x509ca", "x509crl"):
        make_directory(directory / name)
    make_directory(directory / "private", 0o700)
    own = authentication.own_certificate(deployment, node)
    authority = authentication.ca_certificate(deployment, node)
    # None: a file that an earlier rendering may have left goes.
    content = {
        "strongswan.conf": strongswan_conf.encode(),
        "swanctl.conf": swanctl_conf.encode(),
        SWANCTL_OVERRIDES: overrides.swanctl,
        STRONGSWAN_OVERRIDES: overrides.strongswan,
        # charon would make it readable for everybody; it keeps the mode of a file that exists.
        "charon-keys.log": b"" if export_keys else None,
        f"x509/{files.node}.pem": own.certificate if own is not None else None,
        f"private/{files.node}.pem": own.private_key if own is not None else None,
        f"x509ca/{CA_FILE}": authority,
        f"x509crl/{CA_FILE}": deployment.revocation_list if authority is not None else None,
    }
    for name, octets in content.items():
        path = directory / name
        if octets is not None:
            # What holds no secret may be read; the rest is not told apart.
            replace_file(path, octets, 0o644 if name == "strongswan.conf" else 0o600)
        else:
            remove_file(path)
    return files
