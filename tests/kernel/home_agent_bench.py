"""A home agent's daemon on this kernel, with SAs as charon would have installed them, and mobile
nodes played by scapy: a third party makes the ESP and reads the answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from scapy.layers.inet6 import (
    MIP6MH_BU,
    IPv6,
    MIP6OptUnknown,
)
from scapy.layers.ipsec import ESP
from scapy.layers.ipsec import SecurityAssociation as ScapySa
from xfrm_netns import ip

from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ipsec.peering import numbered_reqids
from dsmip_ipsec.node.config import (
    HomeAgentConfig,
    HomeAgentIkeSection,
    HomeAgentSection,
    PeerSection,
)
from dsmip_ipsec.node.home_agent import HomeAgentDaemon
from dsmip_ipsec.xfrm.constants import Mode
from dsmip_ipsec.xfrm.socket import XfrmSocket
from dsmip_ipsec.xfrm.types import Algorithm, Encap, Key, Replay, State

AGENT = IPv6Address("2001:db8:100::1")
AGENT4 = IPv4Address("192.0.2.1")
PORT = 4191
# Added to the SPIs of signalling for those of payload.
DATA_SPIS = 0x10000


class MobileNode:
    """Number ``index``: its SAs, and a UDP socket behind "its NAT"."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.home_address = AGENT + 0x100 + index
        self.v4addr = IPv4Address("192.0.2.10") + index % 3
        self.ids = numbered_reqids(index)
        self.spi_up, self.spi_down = 0x1000 + index, 0x2000 + index
        self.key_up = hashlib.sha256(b"up %d" % index).digest()[:20]
        self.key_down = hashlib.sha256(b"down %d" % index).digest()[:20]
        self._up = self._scapy(self.spi_up, self.key_up)
        self._down = self._scapy(self.spi_down, self.key_down)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((str(self.v4addr), 0))

    @staticmethod
    def _scapy(spi: int, key: bytes) -> ScapySa:
        return ScapySa(  # type: ignore[no-untyped-call]
            ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=key
        )

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def states(self, *, data: bool = False) -> list[State]:
        """What charon installs at the home agent behind a NAT: tunnel mode, ESP in UDP.
        ``data``: the SAs for payload as well."""
        ids, up, down = self.ids, self.spi_up, self.spi_down
        pairs = [(ids.signalling, up, down)]
        if data:
            pairs.append((ids.data, DATA_SPIS + up, DATA_SPIS + down))
        return [
            State(
                destination=destination,
                source=source,
                spi=spi,
                mode=Mode.TUNNEL,
                reqid=reqid,
                aead=Algorithm("rfc4106(gcm(aes))", Key(key), 128),
                encap=Encap(4500, 4500),
                replay=Replay(window=64),
            )
            for reqid, spi_up, spi_down in pairs
            for source, destination, spi, key in (
                (self.v4addr, AGENT4, spi_up, self.key_up),
                (AGENT4, self.v4addr, spi_down, self.key_down),
            )
        ]

    def update(self, sequence: int, *, home_address: IPv6Address | None = None) -> IPv6:
        """A binding update in clear, as scapy builds it (options 29, 32 by hand)."""
        care_of = MIP6OptUnknown(otype=32, odata=bytes(2) + IPv4Address("10.0.0.2").packed)
        packet: IPv6 = IPv6(src=str(home_address or self.home_address), dst=str(AGENT)) / MIP6MH_BU(
            seq=sequence, flags="AH", mhtime=100, options=[care_of]
        )
        return packet

    def protected(self, packet: IPv6, *, sequence: int | None = None) -> bytes:
        """``packet`` under this node's SA; ``sequence``: of ESP."""
        return bytes(self._up.encrypt(packet, seq_num=sequence))  # type: ignore[no-untyped-call]

    def send(self, octets: bytes) -> None:
        self.socket.sendto(octets, (str(AGENT4), PORT))

    async def answer(self, timeout_s: float = 5.0) -> IPv6:
        """The next answer, decrypted by scapy, as an IPv6 packet."""
        octets = await asyncio.wait_for(
            asyncio.get_running_loop().sock_recv(self.socket, 2048), timeout_s
        )
        packet = IPv6(octets)
        assert packet.nh == 50, "not ESP"
        assert packet.fl == 0, "a token reached the wire"
        decrypted: IPv6 = self._down.decrypt(packet)  # type: ignore[no-untyped-call]
        return decrypted


class Bench:
    """The daemon and its namespace's kernel."""

    def __init__(self, daemon: HomeAgentDaemon, nodes: list[MobileNode]) -> None:
        self.daemon = daemon
        self.nodes = nodes

    async def status(self) -> dict[str, Any]:
        return dict(await self.daemon._status({}))

    async def counter(self, name: str) -> int:
        return int((await self.status())["counters"].get(name, 0))

    async def until(self, true: Callable[[], Any], what: str, timeout_s: float = 5.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    result = true()
                    if asyncio.iscoroutine(result):
                        result = await result
                    if result:
                        return
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}") from None


@contextlib.asynccontextmanager
async def home_agent(
    directory: Path, count: int = 1, *, mode: MobilityMode = MobilityMode.MOBIKE, data: bool = False
) -> AsyncIterator[Bench]:
    """A home agent for ``count`` mobile nodes whose signalling SAs are up; with ``data``, those
    for payload too."""
    for address in (f"{AGENT}/128", f"{AGENT4}/32", *(f"192.0.2.{10 + i}/32" for i in range(3))):
        ip(f"addr add {address} dev lo" + (" nodad" if ":" in address else ""))
    nodes = [MobileNode(index) for index in range(count)]
    config = HomeAgentConfig(
        control_socket=directory / "ha.sock",
        ike=HomeAgentIkeSection(mobility_mode=mode),
        home_agent=HomeAgentSection(home_agent=AGENT, home_agent_ipv4=AGENT4),
        mobile_nodes=tuple(
            PeerSection(
                home_address=node.home_address,
                signalling_reqid=node.ids.signalling,
                mirror_reqid=node.ids.mirror,
                data_reqid=node.ids.data,
            )
            for node in nodes
        ),
    )
    daemon = HomeAgentDaemon(config)
    with XfrmSocket() as xfrm:
        for node in nodes:
            for state in node.states(data=data):
                xfrm.add_state(state)
    await daemon.start()
    gc.freeze()  # as node.main does
    try:
        yield Bench(daemon, nodes)
    finally:
        await daemon.stop()
        for node in nodes:
            node.socket.close()
