"""From a deployment to the strongSwan files of one node.

The directory of a node then looks so::

    strongswan.conf         for STRONGSWAN_CONF
    swanctl.conf            SWANCTL_DIR is the directory itself
    x509/NODE.pem           the node's certificate
    x509ca/ca.pem           the CA that the peers' certificates are checked against
    private/NODE.pem        0600
    charon.vici             the VICI socket, once charon runs
    charon.log              its log, without secrets
    charon-keys.log         0600, only if the export of keys was asked for; it holds pre-shared keys
                            as well, so hand out what :mod:`dsmip_ipsec.ike.keylog` makes of it
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import quoting
from dsmip_ipsec.ike.inventory import (
    Certificate,
    Deployment,
    IkeSettings,
    MobilityMode,
    PresharedKey,
)
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
class _Connection:
    name: str
    local_addresses: tuple[str, ...]
    remote_addresses: tuple[str, ...]
    local_id: str
    remote_id: str
    certificate: str | None
    ca_certificate: str | None
    signalling_local_ts: str
    signalling_remote_ts: str
    signalling_tunnel_local_ts: tuple[str, ...]
    signalling_tunnel_remote_ts: tuple[str, ...]
    data_local_ts: tuple[str, ...]
    data_remote_ts: tuple[str, ...]
    signalling_reqid: int
    data_reqid: int
    pretends_nat: bool


@dataclass(frozen=True, slots=True)
class _Secret:
    name: str
    local_id: str
    remote_id: str
    secret_hex: str


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
    environment.filters["typed_identity"] = quoting.typed_identity
    return environment


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
        certified = isinstance(mn.credentials, Certificate)
        identities = (ha.identity, mn.identity) if at_home_agent else (mn.identity, ha.identity)
        signalling = (_mobility_ts(mn.home_address), _mobility_ts(ha.ipv6))
        connections.append(
            _Connection(
                name=mn.name,
                local_addresses=(quoting.address(ha.ipv4), quoting.address(ha.ipv6))
                if at_home_agent
                else ("%any",),
                remote_addresses=("%any",) if at_home_agent else (quoting.address(ha.ipv4),),
                local_id=identities[0],
                remote_id=identities[1],
                certificate=("ha.pem" if at_home_agent else f"{mn.name}.pem")
                if certified
                else None,
                ca_certificate="ca.pem" if certified else None,
                signalling_local_ts=signalling[at_home_agent],
                signalling_remote_ts=signalling[not at_home_agent],
                signalling_tunnel_local_ts=_tunnel_ts(
                    ha.ipv6 if at_home_agent else mn.home_address
                ),
                signalling_tunnel_remote_ts=_tunnel_ts(
                    mn.home_address if at_home_agent else ha.ipv6
                ),
                data_local_ts=world if at_home_agent else home,
                data_remote_ts=home if at_home_agent else world,
                signalling_reqid=mn.signalling_reqid,
                data_reqid=mn.data_reqid,
                pretends_nat=not at_home_agent and _pretends_nat(deployment.settings),
            )
        )
        if not at_home_agent:
            # charon takes the first remote address and stays with its family when it initiates.
            connections.append(
                replace(
                    connections[-1],
                    name=ipv6_connection(mn.name),
                    remote_addresses=(quoting.address(ha.ipv6),),
                )
            )
    return connections


def ipv6_connection(name: str) -> str:
    """What the mobile node ``name`` calls the connection to the home agent's IPv6 address."""
    return f"{name}-ipv6"


def _pretends_nat(settings: IkeSettings) -> bool:
    """Whether mobile nodes make the home agent's charon believe in a NAT."""
    return settings.force_udp or settings.mobility is not MobilityMode.MOBIKE


def render_swanctl(deployment: Deployment, node: str | None) -> str:
    """swanctl.conf of the home agent (``node`` None) or of the mobile node named ``node``.

    It contains the pre-shared keys. On the home agent, each mobile node has a connection of its
    own, bound to its identity and limited to its home addresses: this is the PAD (RFC 4877 §4.2).

    :raises ConfigError: an unknown node, or a value that can't be quoted.
    """
    if node is not None:
        deployment.mobile_node(node)
    ha = deployment.home_agent
    secrets = [
        _Secret(
            name=mn.name,
            local_id=ha.identity if node is None else mn.identity,
            remote_id=mn.identity if node is None else ha.identity,
            secret_hex=mn.credentials.secret.hex(),
        )
        for mn in deployment.mobile_nodes
        if isinstance(mn.credentials, PresharedKey) and node in (None, mn.name)
    ]
    return (
        _environment()
        .get_template("swanctl.conf.j2")
        .render(
            node=node or "the home agent",
            connections=_connections(deployment, node),
            secrets=secrets,
            settings=deployment.settings,
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
) -> str:
    """strongswan.conf for a charon of its own in ``files.directory``.

    :param interfaces: the only ones that charon looks at; all if empty. Without this, it takes
        the home link and our TUN for paths to its peer: it announces their addresses with MOBIKE
        and may move the IKE_SA into the very tunnel that it protects.
    :param threads: worker threads of charon. It keeps three or four busy for itself, and each
        ``initiate`` that waits takes one more.
    :param mobile: the node moves. Without MOBIKE, the sources of its packets then are left to
        the routes; a home agent always answers from its own address.
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
            settings=settings,
            follows=not mobile or settings.mobility is MobilityMode.MOBIKE,
            vici_socket=files.vici_socket,
            log_file=files.log_file,
            key_log=files.key_log,
        )
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first octet on.

    :raises ConfigError: the file can't be written.
    """
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror}", hint="check the directory's permissions"
        ) from error


def write_node(
    deployment: Deployment,
    node: str | None,
    directory: Path,
    *,
    interfaces: tuple[str, ...] = (),
    export_keys: bool = False,
    threads: int = 8,
) -> NodeFiles:
    """Write all files of the home agent (``node`` None) or of one mobile node.

    :param interfaces: those that lead to the other end (see :func:`render_strongswan`).

    :raises ConfigError: a value or path that can't be rendered, or a directory that can't be
        written.
    """
    files = NodeFiles(directory, node or "ha", export_keys)
    strongswan_conf = render_strongswan(
        deployment.settings,
        files,
        interfaces=interfaces,
        threads=threads,
        mobile=node is not None,
    )
    swanctl_conf = render_swanctl(deployment, node)
    try:
        for name, mode in (("", 0o755), ("x509", 0o755), ("x509ca", 0o755), ("private", 0o700)):
            (directory / name).mkdir(mode=mode, parents=True, exist_ok=True)
        files.strongswan_conf.write_text(strongswan_conf)
    except OSError as error:
        raise ConfigError(
            f"can't write to {directory}: {error.strerror}", hint="check its permissions"
        ) from error
    write_private(files.swanctl_conf, swanctl_conf.encode())
    if files.key_log is not None:
        # charon would make it readable for everybody; it keeps the mode of a file that exists.
        write_private(files.key_log, b"")

    if node is None:
        certified = any(isinstance(m.credentials, Certificate) for m in deployment.mobile_nodes)
        certificate = deployment.home_agent.certificate if certified else None
    else:
        credentials = deployment.mobile_node(node).credentials
        certificate = credentials if isinstance(credentials, Certificate) else None
    if certificate is not None:
        write_private(directory / "x509" / f"{files.node}.pem", certificate.certificate)
        write_private(directory / "x509ca" / "ca.pem", certificate.ca_certificate)
        write_private(directory / "private" / f"{files.node}.pem", certificate.private_key)
    return files
