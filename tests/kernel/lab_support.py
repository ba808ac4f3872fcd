"""What the tests of the lab's plumbing share: built topologies, and a foot in their namespaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dsmip_ipsec.lab import netns
from dsmip_ipsec.lab.cleanup import Run
from dsmip_ipsec.lab.spec import Lab, load, parse
from dsmip_ipsec.lab.topology import Topology

T = TypeVar("T")

LAB = Path(__file__).parents[2] / "labs" / "nat-handover.toml"

SMALL = """
[lab]
name = "small"
[nodes]
mn = { role = "mobile_node", home_address = "2001:db8:100::100" }
ha = { role = "home_agent", home_link = "alone" }
r = { role = "router" }
cn = { role = "correspondent_node" }
[links.shared]
mtu = 1400
delay_ms = 5
[links.shared.ends]
ha = ["192.0.2.1/24", "2001:db8:1::1/64"]
r = ["192.0.2.2/24", "2001:db8:1::2/64"]
cn = ["192.0.2.3/24", "2001:db8:1::3/64"]
[links.alone.ends]
ha = ["203.0.113.1/24", "2001:db8:100::1/64"]
[links.visited.ends]
r = ["198.51.100.1/24", "2001:db8:2::1/64"]
mn = ["198.51.100.2/24", "2001:db8:2::2/64"]
"""


@contextmanager
def built(lab: Lab) -> Iterator[Topology]:
    """The topology of ``lab``, taken away at the end."""
    run = Run.claim()
    try:
        topology = Topology(lab, run)
        topology.up()
        yield topology
    finally:
        run.finish()


def nat_handover(**replacements: str) -> Lab:
    """The nat-handover lab, with ``key = value`` lines replaced."""
    if not replacements:
        return load(LAB)
    text = LAB.read_text(encoding="utf-8")
    for old, new in replacements.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{old} = "))
        text = text.replace(line, f"{old} = {new}", 1)
    return parse(text)


def inside(topology: Topology, node: str, function: Callable[[], T]) -> T:
    """Call ``function`` in the namespace of ``node``. Sockets that it makes stay there."""

    def entered() -> T:
        netns.enter(topology.namespace(node))
        return function()

    return netns.isolated(entered)


def ip(topology: Topology, node: str, *arguments: str) -> Any:
    """``ip -j`` in the namespace of ``node``."""
    command = ["ip", "-n", topology.namespace(node), "-j", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout or "[]")


def attach(topology: Topology, link: str, node: str = "mn") -> None:
    """Give the mobile node its addresses and default routes on ``link``, as a person would."""
    where = topology.attachment(node, link)
    for address in where.addresses:
        nodad = ["nodad"] if address.version == 6 else []
        ip(topology, node, "addr", "add", str(address), "dev", where.interface, *nodad)
    for gateway in where.gateways:
        family = f"-{gateway.version}"
        ip(topology, node, family, "route", "replace", "default", "via", str(gateway))


def ping(topology: Topology, node: str, target: str, count: int = 3) -> list[float]:
    """Round-trip times in ms of those of ``count`` echo requests that were answered."""
    command = ["ip", "netns", "exec", topology.namespace(node), "ping", "-n"]
    command += ["-c", str(count), "-i", "0.2", "-W", "1", target]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    words = text.replace("time=", "time= ").split()
    return [float(words[i + 1]) for i, word in enumerate(words) if word == "time="]


def namespaces() -> set[str]:
    """Named namespaces, as ``ip netns`` lists them."""
    result = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True, timeout=20)
    return {line.split()[0] for line in result.stdout.splitlines()}
