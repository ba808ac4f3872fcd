"""From an inventory to a directory for each node, ready to be started.

::

    OUT/README.md         how to go on
    OUT/ca/               the deployment's certification authority (:mod:`dsmip_ipsec.ike.ca_store`)
    OUT/secrets/          pre-shared keys and passwords, 0600
    OUT/NODE/             charon's files (:mod:`dsmip_ipsec.ike.render`), daemon.toml, README.md

Rendering again keeps all keys, secrets and valid certificates, and writes everything else anew.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import quoting
from dsmip_ipsec.ike.ca_store import CaStore
from dsmip_ipsec.ike.inventory import (
    Certificate,
    Credentials,
    Deployment,
    EapAka,
    EapPassword,
    HomeAgent,
    IkeSettings,
    MobileNode,
    PresharedKey,
)
from dsmip_ipsec.ike.private_files import make_directory, read_file, replace_file
from dsmip_ipsec.ike.render import NodeFiles, Overrides, template, write_node
from dsmip_ipsec.ipsec.peering import numbered_reqids
from dsmip_ipsec.node.daemon_config import write_daemon_config
from dsmip_ipsec.node.inventory_file import CA, HOME_AGENT, SECRETS, Inventory
from dsmip_ipsec.node.inventory_models import X509, EapAkaTable, EapMd5, Psk

CONTROL_SOCKET = "daemon.sock"
DAEMON_CONFIG = "daemon.toml"


@dataclass(frozen=True, slots=True)
class RenderedNode:
    """One node's directory as rendered, and its files as the node will see them."""

    name: str
    directory: Path
    files: NodeFiles


@dataclass(frozen=True, slots=True)
class Rendered:
    """What was written. ``made``: keys and secrets that are new; ``warnings``: sentences."""

    nodes: tuple[RenderedNode, ...]
    made: tuple[str, ...]
    warnings: tuple[str, ...]


def render(inventory: Inventory, out: Path, *, now: datetime, force: bool = False) -> Rendered:
    """Write everything below ``out``.

    :param now: an aware datetime: certificates are issued at it.
    :param force: make new keys and secrets in place of the ones that are there, CA included.
    :raises ConfigError: a file that the inventory names can't be used, or one can't be written.
    """
    # As paths in strongswan.conf they have to be absolute, and free of links to be told apart.
    out = out.resolve()
    quoting.quoted(out)
    make_directory(out, 0o700)
    work = _Work(inventory, out, now, force)
    deployment = work.deployment()
    nodes = [_write(work, deployment, None)]
    nodes += [_write(work, deployment, mn.name) for mn in deployment.mobile_nodes]
    text = template("README.md.j2").render(
        nodes=nodes, deployment=deployment, ca=work.store.directory if work.used_ca else None
    )
    replace_file(out / "README.md", text.encode(), 0o644)
    return Rendered(tuple(nodes), tuple(work.made), tuple(work.warnings))


