"""User-space IPsec in the daemons, on this machine's own kernel: no ESP, no guest, no charon.

Namespaces and a NAT are real; the captures are judged by tshark, with the configured keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from scapy.layers.inet6 import MIP6MH_BU, IPv6

from dsmip_ipsec.ipsec.peering import numbered_reqids
from dsmip_ipsec.lab import netns, rtnl
from dsmip_ipsec.lab.capture import Captures
from dsmip_ipsec.lab.cleanup import Run
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.spec import parse
from dsmip_ipsec.lab.spec_models import Lab
from dsmip_ipsec.lab.topology import Topology
from dsmip_ipsec.node import control

LAB = Path(__file__).parents[2] / "labs" / "nat-handover.toml"
HOME, HOME4, AGENT, AGENT4 = "2001:db8:100::100", "203.0.113.200", "2001:db8:100::1", "203.0.113.2"
CORRESPONDENT = {4: "192.0.2.200", 6: "2001:db8:0:2::200"}
PAYLOAD = b"nobody but the correspondent reads this"

pytestmark = pytest.mark.as_root


def lab() -> Lab:
    """The nat-handover lab without its delay, for which this kernel may lack netem."""
    return parse(re.sub(r"(?m)^delay_ms.*$", "", LAB.read_text(encoding="utf-8")))


def sections(kind: str) -> list[dict[str, Any]]:
    """SAs of one mobile node, with keys that are as fresh as this test."""
    found = []
    for spi, (use, to) in enumerate(
        ((u, t) for u in ("signalling", "data") for t in ("home_agent", "mobile_node")), 0x1001
    ):
        section: dict[str, Any] = {"use": use, "to": to, "spi": spi}
        if kind == "aead":
            key = secrets.token_hex(20)
            section["aead"] = {"name": "rfc4106(gcm(aes))", "key": key, "icv_bits": 128}
            section["fresh_key"] = True
        else:
            section["encryption"] = {"name": "cbc(aes)", "key": secrets.token_hex(16)}
            key = secrets.token_hex(32)
            section["authentication"] = {"name": "hmac(sha256)", "key": key, "icv_bits": 128}
        found.append(section)
    return found


class Pair:
    """The two daemons in their namespaces."""

    def __init__(self, topology: Topology, processes: Processes, work: Path, kind: str) -> None:
        self.topology = topology
        self.processes = processes
        self.work = work
        self.sas = sections(kind)

    async def start(self) -> None:
        ids = numbered_reqids(0)
        peer = {
            "home_address": HOME,
            "ipv4_home_address": HOME4,
            "signalling_reqid": ids.signalling,
            "mirror_reqid": ids.mirror,
            "data_reqid": ids.data,
            "associations": self.sas,
        }
        for node, command, what in (
            ("ha", "ha", {"mobile_nodes": [peer]}),
            ("mn", "mn", {"mobile_node": peer}),
        ):
            path = self.work / f"{node}.toml"
            path.touch(mode=0o600)
            document = {
                "control_socket": str(self.work / f"{node}.sock"),
                "ipsec": "userspace",
                "home_agent": {"home_agent": AGENT, "home_agent_ipv4": AGENT4},
                **what,
            }
            path.write_text(tomli_w.dumps(document), encoding="utf-8")
            self.processes.start_module(
                f"daemon of {node}",
                "dsmip_ipsec.cli.main",
                [command, "--config", str(path)],
                log=self.work / f"{node}.log",
                namespace=self.topology.namespace(node),
            )
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(control.ControlError):
                        await self.call(node, "status")
                        break
                    await asyncio.sleep(0.05)

    async def call(self, node: str, name: str, **arguments: Any) -> dict[str, Any]:
        return await control.call(self.work / f"{node}.sock", name, timeout_s=20, **arguments)

    async def attach(self, link: str) -> None:
        where = self.topology.attachment("mn", link)
        address, gateway = where.address(4), where.gateway(4)
        assert address is not None
        index = rtnl.indices(list(self.topology.lab.links))[link]

        def configure() -> None:
            netns.enter(self.topology.namespace("mn"))
            batch = rtnl.Batch()
            batch.address(index, address)
            batch.send()

        netns.isolated(configure)
        await self.call(
            "mn",
            "attach",
            interface=where.interface,
            care_of_address=str(address.ip),
            gateway=str(gateway),
        )

    async def associations(self, node: str) -> list[dict[str, Any]]:
        state = await self.call(node, "ipsec")
        return [sa for sa in state["associations"] if sa["mode"] == "tunnel"]

    async def echo(self, family: int, *, wait_s: int = 2) -> int:
        """Answers to three echo requests from the mobile node's home address."""
        return await asyncio.to_thread(self._echo, family, wait_s)

    def _echo(self, family: int, wait_s: int) -> int:
        command = ["ip", "netns", "exec", self.topology.namespace("mn"), "ping", "-n", "-c", "3"]
        command += ["-i", "0.2", "-W", str(wait_s), "-p", PAYLOAD[:16].hex()]
        source = HOME if family == 6 else HOME4
        command += ["-I", source, CORRESPONDENT[family]]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        return text.count("bytes from")

    def log(self, node: str) -> str:
        return (self.work / f"{node}.log").read_text(encoding="utf-8")


