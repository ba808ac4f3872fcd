"""From a lab file to what its nodes run with: credentials, charon's files, daemon configuration.

Everything secret is made afresh for each run and written below the run's directory, 0600.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike.inventory import (
    Certificate,
    Deployment,
    HomeAgent,
    IkeSettings,
    MobileNode,
    MobilityMode,
    PresharedKey,
)
from dsmip_ipsec.ike.pki import CertificateAuthority
from dsmip_ipsec.ike.render import NodeFiles, write_node
from dsmip_ipsec.ipsec.peering import Reqids, numbered_reqids
from dsmip_ipsec.lab import routes
from dsmip_ipsec.lab.configured_keys import fresh_keys
from dsmip_ipsec.lab.pace import scaled
from dsmip_ipsec.lab.spec import Lab
from dsmip_ipsec.node.config import IKE_TIMEOUT_S, IpsecKind
from dsmip_ipsec.node.daemon_config import Keys, write_daemon_config

DOMAIN = "dsmip.example"  # RFC 2606 reserves it


@dataclass(frozen=True, slots=True)
class NodeDeployment:
    """One node that runs charon and a daemon of ours. With user-space IPsec there is no charon,
    and of ``files`` none exists."""

    name: str
    role: str
    files: NodeFiles
    daemon_config: Path
    control_socket: Path
    connection: str


def home_agent_name(lab: Lab) -> str:
    """The lab's home agent. Raises ConfigError unless there is exactly one."""
    agents = list(lab.home_agents())
    if len(agents) != 1:
        raise ConfigError(
            f"the lab has {len(agents)} home agents", hint="declare one node of role home_agent"
        )
    return agents[0]


def reqids(lab: Lab, index: int) -> Reqids:
    """Those of the lab's ``index``-th mobile node."""
    return numbered_reqids(
        index,
        prefix_discovery=lab.mobility.prefix_discovery,
        return_routability=lab.mobility.return_routability and not lab.data.protected,
    )


def deploy(
    lab: Lab,
    directory: Path,
    *,
    now: datetime,
    export_keys: bool = False,
    ipsec: IpsecKind = "kernel",
) -> dict[str, NodeDeployment]:
    """Write the files of all nodes below ``directory``; return the nodes by name.

    With ``ipsec`` "userspace" the daemons get keys, and charon gets no files.

    Raises ConfigError for a lab that can't be deployed.
    """
    agent = home_agent_name(lab)
    ipv6 = lab.home_agent_address(agent)
    ipv4 = lab.home_agent_ipv4_address(agent)
    if ipv6 is None or ipv4 is None:
        raise ConfigError(
            f"home agent {agent} needs an IPv6 and an IPv4 address",
            hint="give it `address` and `ipv4_address`, or addresses on its home link",
        )
    outer = lab.home_agents()[agent].outer_ipv4_address
    deployment = _inventory(lab, HomeAgent(f"{agent}.{DOMAIN}", ipv6, ipv4, outer_ipv4=outer), now)
    keys = fresh_keys(lab.mobile_nodes()) if ipsec == "userspace" else None
    write = partial(_write, deployment, directory=directory, export_keys=export_keys, lab=lab)
    nodes = {agent: write(agent, None, keys=keys)}
    for node in deployment.mobile_nodes:
        own = keys and {node.name: keys[node.name]}
        nodes[node.name] = write(node.name, node.name, keys=own)
    return nodes


def _inventory(lab: Lab, agent: HomeAgent, now: datetime) -> Deployment:
    certified = lab.ike.auth == "certificate"
    authority = CertificateAuthority.create("dsmip-ipsec lab", now=now) if certified else None
    if authority is not None:
        certificate = authority.issue(agent.identity, now=now)
        agent = replace(agent, certificate=certificate)
    nodes = []
    for index, (name, node) in enumerate(lab.mobile_nodes().items()):
        identity = f"{name}.{DOMAIN}"
        ids = reqids(lab, index)
        nodes.append(
            MobileNode(
                name=name,
                identity=identity,
                home_address=node.home_address,
                ipv4_home_address=node.ipv4_home_address,
                credentials=PresharedKey(secrets.token_bytes(32))
                if authority is None
                else authority.issue(identity, now=now),
                signalling_reqid=ids.signalling,
                mirror_reqid=ids.mirror,
                mobile_network_prefixes=tuple(
                    prefix
                    for link in node.mobile_networks
                    for prefix in routes.prefixes(lab, link, 6)
                    if isinstance(prefix, IPv6Network)
                ),
                data_reqid=ids.data,
                prefix_discovery_reqid=ids.prefix_discovery,
                return_routability_reqid=ids.return_routability,
            )
        )
    settings = IkeSettings(
        mobility=MobilityMode(lab.ike.mobility),
        protect_data=lab.data.protected,
        force_udp=lab.mobility.force_udp,
        copy_df=lab.data.copy_df,
    )
    # A peer that is slow isn't gone.
    patient = min(scaled(settings.retransmit_timeout), 60.0)
    return Deployment(agent, tuple(nodes), replace(settings, retransmit_timeout=patient))


