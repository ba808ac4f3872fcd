"""DHCP in a lab: dnsmasq on the routers of the links that ask for it, udhcpc in mobile nodes.

udhcpc knows nothing of carriers, and keeps a lease until it ends: what a mobile node makes of an
address of a network that it isn't in any more, or is in again, is its movement detection's business
(RFC 4436).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from ..errors import LabError
from . import routes
from .spec_models import Lab

# The shortest that dnsmasq gives. Longer than any scenario.
_LEASE_S = 120
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"

# What udhcpc has done to an interface: `mask` is a prefix length, `router` a list. The address gets
# the lease's lifetime, by which it is known as leased.
_SCRIPT = """#!/bin/sh
export PATH={path}
case "$1" in
deconfig)
    ip -4 addr flush dev "$interface"
    ;;
bound | renew)
    ip -4 addr replace "$ip/$mask" dev "$interface" valid_lft "$lease" preferred_lft "$lease"
    for gateway in $router; do
        ip -4 route replace default via "$gateway" dev "$interface" metric "$IF_METRIC"
        break
    done
    ;;
esac
"""


def servers(lab: Lab) -> dict[str, list[str]]:
    """The nodes that lease addresses, each with the links on which it does."""
    found: dict[str, list[str]] = {}
    for name, link in lab.links.items():
        if link.dhcp and (router := routes.gateway_node(lab, name, "")) is not None:
            found.setdefault(router, []).append(name)
    return found


def clients(lab: Lab) -> Iterator[tuple[str, str]]:
    """Mobile nodes, and links on which they ask for an address."""
    for node in lab.mobile_nodes():
        for link in routes.visits(lab, node):
            if lab.links[link].dhcp:
                yield node, link


def leased_range(network: IPv4Network) -> tuple[str, str]:
    """The first and the last address that are leased: the upper half of the network's."""
    upper = list(network.subnets())[1]
    return str(upper.network_address), str(upper.broadcast_address - 1)


def server_command(lab: Lab, node: str, links: list[str], directory: Path) -> list[str]:
    """How dnsmasq is started on ``node``. Raises LabError when it isn't installed."""
    words = [
        *(_program("dnsmasq", "dnsmasq-base"), "--keep-in-foreground", "--conf-file=/dev/null"),
        # No DNS; whatever the interfaces' state, now and later.
        *("--port=0", "--bind-dynamic", "--except-interface=lo"),
        *("--dhcp-authoritative", "--no-ping", "--log-dhcp", "--log-facility=-"),
        *("--user=root", f"--pid-file={directory / f'{node}-dnsmasq.pid'}"),
        f"--dhcp-leasefile={directory / f'{node}-dnsmasq.leases'}",
    ]
    for link in links:
        router = routes.address_on(lab, node, link, 4)
        assert router is not None  # checked when the lab was loaded
        network = IPv4Network(str(router.network))
        first, last = leased_range(network)
        words += [
            f"--interface={link}",
            f"--dhcp-range=set:{link},{first},{last},{network.netmask},{_LEASE_S}",
            f"--dhcp-option=tag:{link},option:router,{router.ip}",
        ]
    return words


def client_command(link: str, directory: Path) -> list[str]:
    """Write what udhcpc runs below ``directory``; return how it is started. It asks once a second
    until there is an answer. Raises LabError when it isn't installed."""
    script = directory / "udhcpc.sh"
    script.write_text(_SCRIPT.format(path=_PATH), encoding="utf-8")
    script.chmod(0o755)
    return [
        *(_program("busybox", "busybox-static"), "udhcpc", "-f", "-i", link, "-s", str(script)),
        *("-t", "3", "-T", "1", "-A", "1"),
    ]


def _program(name: str, package: str) -> str:
    program = shutil.which(name, path=_PATH)
    if program is None:
        raise LabError(f"{name} isn't installed", hint=f"apt-get install {package}")
    return program
