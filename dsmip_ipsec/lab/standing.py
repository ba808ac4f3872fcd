"""A lab that stands: namespaces, captures, charons, daemons and flows of one run."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.ike.keylog import IkeKeys
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.lab import (
    flow,
    flow_plan,
    ipsec_kind,
    keys,
    nat,
    netns,
    record,
    routes,
    rtnl,
    size,
)
from dsmip_ipsec.lab.capture import CaptureFile, Captures
from dsmip_ipsec.lab.charons import Charons
from dsmip_ipsec.lab.cleanup import Run
from dsmip_ipsec.lab.commands import start_command
from dsmip_ipsec.lab.configured_keys import configured
from dsmip_ipsec.lab.deploy import NodeDeployment, deploy, home_agent_name, reqids
from dsmip_ipsec.lab.nursery import Nursery
from dsmip_ipsec.lab.observe import NodeObserver, UserspaceObserver, addresses_of
from dsmip_ipsec.lab.pace import scaled
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.readiness import POLL_S, READY_S, until_answer
from dsmip_ipsec.lab.relay import Relay, relayed_links
from dsmip_ipsec.lab.routes import LinkAttachment
from dsmip_ipsec.lab.services import services
from dsmip_ipsec.lab.spec import Lab
from dsmip_ipsec.lab.spec_checks import SWITCH_NODE
from dsmip_ipsec.lab.spec_models import Block, Rebind, Step
from dsmip_ipsec.lab.topology import Topology
from dsmip_ipsec.node import control
from dsmip_ipsec.node.config import IpsecKind

# All nodes share a CPU (a guest kernel has just one). What is measured comes before the lab's own
# program. Probes need little, and at once: one that waits for the CPU is a hole in the measurement.
_FIRST = -10
_DAEMON = "dsmip_ipsec.cli.main"
_PROBES = -15


class StandingLab:
    """Builds a lab on this kernel and takes it down. Use :meth:`up` and, always, :meth:`down`.

    ``out`` receives ``captures/`` and ``logs/``; secrets stay below the run's own directory, which
    goes with the run. Needs root on a kernel with ESP; with ``ipsec`` "userspace" the kernel may
    be without. Raises ConfigError for a lab that can't be had so.
    """

    def __init__(
        self,
        lab: Lab,
        out: Path,
        *,
        export_keys: bool,
        say: Callable[[str], None],
        nursery: Nursery | None = None,
        ipsec: IpsecKind = "kernel",
    ) -> None:
        ipsec_kind.check(lab, ipsec)
        self.lab = lab
        self.out = out
        self.phases: list[record.Phase] = []
        self.nodes: dict[str, NodeDeployment] = {}
        self.observers: dict[str, NodeObserver] = {}
        self.captures: list[CaptureFile] = []
        self.ike_keys: tuple[IkeKeys, ...] = ()
        self.ended: dict[str, int] = {}
        self.ipsec = ipsec
        self._logs = out / "logs"
        # tshark needs them, too, for what it shall find within ESP.
        self._export_keys = export_keys or any(step.expect.captured for step in lab.steps)
        self._say = say
        self.run = Run.claim()
        self.topology = Topology(lab, self.run, relayed=relayed_links(lab))
        self._nursery = nursery
        self.processes = Processes(self.run, nursery)
        if nursery is not None:
            self.run.add_process(nursery.pid, "nursery")
        self.charons = Charons(self.topology, self.processes, self._logs, nice=_FIRST)
        self._relay = Relay(
            lab,
            self.topology.relay_ports(),
            work=self.run.directory,
            log=self._logs / "relay.log",
        )
        self._indices = rtnl.indices(list(lab.links))
        self._recorder: keys.KeyRecorder | None = None
        self._configured: tuple[SecurityAssociation, ...] = ()
        self._capturing: Captures | None = None
        self._flows = flow_plan.flow_specs(lab)
        self.agent = home_agent_name(lab)

    # Up and down ------------------------------------------------------------------------------

    async def up(self) -> None:
        """Build everything; returns when nodes, captures and flows run. Raises DsmipError."""
        for directory in (self.out / "captures", self._logs):
            directory.mkdir(parents=True, exist_ok=True)
        await self._phase("topology", asyncio.to_thread(self.topology.up))
        if self.topology.relayed:
            self._say(f"no netem here: a relay delays {', '.join(sorted(self.topology.relayed))}")
            switch = self.topology.namespace(SWITCH_NODE)
            await self._phase("relay", self._relay.start(self.processes, switch, nice=_FIRST))
        self.nodes = deploy(
            self.lab,
            self.run.directory,
            now=datetime.now(UTC),
            export_keys=self._export_keys,
            ipsec=self.ipsec,
        )
        look_at = NodeObserver if self.ipsec == "kernel" else UserspaceObserver
        ids = tuple(reqids(self.lab, index) for index in range(len(self.lab.mobile_nodes())))
        for name, node in self.nodes.items():
            self.observers[name] = look_at(node, self.topology.namespace(name), ids)
        if self._export_keys and self.ipsec == "userspace":
            self._configured = configured(self.nodes[self.agent].daemon_config)
        elif self._export_keys:
            self._recorder = keys.KeyRecorder(map(self.topology.namespace, self.nodes))
            self._recorder.open()
        await self._phase("captures", self._start_captures())
        if self.ipsec == "kernel":
            await self._phase("charon", self._start_charons())
        if any(link.router_advertisements or link.dhcp for link in self.lab.links.values()):
            await self._phase("services", self._start_services())
        await self._phase("daemons", self._start_daemons())
        await self._phase("flows", self._start_flows())

    async def down(self) -> None:
        """Take everything away; what was logged and captured is in ``out``. Idempotent."""
        started = time.monotonic()
        try:
            if self._capturing is not None and "capture" in self.processes:
                with suppress(DsmipError):
                    self.captures = await self._capturing.stop(self.processes)
                self._capturing = None
            await self._stop_processes()
            if self._recorder is not None:
                self._recorder.close()
                self.ike_keys = keys.ike_keys(
                    log
                    for node in self.nodes.values()
                    if (log := node.files.key_log) is not None and log.exists()
                )
            self._collect_logs()
        finally:
            for observer in self.observers.values():
                observer.close()
            self.run.finish()
        self.phases.append(
            record.Phase(name="teardown", duration_s=round(time.monotonic() - started, 3))
        )

    async def _stop_processes(self) -> None:
        """Charons last: a daemon that ends may still talk to its own."""
        for name, node in self.nodes.items():
            for what in (f"daemon of {name}", f"charon of {name}"):
                if what in self.processes:
                    self.ended[what] = await self.processes.stop(what)
                with suppress(OSError):
                    shutil.copyfile(node.files.log_file, self._logs / f"{name}-charon.log")
        await self.processes.stop_all()

    @property
    def associations(self) -> tuple[SecurityAssociation, ...]:
        """Every SA that lived during the run, with keys (only when keys are exported)."""
        return self._recorder.associations if self._recorder is not None else self._configured

    def bound(self, began: float) -> None:
        """Mobile nodes have been bound since ``began``: with the first of them the lab stands."""
        if all(phase.name != "bindings" for phase in self.phases):
            took = round(time.monotonic() - began, 3)
            self.phases.append(record.Phase(name="bindings", duration_s=took))

    async def _phase(self, name: str, work: Any) -> None:
        started = time.monotonic()
        await self.processes.guard(_as_coroutine(work))
        duration = time.monotonic() - started
        self.phases.append(record.Phase(name=name, duration_s=round(duration, 3)))
        self._say(f"{name} ready after {duration:.1f} s")

    async def _start_captures(self) -> None:
        links = self.lab.capture.links
        ports = [port for port in self.topology.ports() if links is None or port.link in links]
        if not ports:
            return
        self._capturing = Captures(
            ports,
            self.out / "captures",
            work=self.run.directory,
            log=self._logs / "capture.log",
        )
        await self._capturing.start(self.processes)

    async def _start_charons(self) -> None:
        for node in self.nodes.values():
            self.charons.start(node)
        for node in self.nodes.values():
            await self.charons.load(node)

    async def _start_daemons(self) -> None:
        if self._nursery is not None and self.ipsec == "kernel":
            self._nursery.call("dsmip_ipsec.node.native", "kernel_has_them")
        first, *others = self.nodes.values()
        self._start_daemon(first)
        await self._until_answer(first.name)
        self.processes.learn(f"daemon of {first.name}", _DAEMON)
        for node in others:
            self._start_daemon(node)
        for node in others:
            await self._until_answer(node.name)

    def _start_daemon(self, node: NodeDeployment) -> None:
        self.processes.start_module(
            f"daemon of {node.name}",
            _DAEMON,
            ["ha" if node.role == "home_agent" else "mn", "--config", str(node.daemon_config)],
            log=self._logs / f"{node.name}-daemon.log",
            namespace=self.topology.namespace(node.name),
            nice=_FIRST,
        )

    async def _start_services(self) -> None:
        for each in services(self.lab, self.run.directory, self._indices):
            self.processes.start(
                each.name,
                each.argv,
                log=self._logs / each.log,
                namespace=self.topology.namespace(each.node),
                environment=each.environment,
            )

    async def _until_answer(self, name: str) -> None:
        limit_s = size.ready_s(len(self.lab.mobile_nodes()))
        what = f"daemon of {name}"
        await until_answer(self.observers[name].status, what, self._logs, limit_s=limit_s)

    # Flows ------------------------------------------------------------------------------------

    async def _start_flows(self) -> None:
        ends = flow_plan.flow_ends(self.lab, self._flows)
        for node, flows in ends.items():
            plan = self.run.directory / f"{node}-flows.json"
            far = node == self.lab.correspondent()
            role = "correspondent_node" if far else "mobile_node"
            document = {"flows": [spec.to_json() for spec in flows], "node": role}
            plan.write_text(json.dumps(document), encoding="utf-8")
            self.processes.start_module(
                f"flows of {node}",
                "dsmip_ipsec.lab.flow_main",
                [str(plan), str(self._log(node))],
                log=self._logs / f"{node}-flows.log",
                namespace=self.topology.namespace(node),
                nice=_PROBES,
            )
        for node in ends:
            await self.processes.wait_ready(f"flows of {node}", deadline_s=READY_S)

    def _log(self, node: str) -> Path:
        return self.run.directory / f"{node}-flows-result.json"

    async def finish_flows(self) -> list[flow.Series]:
        """End the flows; return what was sent and received of each. Raises LabError."""
        ends = flow_plan.flow_ends(self.lab, self._flows)
        for node in ends:
            await self.processes.stop(f"flows of {node}", grace_s=10)
        return self._series(ends)

    async def flows_so_far(self) -> list[flow.Series]:
        """What was sent and received of each flow until now. Raises LabError."""
        ends = flow_plan.flow_ends(self.lab, self._flows)
        for node in ends:
            self._log(node).unlink(missing_ok=True)
        for node in ends:
            self.processes[f"flows of {node}"].signal(signal.SIGUSR1)
        deadline = time.monotonic() + scaled(READY_S)
        while not all(self._log(node).exists() for node in ends):
            self.processes.check()
            if time.monotonic() > deadline:
                raise LabError("the flows don't tell what they saw", hint="read their logs")
            await asyncio.sleep(POLL_S)
        return self._series(ends)

    def _series(self, nodes: Iterable[str]) -> list[flow.Series]:
        return flow.merge(self._flows, [flow.NodeLog.load(self._log(node)) for node in nodes])

    # What a step does ---------------------------------------------------------------------------

    def attachment(self, node: str, link: str) -> LinkAttachment:
        return self.topology.attachment(node, link)

    async def attach(self, node: str, link: str) -> dict[str, Any]:
        """Give ``node`` its addresses on ``link``, as a network would, and tell its daemon."""
        attachment = self.attachment(node, link)
        if routes.is_home(self.lab, node, link):
            self._set_interface(node, link, up=True)
            return await self.command(node, "return_home", interface=link)
        arguments: dict[str, Any] = {}
        for version in (6, 4):  # with both families, IPv6 is what the node registers first
            address, gateway = attachment.address(version), attachment.gateway(version)
            if address is not None and gateway is not None:
                prefix = "ipv4_" if arguments else ""
                arguments[f"{prefix}care_of_address"] = str(address.ip)
                arguments[f"{prefix}gateway"] = str(gateway)
        if not arguments:
            raise LabError(
                f"{node} has no address or no router on {link}",
                hint="give it an address of a family that the router has",
            )
        self._addresses(node, attachment, add=True)
        return await self.command(node, "attach", interface=attachment.interface, **arguments)

    async def roam(self, node: str, previous: str | None, link: str) -> None:
        """Out of one network, into another: the links' carriers go and come, and the rest is the
        mobile node's movement detection. Returns when it is bound there."""
        if previous is not None:
            await asyncio.to_thread(self.topology.set_link, previous, up=False)
        await asyncio.to_thread(self.topology.set_link, link, up=True)
        prefixes = [*routes.prefixes(self.lab, link, 6), *routes.prefixes(self.lab, link, 4)]
        while True:  # a step has its own deadline
            status = await self.observers[node].status()
            care_of = [ip_address(str(b["care_of_address"])) for b in status["bindings"]]
            here = [address for address in care_of if any(address in p for p in prefixes)]
            if status["attachment"] == link and here and await self._payload_follows(node, here[0]):
                return
            await asyncio.sleep(POLL_S)

    async def _payload_follows(self, node: str, care_of_address: IPv4Address | IPv6Address) -> bool:
        """Whether both ends send payload by tunnels of that care-of address, if by ESP at all."""
        if not self.lab.data.protected:
            return True
        for name in (node, self.agent):
            state = await self.observers[name].state()
            # Behind a NAT the home agent sends to V4ADDR (RFC 5555 §4.5).
            here = {str(care_of_address)} | {
                str(binding.outer_address)
                for binding in state.bindings
                if binding.care_of_address == care_of_address
            }
            ways = [
                policy.template.split() for policy in state.policies if policy.direction == "out"
            ]
            if not any(here & set(words) for words in ways):
                return False
        return True

    async def autoconfigured(self, node: str, link: str) -> frozenset[IPv4Address | IPv6Address]:
        """The addresses that ``node`` has on ``link`` now."""
        return await self.observers[node].inside(partial(addresses_of, link))

    async def restart(self, name: str) -> None:
        """Kill charon and daemon of a node as a crash would, and start them again. Raises
        LabError."""
        node = self.nodes[name]
        await self.processes.stop(f"daemon of {name}", first=signal.SIGKILL)
        await self.processes.stop(f"charon of {name}", first=signal.SIGKILL)
        self.charons.start(node)
        await self.charons.load(node)
        self._start_daemon(node)
        await self._until_answer(name)

    async def fault(self, step: Step) -> str | None:
        """Do what a step does to the lab itself rather than to a mobile node, and say what; None:
        it does nothing of the kind. Raises LabError."""
        if step.block is not None:
            await self.block(step.block)
            return f"block {step.block}"
        if step.unblock is not None:
            await self.block(step.unblock, lift=True)
            return f"unblock {step.unblock}"
        if step.rebind is not None:
            await self.rebind(step.rebind)
            return f"rebind {step.rebind}"
        if step.congest is not None:
            await self._in_namespace(step.congest, nat.congest)
            return f"congest {step.congest}"
        if step.impair is not None:
            if step.impair.link in self.topology.relayed:
                await self._relay.impair(self.processes, step.impair)
            else:
                await asyncio.to_thread(self.topology.impair, step.impair)
            return f"impair {step.impair}"
        if step.wait_s is not None:
            await asyncio.sleep(step.wait_s)
            return f"wait {step.wait_s:g} s"
        if step.kill is not None:
            self.processes[step.kill].signal(signal.SIGKILL)
            return f"kill {step.kill}"
        return None

    async def block(self, block: Block, *, lift: bool = False) -> None:
        """Have a router drop packets, or no longer. Raises LabError."""
        await self._in_namespace(block.node, partial(nat.block, block, lift=lift))

    async def rebind(self, rebind: Rebind) -> None:
        """Have a NAT forget its mappings. Raises LabError."""
        await self._in_namespace(rebind.node, partial(nat.rebind, rebind))

    async def _in_namespace(self, node: str, work: Callable[[], None]) -> None:
        def inside() -> None:
            netns.enter(self.topology.namespace(node))
            work()

        await asyncio.to_thread(netns.isolated, inside)

    def leave(self, node: str, link: str) -> None:
        """Take the addresses on ``link`` away: the network is out of reach."""
        if routes.is_home(self.lab, node, link):
            self._set_interface(node, link, up=False)
            return
        self._addresses(node, self.attachment(node, link), add=False)

    def _set_interface(self, node: str, link: str, *, up: bool) -> None:
        batch = rtnl.Batch()
        batch.set_link(self._indices[link], up=up)
        self._send(node, batch)

    def _addresses(self, node: str, attachment: LinkAttachment, *, add: bool) -> None:
        batch = rtnl.Batch()
        change = batch.address if add else batch.remove_address
        for address in attachment.addresses:
            change(self._indices[attachment.interface], address)
        self._send(node, batch)

    def _send(self, node: str, batch: rtnl.Batch) -> None:
        def send() -> None:
            netns.enter(self.topology.namespace(node))
            batch.send()

        netns.isolated(send)

    async def command(self, node: str, name: str, **arguments: Any) -> dict[str, Any]:
        """A command to the daemon of ``node``. Raises ControlError."""
        return await control.call(
            self.nodes[node].control_socket, name, timeout_s=scaled(60.0), **arguments
        )

    async def exchange(self, node: str, mobile_node: str) -> str:
        """An IKE exchange of ``mobile_node`` and its home agent, begun by the charon of ``node``:
        "" or what went wrong."""
        return await self.charons.exchange(self.nodes, node, mobile_node)

    async def execute(
        self,
        node: str,
        argv: Sequence[str],
        *,
        terminal: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """Start a command in the namespace of ``node``, with pipes, or on ``terminal``. It dies
        with the lab. Raises LabError."""
        process = await start_command(
            self.topology.namespace(node), argv, terminal=terminal, environment=environment
        )
        self.run.add_process(process.pid, f"{argv[0]} on {node}")
        return process

    def _collect_logs(self) -> None:
        for path in (self._logs).iterdir():
            if path.stat().st_size == 0:
                path.unlink()


async def _as_coroutine(awaitable: Any) -> Any:
    return await awaitable
