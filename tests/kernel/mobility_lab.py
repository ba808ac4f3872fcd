"""A standing lab for the tests of moves and of what charon and the daemons go through: the
topology of nat-handover.toml with real charons, real daemons and real captures."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from lab_support import LAB

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ike import charon
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import IkeSa
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import numbered_reqids
from dsmip_ipsec.lab import nat
from dsmip_ipsec.lab.netns import enter, isolated
from dsmip_ipsec.lab.spec import Lab, parse
from dsmip_ipsec.lab.standing import StandingLab
from dsmip_ipsec.report.captured import incomplete

HOME, HOME4 = "2001:db8:100::100", "203.0.113.200"
CORRESPONDENT, CORRESPONDENT4 = "2001:db8:0:2::200", "192.0.2.200"
NAT, PRIVATE, PUBLIC = "192.0.2.2", "10.0.0.100", "198.51.100.100"
MODES = ("mobike", "k-bit", "renegotiate")
IDS = numbered_reqids(0)
# How long what happens after a round trip or two may take on a busy machine.
SOON_S = 8.0


class MobilityLab:
    """``node`` is "mn" or "ha" throughout."""

    def __init__(self, lab: Lab, out: Path) -> None:
        self.lab = lab
        self.out = out
        self.standing = StandingLab(lab, out, export_keys=True, say=print)
        self.network = ""

    # Moving -------------------------------------------------------------------------------------

    async def move(self, network: str) -> None:
        """Attach, and leave the network of before once the daemon is done."""
        previous, self.network = self.network, network
        await self.standing.attach("mn", network)
        if previous and previous != network:
            self.standing.leave("mn", previous)

    def rebind(self) -> None:
        """The NAT forgets its mappings and draws other ports: same address, other port."""
        name = self.namespace("nat")
        for state in ("down", "up"):  # masquerading forgets with the interface
            _run("ip", "-n", name, "link", "set", "access-a", state)
        _run("ip", "-n", name, "route", "replace", "default", "via", "192.0.2.1")
        spec = next(n for n in self.lab.nodes.values() if n.role == "nat")

        def inside() -> None:
            enter(name)
            nat.install(spec)

        isolated(inside)

    def namespace(self, node: str) -> str:
        return self.standing.topology.namespace(node)

    # Looking ------------------------------------------------------------------------------------

    def driver(self, node: str) -> ViciDriver:
        return ViciDriver(self.standing.nodes[node].files.vici_socket)

    async def ike(self, node: str) -> IkeSa:
        """The only established IKE_SA."""
        (sa,) = [sa for sa in await self.driver(node).list_sas() if sa.established]
        return sa

    async def single(self, node: str) -> bool:
        """Whether charon has one IKE_SA, and not a rekeyed one besides."""
        return len(await self.driver(node).list_sas()) == 1

    async def associations(self, node: str) -> list[SecurityAssociation]:
        return await self.standing.observers[node].associations()

    def ping(self, family: int) -> bool:
        """One echo from the home address to the correspondent node and back."""
        source, target = (HOME, CORRESPONDENT) if family == 6 else (HOME4, CORRESPONDENT4)
        command = ["ip", "netns", "exec", self.namespace("mn"), "ping", "-n", "-q", "-c", "1"]
        done = subprocess.run(
            [*command, "-W", "1", "-I", source, target], check=False, capture_output=True
        )
        return done.returncode == 0

    async def data_flows(self) -> None:
        for family in (6, 4):
            await until(partial(asyncio.to_thread, self.ping, family), f"IPv{family} data")

    async def agree(self) -> None:
        """Both ends have the same SAs for the same purposes, one pair each, and no others; charon
        knows all of its own, and nothing else."""

        async def same() -> bool:
            ends = [await self.associations(node) for node in ("mn", "ha")]
            keys = [sorted((sa.spi, sa.reqid, sa.mode.value) for sa in end) for end in ends]
            counts = [len([sa for sa in ends[0] if sa.reqid == reqid]) for reqid in
                      (IDS.data, IDS.mirror, IDS.signalling)]  # fmt: skip
            if keys[0] != keys[1] or counts not in ([2, 2, 2], [2, 0, 2]):
                return False
            for node in ("mn", "ha"):
                children = (await self.ike(node)).children
                known = {spi for child in children for spi in (child.spi_in, child.spi_out)}
                if known != {spi for spi, reqid, _ in keys[0]}:
                    return False
            return True

        await until(same, "agreement", 20, self.describe)

    async def describe(self) -> str:
        lines = []
        for node in ("mn", "ha"):
            lines += [f"{node} {sa}" for sa in await self.associations(node)]
            lines += [
                f"{node} IKE {sa.state} {sa.remote_host}:{sa.remote_port} "
                + " ".join(f"{c.name}:{c.state}:{c.spi_in:x}/{c.spi_out:x}" for c in sa.children)
                for sa in await self.driver(node).list_sas()
            ]
        return "\n".join(lines)

    async def placed(self) -> None:
        """Data SAs are where the mobile node is, in the same format at both ends."""
        mobile = {"mn": PRIVATE if self.network == "visited-a" else PUBLIC}
        mobile["ha"] = NAT if self.network == "visited-a" else PUBLIC

        async def right() -> bool:
            ike = await self.ike("ha")
            for node in ("mn", "ha"):
                for sa in await self.associations(node):
                    if sa.reqid != IDS.data:
                        continue
                    if mobile[node] not in (str(sa.source), str(sa.destination)):
                        return False
                    udp = sa.encapsulation
                    if (udp is not None) != (self.network == "visited-a"):
                        return False
                    if node == "ha" and udp is not None:
                        ports = {udp.source_port, udp.destination_port}
                        if ports != {4500, ike.remote_port}:
                            return False
            return str(ike.remote_host) == mobile["ha"]

        await until(right, "SAs in place", describe=self.describe)

    async def exchanges(self) -> None:
        """Each end can begin an exchange on the IKE_SA, and rekey each CHILD_SA."""
        # The IKE_SA first: it can't be rekeyed while a rekeyed CHILD_SA lingers.
        for child in (None, "data", "signalling"):
            for node in ("mn", "ha"):
                await self.rekey(node, child)

    async def rekey(self, node: str, child: str | None = None) -> None:
        """Of the name ``child``, or of a signalling CHILD_SA of either kind."""
        if child == "signalling":
            names = {c.name for c in (await self.ike(node)).children if c.installed}
            (child,) = names - {"data"}

        async def succeeds() -> bool:
            try:
                await self.driver(node).rekey("mn", child, timeout=5)
            except DsmipError as error:
                # Refused while another rekeying is under way (RFC 7296 §2.25).
                if "rekeying failed" not in error.message:
                    raise
                return False
            return True

        await until(succeeds, f"rekeying {child or 'the IKE_SA'} from {node}")

    # Ending and beginning -------------------------------------------------------------------------

    async def kill(self, name: str) -> None:
        process = self.standing.processes[name]
        process.stopping = True  # expected
        process.signal(signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(process.ended), 5)

    async def forget(self, node: str) -> None:
        """The kernel of ``node`` forgets its SAs and policies, as in a reboot."""
        for what in ("state", "policy"):
            _run("ip", "-n", self.namespace(node), "xfrm", what, "flush")

    async def start_charon(self, node: str) -> None:
        files = self.standing.nodes[node].files
        charon.prepare(files)
        self.standing.processes.start(
            f"charon of {node}",
            [charon.program()],
            log=self.out / "logs" / f"{node}-charon-again.out",
            namespace=self.namespace(node),
            environment=charon.environment(files),
        )

        async def there() -> bool:
            try:
                await self.driver(node).version()
            except DsmipError:
                return False
            return True

        await until(there, f"charon of {node}", 20)
        await self.driver(node).load_all(files)

    async def start_daemon(self, node: str) -> None:
        config = self.standing.nodes[node].daemon_config
        self.standing.processes.start_module(
            f"daemon of {node}",
            "dsmip_ipsec.cli.main",
            ["mn" if node == "mn" else "ha", "--config", str(config)],
            log=self.out / "logs" / f"{node}-daemon-again.log",
            namespace=self.namespace(node),
        )

        async def there() -> bool:
            try:
                await self.standing.observers[node].status()
            except DsmipError:
                return False
            return True

        await until(there, f"daemon of {node}", 20)

    def captured(self, capture: str, display_filter: str, *fields: str) -> list[list[str]]:
        """After the lab: fields of the packets that match, keys not needed."""
        path = self.out / "captures" / f"{capture}.pcapng"
        assert incomplete(path) == ""
        command = ["tshark", "-d", "udp.port==4191,ip", "-r", str(path), "-Y", display_filter]
        command += ["-T", "fields", "-E", "separator=|"]
        for field in fields:
            command += ["-e", field]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split("|") for line in done.stdout.splitlines()]

    def nothing_in_clear(self) -> None:
        """After the lab: what names a home address is inside ESP, on every access link."""
        named = f"(ip.addr == {HOME4} or ipv6.addr == {HOME}) and not esp"
        for capture in ("nat-visited-a", "core-visited-b", "nat-access-a"):
            assert self.captured(capture, named, "frame.number") == [], capture
        assert self.captured("ha-backbone", "esp", "frame.number")


async def until(
    condition: Callable[[], Awaitable[bool]],
    what: str,
    limit_s: float = SOON_S,
    describe: Callable[[], Awaitable[str]] | None = None,
) -> float:
    """Poll until ``condition`` holds; the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await condition():
        if loop.time() > began + limit_s:
            details = await describe() if describe is not None else ""
            raise AssertionError(f"{what}: not within {limit_s:g} s\n{details}")
        await asyncio.sleep(0.05)
    return loop.time() - began


@asynccontextmanager
async def mobility_lab(
    out: Path, mode: str = "mobike", text: str | None = None
) -> AsyncIterator[MobilityLab]:
    """The lab in that mobility mode, up; taken down and its captures complete at the end."""
    source = text if text is not None else LAB.read_text(encoding="utf-8")
    assert 'mobility = "mobike"' in source
    lab = MobilityLab(parse(source.replace('mobility = "mobike"', f'mobility = "{mode}"')), out)
    try:
        await lab.standing.up()
        yield lab
    except BaseException:
        for log in sorted((out / "logs").glob("*")):
            tail = log.read_text(errors="replace").splitlines()[-60:]
            print(f"--- {log.name}", *tail, sep="\n")
        for node in lab.standing.nodes.values():
            if node.files.log_file.exists():
                tail = node.files.log_file.read_text(errors="replace").splitlines()[-80:]
                print(f"--- charon of {node.name}", *tail, sep="\n")
        raise
    finally:
        await lab.standing.down()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
