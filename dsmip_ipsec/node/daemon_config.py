"""From a deployment to the configuration of one daemon (:mod:`dsmip_ipsec.node.config`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike.inventory import Deployment, MobileNode
from dsmip_ipsec.ike.private_files import replace_file
from dsmip_ipsec.ike.render import NodeFiles, ipv6_connection
from dsmip_ipsec.node.config import HomeAgentConfig, MobileNodeConfig

Keys = Mapping[str, Sequence[Mapping[str, Any]]]
"""The ``associations`` sections of each mobile node, by its name, for user-space IPsec."""


def daemon_config(
    deployment: Deployment,
    node: str | None,
    files: NodeFiles,
    control_socket: Path,
    settings: Mapping[str, Any],
    keys: Keys | None = None,
) -> dict[str, Any]:
    """The configuration of the home agent's daemon (``node`` None) or of a mobile node's.

    :param settings: further keys of it, such as ``lifetime_s``, and in ``ike`` of that section.
    :param keys: IPsec is the daemon's own, with these, and there is no IKE.
    :raises ConfigError: the daemon wouldn't take it.
    """
    ike: dict[str, Any] = {
        "vici_socket": str(files.vici_socket),
        "mobility_mode": deployment.settings.mobility.value,
        **settings.get("ike", {}),
    }

    def peer(mn: MobileNode) -> dict[str, Any]:
        return _peer(mn) if keys is None else {**_peer(mn), "associations": [*keys[mn.name]]}

    agent = deployment.home_agent
    document: dict[str, Any] = {
        "control_socket": str(control_socket),
        "protect_data": deployment.settings.protect_data,
        **settings,
        "home_agent": {
            "home_agent": str(agent.ipv6),
            "home_agent_ipv4": str(
                agent.ipv4 if node is None or agent.outer_ipv4 is None else agent.outer_ipv4
            ),
            **({"behind_nat": True} if agent.outer_ipv4 is not None else {}),
        },
    }
    model: type[HomeAgentConfig | MobileNodeConfig]
    if node is None:
        model = HomeAgentConfig
        document |= {"ike": ike, "mobile_nodes": [peer(mn) for mn in deployment.mobile_nodes]}
    else:
        model = MobileNodeConfig
        document |= {
            "ike": {
                **ike,
                **({"connection": node} if agent.over_ipv4 else {}),
                **({"ipv6_connection": ipv6_connection(node)} if agent.over_ipv6 else {}),
            },
            "mobile_node": peer(deployment.mobile_node(node)),
        }
    if keys is not None:
        del document["ike"]
        document["ipsec"] = "userspace"
    try:
        model.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(
            f"the daemon of {node or 'the home agent'} doesn't take {where}: {problem['msg']}"
        ) from error
    return document


def write_daemon_config(
    path: Path,
    deployment: Deployment,
    node: str | None,
    files: NodeFiles,
    control_socket: Path,
    settings: Mapping[str, Any],
    keys: Keys | None = None,
) -> None:
    """Write what :func:`daemon_config` makes, for its owner only where it holds keys. :raises
    ConfigError: as that, or it can't be written."""
    document = daemon_config(deployment, node, files, control_socket, settings, keys)
    replace_file(path, tomli_w.dumps(document).encode(), 0o644 if keys is None else 0o600)


def _peer(mn: MobileNode) -> dict[str, Any]:
    peer: dict[str, Any] = {"home_address": str(mn.home_address)}
    if mn.ipv4_home_address is not None:
        peer["ipv4_home_address"] = str(mn.ipv4_home_address)
    if mn.mobile_network_prefixes:
        peer["mobile_network_prefixes"] = list(map(str, mn.mobile_network_prefixes))
    if mn.mirror_reqid is None:
        raise ConfigError(f"{mn.name} has no mirror_reqid, which the daemons need")
    return {
        **peer,
        "signalling_reqid": mn.signalling_reqid,
        "mirror_reqid": mn.mirror_reqid,
        "data_reqid": mn.data_reqid,
        **{
            name: reqid
            for name, reqid in (
                ("prefix_discovery_reqid", mn.prefix_discovery_reqid),
                ("return_routability_reqid", mn.return_routability_reqid),
            )
            if reqid
        },
    }