@dataclass(slots=True)
class _Work:
    inventory: Inventory
    out: Path
    now: datetime
    force: bool
    made: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    used_ca: bool = False
    _ca_ready: bool = False

    @property
    def store(self) -> CaStore:
        return CaStore(self.out / CA)

    def deployment(self) -> Deployment:
        file = self.inventory.file
        nodes = []
        for index, (name, node) in enumerate(file.mobile_nodes.items()):
            home_address, ipv4_home_address = self.inventory.homes[name]
            reqids = numbered_reqids(
                index,
                prefix_discovery=file.ike.prefix_discovery,
                return_routability=file.ike.return_routability and not file.data.protected,
            )
            nodes.append(
                MobileNode(
                    name=name,
                    identity=node.identity,
                    home_address=home_address,
                    ipv4_home_address=ipv4_home_address,
                    credentials=self._credentials(name, node.identity, node.credentials),
                    signalling_reqid=reqids.signalling,
                    mirror_reqid=reqids.mirror,
                    mobile_network_prefixes=node.mobile_network_prefixes,
                    data_reqid=reqids.data,
                    prefix_discovery_reqid=reqids.prefix_discovery,
                    return_routability_reqid=reqids.return_routability,
                )
            )
        agent = file.home_agent
        certificate = None
        if any(not isinstance(mn.credentials, PresharedKey) for mn in nodes):
            credentials = self._credentials(HOME_AGENT, agent.identity, agent.credentials)
            assert isinstance(credentials, Certificate), "the inventory was checked"
            certificate = credentials
        return Deployment(
            HomeAgent(
                agent.identity,
                agent.ipv6,
                agent.ipv4,
                certificate,
                agent.ike_over,
                agent.outer_ipv4,
            ),
            tuple(nodes),
            self._settings(),
            # Read last: issuing a certificate writes it anew.
            read_file(self.store.revocation_list_file, "the revocation list")
            if self.used_ca
            else None,
        )

    def _settings(self) -> IkeSettings:
        ike = self.inventory.file.ike
        return IkeSettings(
            ike_proposals=ike.ike_proposals,
            esp_proposals=ike.esp_proposals,
            mobility=ike.mobility_mode,
            protect_data=self.inventory.file.data.protected,
            copy_df=self.inventory.file.data.copy_df,
            dpd_delay=ike.dpd_delay_s,
            ike_rekey_time=ike.rekey_time_s,
            child_rekey_time=ike.child_rekey_time_s,
            retransmit_timeout=ike.retransmit_timeout_s,
            retransmit_base=ike.retransmit_base,
            retransmit_tries=ike.retransmit_tries,
            nat_keepalive=ike.nat_keepalive_s,
            replay_window=ike.replay_window,
            reauth_time=ike.reauth_time_s,
            revocation=ike.revocation,
            configuration_payload=ike.configuration_payload,
        )

    # Credentials -------------------------------------------------------------------------------

    def _credentials(
        self, name: str, identity: str, table: Psk | X509 | EapMd5 | EapAkaTable
    ) -> Credentials:
        if isinstance(table, Psk):
            return PresharedKey(self._secret(name, "psk", table.file))
        if isinstance(table, X509):
            return self._certificate(name, identity, table)
        eap_identity = table.eap_identity or identity
        if isinstance(table, EapMd5):
            password = self._secret(name, "password", table.file)
            return EapPassword(eap_identity, password, self._home_agents_ca())
        self.warnings.append(
            f"{name}: EAP-AKA needs charon's plugin eap-aka-3gpp at both ends; "
            "Debian's packages don't have it (docs/render.md)"
        )
        secret = self.read(table.file, "K and OPc").strip()
        try:
            octets = bytes.fromhex(secret.decode("ascii"))
        except ValueError:
            octets = b""
        if len(octets) != 32:
            # Without what is in the file: it is a key.
            raise ConfigError(
                f"{name}: K and OPc aren't 64 hexadecimal digits",
                path=table.file,
                hint="32 of K, then 32 of OPc, without spaces",
            ) from None
        return EapAka(eap_identity, octets[:16], octets[16:], self._home_agents_ca())

    def _home_agents_ca(self) -> bytes:
        table = self.inventory.file.home_agent.credentials
        if isinstance(table, X509) and table.ca_certificate_file is not None:
            return self.read(table.ca_certificate_file, "the CA's certificate")
        self._ca()
        return read_file(self.store.certificate_file, "the CA's certificate")

    def _certificate(self, name: str, identity: str, table: X509) -> Certificate:
        if table.certificate_file and table.private_key_file and table.ca_certificate_file:
            return Certificate(
                certificate=self.read(table.certificate_file, "a certificate"),
                private_key=self.read(table.private_key_file, "a private key"),
                ca_certificate=self.read(table.ca_certificate_file, "the CA's certificate"),
            )
        self._ca()
        stored = None if self.force else self.store.newest(identity, self.now)
        if stored is not None:
            issued, certificate = stored
            if issued.revoked_at is not None:
                # To leave the node out would renumber those behind it.
                self.warnings.append(
                    f"{name}: its certificate is revoked, its peers refuse it "
                    f"(`dsmip-ipsec ca renew {self.store.directory} {identity}` for a new one)"
                )
            return certificate
        self.made.append(f"certificate of {identity}")
        return self.store.issue(
            identity, key_type=table.key_type, days=table.days, now=self.now, force=True
        )

    def _ca(self) -> None:
        self.used_ca = True
        if self._ca_ready:
            return
        self._ca_ready = True
        ca = self.inventory.file.ca
        if self.force or not self.store.exists():
            self.store.create(
                name=ca.name, key_type=ca.key_type, days=ca.days, now=self.now, force=self.force
            )
            self.made.append("CA")
        else:
            self.store.renew_revocation_list(now=self.now)

    def _secret(self, name: str, kind: str, file: str | None) -> bytes:
        if file is not None:
            text = self.read(file, "a secret").strip()
            if not text.startswith(b"0x"):
                return text
            try:
                return bytes.fromhex(text[2:].decode("ascii"))
            except ValueError:
                raise ConfigError(
                    f"the secret of {name} begins with 0x and isn't hexadecimal",
                    path=file,
                    hint="write two hexadecimal digits for each octet, or leave 0x out",
                ) from None
        path = self.out / SECRETS / f"{name}.{kind}"
        make_directory(path.parent, 0o700)
        if path.exists() and not self.force:
            try:
                return bytes.fromhex(read_file(path, "a secret").decode("ascii"))
            except ValueError:
                raise ConfigError(
                    "not a secret that was made here", path=path, hint="remove it for a new one"
                ) from None
        secret = secrets.token_bytes(32)
        replace_file(path, secret.hex().encode() + b"\n")
        self.made.append(f"{kind} of {name}")
        return secret

    def read(self, name: str, what: str) -> bytes:
        """A file that the inventory names, in its directory or below (links followed)."""
        base = self.inventory.base.resolve()
        path = (base / name).resolve()
        if not path.is_relative_to(base):
            raise ConfigError(
                f"{what} is outside the inventory's directory", path=name, hint="copy it there"
            )
        if not path.is_file():
            raise ConfigError(
                f"{what} isn't there, or no regular file",
                path=path,
                hint="files are named relative to the inventory",
            )
        return read_file(path, what)


