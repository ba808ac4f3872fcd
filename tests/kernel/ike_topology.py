"""A mobile node with two networks (A behind a NAT, B public), a core router and a home agent.

Only what the IKE tests need; each instance makes its own namespaces and removes them.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from dsmip_ipsec.ike import pki
from dsmip_ipsec.ike.charon import Charon
from dsmip_ipsec.ike.inventory import (
    Certificate,
    Deployment,
    HomeAgent,
    IkeSettings,
    MobileNode,
    PresharedKey,
)
from dsmip_ipsec.ike.render import write_node

HOME_AGENT = "203.0.113.2"
HOME_AGENT6 = "2001:db8:1::1"
HOME_ADDRESS = "2001:db8:1::2"
SIGNALLING_REQID, DATA_REQID = 101, 102
NAT_ADDRESS = "192.0.2.2"
CARE_OF_A = "10.0.0.2"
CARE_OF_B = "198.51.100.2"
TABLE_A, TABLE_B = 101, 102


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


class Topology:
    """``with Topology() as t: t.ip("mn", "route show")``"""

    def __init__(self, delay_ms: int = 0) -> None:
        self.run = uuid.uuid4().hex[:6]
        self.delay_ms = delay_ms

    def netns(self, node: str) -> str:
        return f"{self.run}-{node}"

    def prefix(self, node: str) -> list[str]:
        return ["ip", "netns", "exec", self.netns(node)]

    def exec(self, node: str, *command: str) -> str:
        return run(*self.prefix(node), *command)

    def ip(self, node: str, command: str) -> str:
        return run("ip", "-n", self.netns(node), *command.split())

    def batch(self, node: str, commands: str) -> None:
        done = subprocess.run(
            ["ip", "-n", self.netns(node), "-batch", "-"],
            input=commands,
            text=True,
            check=False,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"{node}: {done.stderr}")

    def __enter__(self) -> Topology:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for node in ("mn", "nat", "core", "ha"):
            subprocess.run(
                ["ip", "netns", "del", self.netns(node)], check=False, capture_output=True
            )

    def _build(self) -> None:
        for node in ("mn", "nat", "core", "ha"):
            run("ip", "netns", "add", self.netns(node))
        n = self.netns
        for node, commands in {
            "mn": f"""link set lo up
                link add neta type veth peer name inside netns {n("nat")}
                link add netb type veth peer name netb netns {n("core")}
                addr add {CARE_OF_A}/24 dev neta
                addr add {CARE_OF_B}/24 dev netb
                link add home type dummy
                link set home up
                addr add {HOME_ADDRESS}/128 dev home nodad
                route add {HOME_AGENT6}/128 dev home
                link set neta up
                link set netb up""",
            "nat": f"""link set lo up
                link add outside type veth peer name neta netns {n("core")}
                addr add 10.0.0.1/24 dev inside
                addr add {NAT_ADDRESS}/24 dev outside
                link set inside up
                link set outside up
                route add default via 192.0.2.1""",
            "core": f"""link set lo up
                link add toha type veth peer name core netns {n("ha")}
                addr add 192.0.2.1/24 dev neta
                addr add 198.51.100.1/24 dev netb
                addr add 203.0.113.1/24 dev toha
                link set neta up
                link set netb up
                link set toha up""",
            "ha": f"""link set lo up
                addr add {HOME_AGENT}/24 dev core
                link add home type dummy
                link set home up
                addr add {HOME_AGENT6}/64 dev home nodad
                link set core up
                route add default via 203.0.113.1""",
        }.items():
            self.batch(node, commands)
        for node in ("nat", "core", "ha"):
            self.exec(node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.batch(
            "mn",
            f"""route add default via 10.0.0.1 dev neta src {CARE_OF_A} table {TABLE_A}
            route add default via 198.51.100.1 dev netb src {CARE_OF_B} table {TABLE_B}
            rule add from {CARE_OF_A} table {TABLE_A} pref 1000
            rule add from {CARE_OF_B} table {TABLE_B} pref 1000""",
        )
        self.exec(
            "nat", "iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-o", "outside",
            "-j", "MASQUERADE", "--random",
        )  # fmt: skip
        if self.delay_ms:
            for device in ("toha", "neta", "netb"):
                self.exec(
                    "core", "tc", "qdisc", "add", "dev", device, "root", "netem",
                    "delay", f"{self.delay_ms}ms", "limit", "10000",
                )  # fmt: skip

    def prefer(self, network: str) -> None:
        """The route to everything without a source goes through network "a" or "b"."""
        via, dev, src = {
            "a": ("10.0.0.1", "neta", CARE_OF_A),
            "b": ("198.51.100.1", "netb", CARE_OF_B),
        }[network]
        self.ip("mn", f"route replace default via {via} dev {dev} src {src}")


class Pair:
    """A mobile node and a home agent with a charon each, on a topology of their own::

    async with Pair(network="a") as pair: await pair.mn.establish("mn")
    """

    def __init__(
        self,
        *,
        network: str = "a",
        delay_ms: int = 0,
        mobile_node: Deployment | None = None,
        home_agent: Deployment | None = None,
        export_keys: bool = False,
        limited: bool = True,
    ) -> None:
        common = deployment()
        self.topology = Topology(delay_ms)
        self.network = network
        # AF_UNIX paths are short, pytest's are not.
        self.directory = Path(tempfile.mkdtemp(prefix="ike-"))
        self.files = {
            "mn": write_node(
                mobile_node or common,
                "mn",
                self.directory / "mn",
                interfaces=("neta", "netb") if limited else (),
                export_keys=export_keys,
            ),
            "ha": write_node(
                home_agent or common,
                None,
                self.directory / "ha",
                interfaces=("core",) if limited else (),
                export_keys=export_keys,
            ),
        }
        self.charons = {
            node: Charon(files, self.topology.prefix(node)) for node, files in self.files.items()
        }
        self.mn = self.charons["mn"].driver
        self.ha = self.charons["ha"].driver

    async def __aenter__(self) -> Pair:
        self.topology.__enter__()
        try:
            self.topology.prefer(self.network)
            await asyncio.gather(*(charon.start() for charon in self.charons.values()))
            await asyncio.gather(*(charon.wait_ready() for charon in self.charons.values()))
            await asyncio.gather(
                *(charon.driver.load_all(charon.files) for charon in self.charons.values())
            )
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for charon in self.charons.values():
            await charon.stop()
        self.topology.__exit__()
        shutil.rmtree(self.directory)

    def states(self, node: str) -> set[State]:
        """What the kernel holds, read with iproute2."""
        found = set()
        for text in re.split(r"\n(?=src )", self.topology.ip(node, "xfrm state")):
            if match := re.match(r"src (\S+) dst (\S+)\s+proto esp spi (\S+) reqid (\d+)", text):
                mode = re.search(r"mode (\S+)", text)
                encap = re.search(r"espinudp sport (\d+) dport (\d+)", text)
                assert mode
                found.add(
                    State(
                        match[1],
                        match[2],
                        int(match[3], 16),
                        int(match[4]),
                        mode[1],
                        (int(encap[1]), int(encap[2])) if encap else None,
                    )
                )
        return found


class State(NamedTuple):
    source: str
    destination: str
    spi: int
    reqid: int
    mode: str
    ports: tuple[int, int] | None


def credentials(key_type: pki.KeyType | None) -> tuple[Certificate | PresharedKey, HomeAgent]:
    """The mobile node's, and the home agent with its own; ``None``: a pre-shared key."""
    certificate = None
    mobile_node: Certificate | PresharedKey = PresharedKey(os.urandom(16))
    if key_type is not None:
        now = datetime.datetime.now(datetime.UTC)
        ca = pki.CertificateAuthority.create(now=now, key_type=key_type)
        certificate = ca.issue("ha.example.org", now=now, key_type=key_type)
        mobile_node = ca.issue("mn@example.org", now=now, key_type=key_type)
    home_agent = HomeAgent(
        "ha.example.org", IPv6Address(HOME_AGENT6), IPv4Address(HOME_AGENT), certificate
    )
    return mobile_node, home_agent


def deployment(
    key_type: pki.KeyType | None = None,
    *,
    home_address: str = HOME_ADDRESS,
    settings: IkeSettings | None = None,
) -> Deployment:
    mobile_node, home_agent = credentials(key_type)
    return Deployment(
        home_agent,
        (
            MobileNode(
                "mn",
                "mn@example.org",
                IPv6Address(home_address),
                mobile_node,
                signalling_reqid=SIGNALLING_REQID,
                data_reqid=DATA_REQID,
                ipv4_home_address=IPv4Address("203.0.113.130"),
            ),
        ),
        settings or IkeSettings(),
    )
