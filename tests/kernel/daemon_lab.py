"""Labs for the tests of the daemons: whole labs (charons, daemons, flows), driven step by step.

The visited networks are declared in TOML as for ``dsmip-ipsec lab``; a test gives the mobile node
its addresses and tells its daemon, or has the daemon find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from dsmip_ipsec.lab.spec import parse
from dsmip_ipsec.lab.standing import StandingLab
from dsmip_ipsec.report import wireshark
from dsmip_ipsec.report.captured import incomplete

HOME_ADDRESS = "2001:db8:100::100"
IPV4_HOME_ADDRESS = "203.0.113.200"
HOME_AGENT = "2001:db8:100::1"

LAB = """
[lab]
name = "daemons"
[nodes]
mn = { role = "mobile_node", home_address = "2001:db8:100::100", ipv4_home_address = "203.0.113.200" }
core = { role = "router" }
cn = { role = "correspondent_node" }
neighbour = { role = "router" }
[nodes.nat]
role = "nat"
inside = "private"
outside = "access"
mapping = "random"
[nodes.ha]
role = "home_agent"
home_link = "home"
address = "2001:db8:100::1"
ipv4_address = "203.0.113.2"
[links.six.ends]
core = ["2001:db8:6::1/64"]
mn = ["2001:db8:6::100/64"]
[links.dual.ends]
core = ["198.51.100.1/24", "2001:db8:d::1/64"]
mn = ["198.51.100.100/24", "2001:db8:d::100/64"]
[links.private.ends]
nat = ["10.0.0.1/24"]
mn = ["10.0.0.100/24"]
[links.access.ends]
core = ["192.0.2.1/30"]
nat = ["192.0.2.2/30"]
[links.backbone]
delay_ms = 5
[links.backbone.ends]
core = ["203.0.113.1/30", "2001:db8:0:1::1/64"]
ha = ["203.0.113.2/30", "2001:db8:0:1::2/64"]
[links.home.ends]
ha = ["203.0.113.129/25", "2001:db8:100::1/64"]
neighbour = ["203.0.113.130/25", "2001:db8:100::2/64"]
mn = ["203.0.113.131/25", "2001:db8:100::131/64"]
[links.internet.ends]
core = ["192.0.2.129/25", "2001:db8:0:2::1/64"]
cn = ["192.0.2.200/25", "2001:db8:0:2::200/64"]
[mobility]
lifetime_s = 600
[ike]
auth = "psk"
mobility = "mobike"
[data]
protected = true
[flow]
interval_ms = 20
"""  # noqa: E501 - TOML


class DaemonLab(StandingLab):
    """A standing lab, and what the tests ask of it. ``settings``: for the daemons' configuration
    files, by node, in place of what the lab would write."""

    settings: Mapping[str, Mapping[str, Any]] = {}

    async def _start_daemons(self) -> None:
        for name, settings in self.settings.items():
            path = self.nodes[name].daemon_config
            document = tomllib.loads(path.read_text(encoding="utf-8"))
            _merge(document, settings)
            path.write_text(tomli_w.dumps(document), encoding="utf-8")
        await super()._start_daemons()

    async def move(self, link: str, node: str = "mn", **more: Any) -> dict[str, Any]:
        """Addresses of ``link``, then the command ``attach`` with all of its families."""
        where = self.attachment(node, link)
        self._addresses(node, where, add=True)
        six, four = where.address(6), where.address(4)
        arguments: dict[str, Any] = {"interface": where.interface, **more}
        if six is not None:
            arguments |= {"care_of_address": str(six.ip), "gateway": str(where.gateway(6))}
        if four is not None:
            prefix = "ipv4_" if six is not None else ""
            arguments |= {
                f"{prefix}care_of_address": str(four.ip),
                f"{prefix}gateway": str(where.gateway(4)),
            }
        return await self.command(node, "attach", **arguments)

    async def restart_charon(self, node: str, how: signal.Signals) -> None:
        """End the charon of ``node`` by that signal, and start and load a new one."""
        await self.processes.stop(f"charon of {node}", first=how)
        self.charons.start(self.nodes[node])
        await self.charons.load(self.nodes[node])

    def ip(self, node: str, *arguments: str) -> Any:
        """``ip -j`` in the namespace of ``node``."""
        return json.loads(self.exec(node, "ip", "-j", *arguments) or "[]")

    def exec(self, node: str, *command: str, check: bool = True) -> str:
        """The output of a command in the namespace of ``node``."""
        where = ["ip", "netns", "exec", self.topology.namespace(node)]
        done = subprocess.run(
            [*where, *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def reaches(self, node: str, source: str, target: str, count: int = 3) -> bool:
        """Whether ``count`` echo requests from ``source`` are all answered."""
        words = ["ping", "-n", "-c", str(count), "-i", "0.2", "-W", "2", "-I", source, target]
        return f" {count} received" in self.exec(node, *words, check=False)

    async def binding(self, node: str = "ha") -> dict[str, Any] | None:
        """The only binding that a daemon knows."""
        bindings = (await self.observers[node].status())["bindings"]
        return dict(bindings[0]) if bindings else None

    async def counter(self, node: str, name: str) -> int:
        return int((await self.observers[node].status())["counters"].get(name, 0))

    def log_of(self, what: str) -> str:
        return (self.out / "logs" / f"{what}.log").read_text(encoding="utf-8", errors="replace")


def _merge(document: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _merge(document.setdefault(key, {}), value)
        elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value) and value:
            for there, each in zip(document[key], value, strict=True):
                _merge(there, each)
        else:
            document[key] = value


def tshark(out: Path, capture: str, display_filter: str, *fields: str) -> list[list[str]]:
    """Fields of the packets that match, decrypted with the exported keys."""
    path = out / "captures" / f"{capture}.pcapng"
    assert incomplete(path) == ""
    command = [
        *("tshark", "-n", "-d", "udp.port==4191,ip", "-o", "esp.enable_encryption_decode:TRUE"),
        *("-r", str(path), "-Y", display_filter),
        *("-T", "fields", "-E", "separator=|", "-E", "aggregator=;"),
    ]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(
        command,
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(out / "wireshark")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


async def until(true: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Poll until ``true`` (a function or coroutine function) gives something true; return it."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                result = true()
                if asyncio.iscoroutine(result):
                    result = await result
                if result:
                    return result
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


@contextlib.asynccontextmanager
async def daemon_lab(
    out: Path, toml: str = LAB, **settings: Mapping[str, Any]
) -> AsyncIterator[DaemonLab]:
    """The lab stands; its captures and logs are in ``out`` afterwards."""
    lab = DaemonLab(parse(toml), out, export_keys=True, say=lambda _: None)
    lab.settings = settings
    try:
        await lab.up()
        yield lab
    except BaseException:
        for log in sorted((out / "logs").glob("*-daemon.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")
        for node in lab.nodes.values():
            if node.files.log_file.exists():
                lines = node.files.log_file.read_text(errors="replace").splitlines()
                print(f"--- charon of {node.name}", *lines[-60:], sep="\n")
        raise
    finally:
        await lab.down()
        wireshark.export(
            out / "wireshark", map(wireshark.SaKeys.of, lab.associations), lab.ike_keys
        )
