"""The charons of a lab: started in their nodes' namespaces, loaded, and asked for exchanges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike import charon
from dsmip_ipsec.ike.render import ipv6_connection
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.lab import size
from dsmip_ipsec.lab.deploy import NodeDeployment
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.readiness import until_answer
from dsmip_ipsec.lab.topology import Topology


class Charons:
    """One for each mobile node and home agent. ``logs`` gets what they print."""

    def __init__(self, topology: Topology, processes: Processes, logs: Path, *, nice: int) -> None:
        self._topology = topology
        self._processes = processes
        self._logs = logs
        self._nice = nice
        self.version = ""

    def start(self, node: NodeDeployment) -> None:
        """Start the charon of ``node``; it isn't ready yet. Raises DsmipError."""
        charon.prepare(node.files)
        self._processes.start(
            f"charon of {node.name}",
            [charon.program()],
            nice=self._nice,
            log=self._logs / f"{node.name}-charon.out",
            namespace=self._topology.namespace(node.name),
            environment=charon.environment(node.files),
        )

    async def load(self, node: NodeDeployment) -> None:
        """Wait for the charon of ``node`` and give it its configuration. Raises DsmipError."""
        driver = ViciDriver(node.files.vici_socket)
        limit_s = size.ready_s(len(self._topology.lab.mobile_nodes()))
        self.version = await until_answer(
            driver.version, f"charon of {node.name}", self._logs, limit_s=limit_s
        )
        await driver.load_all(node.files)

    @staticmethod
    async def exchange(nodes: Mapping[str, NodeDeployment], begun_by: str, mobile_node: str) -> str:
        """An IKE exchange of ``mobile_node`` and its home agent, begun by one of their charons: ""
        or what went wrong."""
        connection = nodes[mobile_node].connection
        driver = ViciDriver(nodes[begun_by].files.vici_socket)
        try:
            if begun_by == mobile_node:
                # Which family its IKE_SA began with is in the name it has there.
                other = ipv6_connection(connection)
                if any(sa.name == other for sa in await driver.list_sas()):
                    connection = other
            await driver.probe_exchange(connection)
        except IkeError as error:
            return error.message
        return ""