def _write(work: _Work, deployment: Deployment, node: str | None) -> RenderedNode:
    file = work.inventory.file
    name = node or HOME_AGENT
    tables = file.overrides.get(name)
    overrides = Overrides(
        swanctl=work.read(tables.swanctl, "an override") if tables and tables.swanctl else None,
        strongswan=work.read(tables.strongswan, "an override")
        if tables and tables.strongswan
        else None,
    )
    directory = work.out / name
    installed = Path(file.directory) if file.directory is not None else directory
    interfaces = (file.mobile_nodes[node] if node else file.home_agent).interfaces
    files = write_node(
        deployment,
        node,
        directory,
        interfaces=interfaces,
        overrides=overrides,
        installed=installed,
    )
    settings = (
        {
            "max_lifetime_s": file.daemons.max_lifetime_s,
            "nat_refresh_time_s": file.daemons.nat_refresh_time_s,
        }
        if node is None
        else {"lifetime_s": file.daemons.lifetime_s}
    )
    control = installed / CONTROL_SOCKET
    write_daemon_config(directory / DAEMON_CONFIG, deployment, node, files, control, settings)
    rendered = RenderedNode(name, directory, files)
    text = template("node-README.md.j2").render(
        node=rendered, role="mn" if node else "ha", daemon_config=installed / DAEMON_CONFIG
    )
    replace_file(directory / "README.md", text.encode(), 0o644)
    return rendered