@contextlib.asynccontextmanager
async def standing(work: Path, kind: str = "cbc") -> AsyncIterator[tuple[Pair, Captures]]:
    run = Run.claim()
    try:
        topology = Topology(lab(), run)
        await asyncio.to_thread(topology.up)
        async with Processes(run) as processes:
            (work / "captures").mkdir()
            captures = Captures(
                topology.ports(), work / "captures", work=run.directory, log=work / "capture.log"
            )
            await captures.start(processes)
            pair = Pair(topology, processes, work, kind)
            await pair.start()
            yield pair, captures
    finally:
        await asyncio.to_thread(run.finish)


def tshark(capture: Path, *arguments: str) -> list[str]:
    command = ["tshark", "-n", "-r", str(capture), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def key_options(pair: Pair) -> list[str]:
    """tshark's options to read what the configured keys protect."""
    options = ["-d", "udp.port==4191,ip", "-o", "esp.enable_encryption_decode:TRUE"]
    for sa in pair.sas:
        if "aead" in sa:
            how = ["AES-GCM with 16 octet ICV [RFC4106]", f"0x{sa['aead']['key']}", "NULL", ""]
        else:
            how = ["AES-CBC [RFC3602]", f"0x{sa['encryption']['key']}"]
            how += ["HMAC-SHA-256-128 [RFC4868]", f"0x{sa['authentication']['key']}"]
        for family in ("IPv4", "IPv6"):
            row = [family, "*", "*", f"0x{sa['spi']:08x}", *how]
            options += ["-o", "uat:esp_sa:" + ",".join(f'"{field}"' for field in row)]
    return options


@pytest.mark.parametrize("kind", ["cbc", "aead"])
async def test_handover_behind_a_nat_without_esp_in_the_kernel(tmp_path: Path, kind: str) -> None:
    async with standing(tmp_path, kind) as (pair, captures):
        echo = pair.echo
        assert await echo(4, wait_s=1) == 0, "before the first binding"

        await pair.attach("visited-a")
        (binding,) = (await pair.call("ha", "status"))["bindings"]
        assert (binding["nat_detected"], binding["outer_address"]) == (True, "192.0.2.2")
        assert [await echo(4), await echo(6)] == [3, 3], pair.log("ha")
        # ESP's care-of address has a port of its own (RFC 5555 §5.1), learnt from ESP.
        (up, down) = await pair.associations("ha")
        assert (up["destination_port"], down["source_port"]) == (4500, 4500)
        assert down["destination"] == "192.0.2.2"
        assert down["destination_port"] not in (None, 4500, binding["outer_port"])
        counted = {sa["spi"]: sa["packets"] for sa in await pair.associations("mn")}

        await pair.attach("visited-b")
        (binding,) = (await pair.call("ha", "status"))["bindings"]
        assert (binding["nat_detected"], binding["outer_address"]) == (False, "198.51.100.100")
        for node in ("mn", "ha"):
            for sa in await pair.associations(node):
                assert {sa["source"], sa["destination"]} == {"198.51.100.100", AGENT4}
                assert sa["source_port"] is sa["destination_port"] is None
        assert [await echo(4), await echo(6)] == [3, 3], pair.log("mn")
        for sa in await pair.associations("mn"):
            assert sa["packets"] >= counted[sa["spi"]] + 6, "the same SAs, counting on"

        await pair.attach("visited-a")
        assert [await echo(4), await echo(6)] == [3, 3], pair.log("ha")

        await pair.call("mn", "deregister")
        assert (await pair.call("ha", "status"))["bindings"] == []
        assert await echo(6, wait_s=1) == 0
        await captures.stop(pair.processes)

        (backbone,) = (tmp_path / "captures").glob("ha-backbone.pcap*")
        raw = backbone.read_bytes()
        assert PAYLOAD[:16] in raw, "from the home agent to the correspondent in clear"
        for link in ("mn-visited-a", "mn-visited-b", "nat-access-a"):
            (capture,) = (tmp_path / "captures").glob(f"{link}.pcap*")
            assert PAYLOAD[:16] not in capture.read_bytes(), link
            keys = key_options(pair)
            updates = tshark(capture, *keys, "-Y", "mip6.mhtype == 5 || mip6.mhtype == 6")
            assert len(updates) >= 2, f"{link}: tshark reads BU and BA with the keys"
            echoes = tshark(capture, *keys, "-Y", "esp && (icmp || icmpv6.type == 128)")
            assert len(echoes) >= 6, f"{link}: and the payload"


async def test_forgeries_are_dropped_and_counted(tmp_path: Path) -> None:
    """Sent by the correspondent, who has no key: none of it reaches an engine or a home link."""
    async with standing(tmp_path) as (pair, _):
        await pair.attach("visited-b")
        update = bytes(IPv6(src=HOME, dst=AGENT) / MIP6MH_BU(seq=99, flags="AH", mhtime=100))
        esp = bytes.fromhex("00001003 000003e8") + bytes(
            64
        )  # the SPI of the data SA to the home agent

        def send() -> None:
            netns.enter(pair.topology.namespace("cn"))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
                forger.sendto(update, (AGENT4, 4191))
                forger.sendto(esp, (AGENT4, 4500))
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ESP) as forger:
                forger.sendto(esp, (AGENT4, 0))

        await asyncio.to_thread(netns.isolated, send)
        wanted = {"signalling.unprotected": 1, "ipsec.integrity": 1, "ipsec.no_association": 1}
        async with asyncio.timeout(5):
            while True:
                counters = (await pair.call("ha", "status"))["counters"]
                if all(counters.get(name) == count for name, count in wanted.items()):
                    break
                await asyncio.sleep(0.05)
        (binding,) = (await pair.call("ha", "status"))["bindings"]
        assert binding["sequence"] != 99
        assert await pair.echo(6) == 3, "a forged packet has moved nothing"
