"""The services of a lab's networks, as processes to start: radvd, dnsmasq, and their clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import advertising, leasing
from .spec_models import Lab


@dataclass(frozen=True, slots=True)
class Service:
    """``name`` of the process, which runs ``argv`` in ``node``. ``environment``: all of it; None:
    ours. ``log``: the log file's name."""

    name: str
    node: str
    argv: list[str]
    log: str
    environment: Mapping[str, str] | None = field(default=None)


def services(lab: Lab, directory: Path, indices: Mapping[str, int]) -> Iterator[Service]:
    """What must run for ``lab``, with its files below ``directory``. ``indices``: interface numbers
    of the links. Raises LabError when something isn't installed."""
    for node, links in advertising.advertisers(lab).items():
        argv = advertising.command(lab, links, directory, node)
        yield Service(f"radvd of {node}", node, argv, f"{node}-radvd.log")
    for node, links in leasing.servers(lab).items():
        argv = leasing.server_command(lab, node, links, directory)
        yield Service(f"dnsmasq of {node}", node, argv, f"{node}-dnsmasq.log")
    for node, link in leasing.clients(lab):
        argv = leasing.client_command(link, directory)
        # Of several default routes the first link's is preferred.
        metric = {"IF_METRIC": str(1024 + indices[link])}
        name, log = f"udhcpc of {node} on {link}", f"{node}-{link}-udhcpc.log"
        yield Service(name, node, argv, log, metric)
