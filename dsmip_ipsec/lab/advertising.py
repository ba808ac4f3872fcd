"""Router advertisements in a lab: radvd on the routers of the links that ask for it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from ..errors import LabError
from . import routes
from .spec_models import Lab

# Often enough for a scenario; the advertisement interval option (RFC 6275 §7.3) tells of it.
_INTERFACE = """interface {link} {{
  AdvSendAdvert on;
  MinRtrAdvInterval 3;
  MaxRtrAdvInterval 4;
  AdvIntervalOpt on;
{prefixes}}};
"""
_PREFIX = "  prefix {prefix} {{ AdvOnLink on; AdvAutonomous on; }};\n"


def advertisers(lab: Lab) -> dict[str, list[str]]:
    """The nodes that advertise, each with the links on which it does."""
    found: dict[str, list[str]] = {}
    for name, link in lab.links.items():
        if link.router_advertisements:
            router = routes.gateway_node(lab, name, "")
            assert router is not None  # checked when the lab was loaded
            found.setdefault(router, []).append(name)
    return found


def configuration(lab: Lab, links: list[str]) -> str:
    """radvd.conf(5) for the prefixes of ``links``."""
    prefixes: Mapping[str, list[IPv4Network | IPv6Network]] = {
        link: routes.prefixes(lab, link, 6) for link in links
    }
    return "".join(
        _INTERFACE.format(
            link=link, prefixes="".join(_PREFIX.format(prefix=each) for each in prefixes[link])
        )
        for link in links
    )


def command(lab: Lab, links: list[str], directory: Path, node: str) -> list[str]:
    """Write radvd's configuration for ``node`` below ``directory``; return how to start it.

    Raises LabError when it isn't installed.
    """
    program = shutil.which("radvd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise LabError("radvd isn't installed", hint="apt-get install radvd")
    path = directory / f"{node}-radvd.conf"
    path.write_text(configuration(lab, links), encoding="utf-8")
    pid_file = directory / f"{node}-radvd.pid"
    return [program, "-n", "-m", "stderr", "-C", str(path), "-p", str(pid_file)]