def _with_wrong_key(deployment: Deployment, name: str) -> Deployment:
    """The deployment as a mobile node has it whose key isn't the one that belongs to it."""

    def wrong(node: MobileNode) -> MobileNode:
        if isinstance(node.credentials, PresharedKey):
            return replace(node, credentials=PresharedKey(secrets.token_bytes(32)))
        other = CertificateAuthority.create("another CA", now=datetime.now(UTC))
        stranger = other.issue(node.identity, now=datetime.now(UTC))
        # It still trusts the right CA: it is the home agent that must refuse.
        assert isinstance(node.credentials, Certificate)  # _inventory makes these two kinds
        return replace(
            node, credentials=replace(stranger, ca_certificate=node.credentials.ca_certificate)
        )

    nodes = (wrong(node) if node.name == name else node for node in deployment.mobile_nodes)
    return replace(deployment, mobile_nodes=tuple(nodes))


def _write(
    deployment: Deployment,
    name: str,
    node: str | None,
    *,
    directory: Path,
    export_keys: bool,
    lab: Lab,
    keys: Keys | None,
) -> NodeDeployment:
    if node is not None and node == lab.ike.wrong_key:
        deployment = _with_wrong_key(deployment, node)
    if keys is None:
        files = write_node(
            deployment,
            node,
            directory / name,
            interfaces=_interfaces(lab, name),
            export_keys=export_keys,
        )
    else:
        files = NodeFiles(directory / name, name)
    control = directory / f"{name}.sock"
    path = directory / f"{name}.toml"
    settings = _home_agent_settings(lab, name) if node is None else _mobile_node_settings(lab, node)
    claimed = None if node is None else lab.mobile_nodes()[node].claims_ipv4_home_address
    if node is not None and claimed is not None:  # alone: it may be another one's
        own = replace(deployment.mobile_node(node), ipv4_home_address=claimed)
        deployment = replace(deployment, mobile_nodes=(own,))
    write_daemon_config(path, deployment, node, files, control, settings, keys)
    role = "home_agent" if node is None else "mobile_node"
    return NodeDeployment(name, role, files, path, control, node or "")


def _home_agent_settings(lab: Lab, name: str) -> dict[str, Any]:
    """Home addresses are defended where there is somebody to defend them from."""
    settings: dict[str, Any] = {"nat_refresh_time_s": lab.mobility.nat_refresh_time_s}
    link = lab.home_agents()[name].home_link
    if len(lab.links[link].ends) > 1:
        settings["home_link"] = link
    return settings


def _mobile_node_settings(lab: Lab, node: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "lifetime_s": lab.mobility.lifetime_s,
        "force_udp": lab.mobility.force_udp,
        "handover_timeout_s": scaled(lab.mobility.handover_timeout_s),
        "ike": {"timeout_s": scaled(IKE_TIMEOUT_S)},
    }
    links = routes.visits(lab, node)
    if lab.mobility.detect_movement:
        settings["interfaces"] = links
    for link in links:
        if routes.is_home(lab, node, link):
            settings["home_prefix"] = str(routes.prefixes(lab, link, 6)[0])
            for prefix in routes.prefixes(lab, link, 4)[:1]:
                settings["ipv4_home_prefix_length"] = prefix.prefixlen
    return settings


def _interfaces(lab: Lab, name: str) -> tuple[str, ...]:
    """Links that lead to the other end. Without the limit charon would try the path between home
    address and home agent, which is the tunnel itself. The home agent's IPv6 address, which MOBIKE
    has to announce, is on the home link."""
    if name in lab.mobile_nodes():
        return tuple(routes.visits(lab, name))
    return tuple(link for link, ends in lab.links.items() if name in ends.ends)
