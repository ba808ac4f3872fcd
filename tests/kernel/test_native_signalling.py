"""BU and BA over IPv6: home address option, type 2 routing header, ESP by the kernel (RFC 6275)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import HAO, MIP6MH_BA, MIP6MH_BU, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.ipsec import ESP
from scapy.layers.ipsec import SecurityAssociation as ScapySa
from scapy.packet import Raw
from scapy.utils import wrpcap
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.kernel.mobility_socket import MobilitySocket, ReceivedMobility
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.lab.netns import enter_descriptor
from dsmip_ipsec.mobility.types import Binding
from dsmip_ipsec.xfrm.constants import Mode
from dsmip_ipsec.xfrm.socket import XfrmSocket
from dsmip_ipsec.xfrm.types import Algorithm, Key, Replay, Selector, State

IDS = Reqids(signalling=55501, mirror=55502, data=55503)
HOME, AGENT = IPv6Address("2001:db8:100::100"), IPv6Address("2001:db8:100::1")
CARE_OF, OTHER = IPv6Address("2001:db8:2::2"), IPv6Address("2001:db8:2::3")
HOME4, FAR, FAR4 = IPv4Address("203.0.113.200"), "2001:db8:ffff::1", "198.51.100.1"
KEYS = {spi: bytes(range(spi & 0xF, 20 + (spi & 0xF))) for spi in (0x1001, 0x1002, 0x2001, 0x2002)}
BINDING = Binding(
    home_address=HOME, home_agent=AGENT, care_of_address=CARE_OF, sequence=1, lifetime=600,
    registered_at=0, expires_at=600,
)  # fmt: skip
ROUTER = "2001:db8:2::1"


def peering(role: Role) -> Peering:
    return Peering(role, HOME, HOME4, AGENT, IPv4Address("203.0.113.2"), IDS)


@dataclass
class End:
    """One end in its namespace: sockets and a reconciler that stay there."""

    role: Role
    namespace: int
    mobility: MobilitySocket = field(init=False)
    xfrm: XfrmSocket = field(init=False)
    signalling_care_of: IPv6Address | None = None
    binding: Binding | None = None

    async def open(self) -> None:
        self.enter()
        self.mobility = MobilitySocket()
        self.xfrm = XfrmSocket()
        for source, destination, spi in (
            (HOME, AGENT, 0x1001),
            (AGENT, HOME, 0x1002),
            (CARE_OF, AGENT, 0x2001),
            (AGENT, CARE_OF, 0x2002),
        ):
            data = spi & 0x2000 != 0
            self.xfrm.add_state(
                State(
                    destination=destination, source=source, spi=spi,
                    mode=Mode.TUNNEL if data else Mode.TRANSPORT,
                    reqid=IDS.data if data else IDS.signalling,
                    replay=Replay(window=32), selector=Selector(),
                    aead=Algorithm("rfc4106(gcm(aes))", Key(KEYS[spi]), 128),
                )
            )  # fmt: skip
        self.reconciler = Reconciler(self._desired, (IDS,))
        await self.reconciler.open()

    async def close(self) -> None:
        self.enter()
        await self.reconciler.close()
        self.mobility.close()
        self.xfrm.close()

    def _desired(self, _: Reqids, negotiated: Any) -> DesiredState:
        return desired(
            peering(self.role), active=True, binding=self.binding, negotiated=negotiated,
            signalling_care_of=self.signalling_care_of,
        )  # fmt: skip

    async def leave_from(self, care_of_address: IPv6Address | None) -> None:
        self.signalling_care_of = care_of_address
        await self.reconciler.reconcile()

    def enter(self) -> None:
        enter_descriptor(self.namespace)

    def ip(self, arguments: str) -> str:
        self.enter()
        return ip(arguments)

    def counter(self, name: str) -> int:
        self.enter()
        text = Path("/proc/thread-self/net/xfrm_stat").read_text()
        (value,) = re.findall(rf"^{name}\s+(\d+)$", text, re.MULTILINE)
        return int(value)

    async def receive(self, timeout_s: float = 3.0) -> ReceivedMobility:
        async with asyncio.timeout(timeout_s):
            while (received := self.mobility.receive()) is None:
                await asyncio.sleep(0.005)
        return received


class Wire:
    """What each end sends on the link: the IPv6 packets, the mobile node's first.

    Only sent frames count: a packet that ESP tunnel mode has taken out shows up on the interface
    it came by once more, in clear.
    """

    def __init__(self, mobile_node: End, home_agent: End) -> None:
        self._sockets = []
        for end, interface in ((mobile_node, "mn0"), (home_agent, "ha0")):
            end.enter()
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            tap.bind((interface, 0))
            tap.setblocking(False)
            self._sockets.append(tap)

    def packets(self, timeout_s: float = 0.2) -> list[bytes]:
        """All since the last call; waits until nothing came for ``timeout_s``."""
        found = []
        for tap in self._sockets:
            while select.select([tap], [], [], timeout_s)[0]:
                frame, sender = tap.recvfrom(4096)
                if sender[2] != socket.PACKET_OUTGOING or frame[12:14] != b"\x86\xdd":
                    continue
                if frame[20] not in (0, 58):
                    found.append(frame[14:])
        return found

    def close(self) -> None:
        for tap in self._sockets:
            tap.close()


@dataclass
class Bench:
    mobile_node: End
    home_agent: End
    wire: Wire


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_netns())
        home_agent = End(Role.HOME_AGENT, os.open("/proc/self/ns/net", os.O_RDONLY))
        stack.enter_context(fresh_netns())
        mobile_node = End(Role.MOBILE_NODE, os.open("/proc/self/ns/net", os.O_RDONLY))
        stack.callback(os.close, home_agent.namespace)
        stack.callback(os.close, mobile_node.namespace)
        there = f"/proc/{os.getpid()}/fd/{home_agent.namespace}"
        ip(f"link add mn0 type veth peer name ha0 netns {there}")
        for command in (
            "link set mn0 up",
            *(f"addr add {a}/64 dev mn0 nodad" for a in (CARE_OF, OTHER)),
            f"addr add {HOME}/128 dev lo nodad home",
            f"-6 route add default via {ROUTER} src {HOME}",
        ):
            mobile_node.ip(command)
        for command in (
            "link set ha0 up", f"addr add {ROUTER}/64 dev ha0 nodad",
            f"addr add {AGENT}/128 dev lo nodad",
        ):  # fmt: skip
            home_agent.ip(command)
        wire = Wire(mobile_node, home_agent)
        stack.callback(wire.close)
        for end in (home_agent, mobile_node):
            await end.open()
        try:
            yield Bench(mobile_node, home_agent, wire)
        finally:
            for end in (home_agent, mobile_node):
                await end.close()
            mobile_node.enter()


def update(sequence: int = 7) -> bytes:
    """scapy's, with the checksum of home address and home agent (RFC 6275 §6.1.1)."""
    packet = IPv6(src=str(HOME), dst=str(AGENT)) / MIP6MH_BU(seq=sequence, flags="AH", mhtime=100)
    return bytes(packet)[40:]


def acknowledgement(status: int = 0) -> bytes:
    packet = IPv6(src=str(AGENT), dst=str(HOME)) / MIP6MH_BA(status=status, seq=7, mhtime=100)
    return bytes(packet)[40:]


def scapy_sa(spi: int) -> ScapySa:
    return ScapySa(  # type: ignore[no-untyped-call]
        ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=KEYS[spi]
    )


def tshark(packets: list[bytes], directory: Path, *fields: str) -> list[list[str]]:
    """The fields, a row a packet, with the SAs' keys (keyed on the home address)."""
    wrpcap(str(directory / "wire.pcap"), [Raw(p) for p in packets], linktype=101)
    config = directory / "wireshark"
    config.mkdir(exist_ok=True)
    (config / "esp_sa").write_text(
        "".join(
            f'"IPv6","*","*","0x{spi:08x}","AES-GCM with 16 octet ICV [RFC4106]",'
            f'"0x{key.hex()}","NULL","","32-bit"\n'
            for spi, key in KEYS.items()
        )
    )
    command = ["tshark", "-r", str(directory / "wire.pcap"), "-T", "fields", "-E", "separator=|"]
    command += ["-o", "esp.enable_encryption_decode:TRUE"]
    for name in fields:
        command += ["-e", name]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(config)},
    )  # fmt: skip
    return [line.split("|") for line in result.stdout.splitlines()]


@pytest.mark.rfc("6275-11.3.2-2")
async def test_a_first_binding_update_arrives_and_its_answer_returns(
    bench: Bench, tmp_path: Path
) -> None:
    """The home agent has never heard of the care-of address before."""
    mn, ha = bench.mobile_node, bench.home_agent
    await mn.leave_from(CARE_OF)
    mn.mobility.send_native(update(), HOME, AGENT)
    received = await ha.receive()
    assert received == ReceivedMobility(HOME, AGENT, 0, update(), CARE_OF)
    assert received.care_of_address is not None
    ha.mobility.send_native(
        acknowledgement(130), AGENT, HOME, care_of_address=received.care_of_address
    )
    answer = await mn.receive()
    assert (answer.source, answer.destination, answer.message) == (
        AGENT, HOME, acknowledgement(130),
    )  # fmt: skip
    rows = tshark(
        bench.wire.packets(), tmp_path, "frame.protocols", "ipv6.src", "ipv6.dst",
        "ipv6.opt.mipv6.home_address", "ipv6.routing.mipv6.home_address", "mip6.bu.seqnr",
        "mip6.ba.status",
    )  # fmt: skip
    assert rows == [
        ["raw:ipv6:ipv6.dstopts:esp:mipv6", str(CARE_OF), str(AGENT), str(HOME), "", "7", ""],
        ["raw:ipv6:ipv6.routing:esp:mipv6", str(AGENT), str(CARE_OF), "", str(HOME), "", "130"],
    ], rows


async def test_the_next_update_leaves_from_the_new_care_of_address(bench: Bench) -> None:
    """Also back to UDP over IPv4 or the home link, where there is no option."""
    mn, ha = bench.mobile_node, bench.home_agent
    for care_of in (CARE_OF, OTHER, None, OTHER):
        await mn.leave_from(care_of)
        assert await mn.reconciler.reconcile() == ()
        mn.mobility.send_native(update(), HOME, AGENT)
        assert (await ha.receive()).care_of_address == care_of
    assert all(packet[6] in (50, 60) for packet in bench.wire.packets())


@pytest.mark.parametrize("reach", [(str(HOME), FAR), (str(HOME4), FAR4)])
async def test_payload_of_both_families_goes_by_esp_in_ipv6(
    bench: Bench, tmp_path: Path, reach: tuple[str, str]
) -> None:
    """No UDP, and no home address option: the tunnel's source is the care-of address."""
    mn, ha = bench.mobile_node, bench.home_agent
    for end in (ha, mn):
        end.binding = BINDING
        await end.reconciler.reconcile()
    ha.ip(f"addr add {FAR}/128 dev lo nodad")
    ha.ip(f"addr add {FAR4}/32 dev lo")
    ha.ip(f"-6 route add {HOME}/128 via {CARE_OF}")
    ha.ip("addr add 192.0.2.1/24 dev ha0")
    ha.ip(f"route add {HOME4} via 192.0.2.2")
    mn.ip(f"addr add {HOME4}/32 dev lo")
    mn.ip("addr add 192.0.2.2/24 dev mn0")
    mn.ip("route add default via 192.0.2.1")
    source, destination = reach
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        ha.enter()
        server = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        server.bind((destination, 7))
        mn.enter()
        client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        client.bind((source, 0))
        for each in (server, client):
            each.setblocking(False)
        bench.wire.packets()
        await loop.sock_sendto(client, b"there", (destination, 7))
        async with asyncio.timeout(3):
            data, sender = await loop.sock_recvfrom(server, 100)
            await loop.sock_sendto(server, data + b" and back", sender)
            assert await loop.sock_recv(client, 100) == b"there and back"
    inner = "ipv6" if family == socket.AF_INET6 else "ip"
    rows = tshark(bench.wire.packets(), tmp_path, "frame.protocols", "ipv6.src")
    assert [row[0].removesuffix(":data").removesuffix(":echo") for row in rows] == [
        f"raw:ipv6:esp:{inner}:udp", f"raw:ipv6:esp:{inner}:udp",
    ], rows  # fmt: skip
    assert [row[1].split(",")[0] for row in rows] == [str(CARE_OF), str(AGENT)]


async def test_a_home_address_option_without_esp_is_dropped(bench: Bench) -> None:
    """What takes the option from anywhere must not open the door to what isn't protected."""
    mn, ha = bench.mobile_node, bench.home_agent
    option = IPv6ExtHdrDestOpt(options=[HAO(hoa=str(HOME))])
    message = MIP6MH_BU(seq=9, flags="AH", mhtime=100)
    before = ha.counter("XfrmInTmplMismatch")
    _raw(mn, IPv6(src=str(CARE_OF), dst=str(AGENT)) / option / message)
    await _until(lambda: ha.counter("XfrmInTmplMismatch") > before, "dropped")
    assert ha.mobility.receive() is None


async def test_other_traffic_with_a_home_address_option_is_dropped(bench: Bench) -> None:
    """An echo request that pretends to come from the home address gets no answer."""
    from scapy.layers.inet6 import ICMPv6EchoRequest

    mn, ha = bench.mobile_node, bench.home_agent
    option = IPv6ExtHdrDestOpt(options=[HAO(hoa=str(HOME))])
    before = ha.counter("XfrmInNoPols") + ha.counter("XfrmInPolBlock")
    _raw(mn, IPv6(src=str(CARE_OF), dst=str(AGENT)) / option / ICMPv6EchoRequest())
    await _until(
        lambda: ha.counter("XfrmInNoPols") + ha.counter("XfrmInPolBlock") > before, "dropped"
    )


async def test_the_option_of_another_home_address_is_not_taken(bench: Bench) -> None:
    mn, ha = bench.mobile_node, bench.home_agent
    option = IPv6ExtHdrDestOpt(options=[HAO(hoa=str(HOME + 1))])
    protected = bytes(
        scapy_sa(0x1001).encrypt(  # type: ignore[no-untyped-call]
            IPv6(src=str(HOME + 1), dst=str(AGENT)) / MIP6MH_BU(seq=9, flags="AH", mhtime=100)
        )
    )
    esp = ESP(protected[40:])
    before = ha.counter("XfrmInNoStates")
    _raw(mn, IPv6(src=str(CARE_OF), dst=str(AGENT)) / option / esp)
    await _until(lambda: ha.counter("XfrmInNoStates") > before, "no state takes it")
    assert ha.mobility.receive() is None


async def test_without_an_sa_nothing_leaves(bench: Bench) -> None:
    mn = bench.mobile_node
    await mn.leave_from(CARE_OF)
    for state in [s for s in mn.xfrm.dump_states() if s.reqid == IDS.signalling]:
        mn.xfrm.delete_state(state.id)
    await mn.reconciler.reconcile(settled=True)
    before = mn.counter("XfrmOutPolBlock")
    with pytest.raises(Exception, match="can't send"):
        mn.mobility.send_native(update(), HOME, AGENT)
    assert mn.counter("XfrmOutPolBlock") == before + 1
    assert bench.wire.packets() == []


async def test_everything_is_gone_at_the_end(bench: Bench) -> None:
    mn = bench.mobile_node
    await mn.leave_from(CARE_OF)
    assert mn.ip("xfrm state list proto hao") != ""
    assert mn.ip("xfrm state list proto route2") != ""
    await mn.reconciler.close()
    assert mn.ip("xfrm state list proto hao") == ""
    assert mn.ip("xfrm state list proto route2") == ""
    assert "priority 5555" not in mn.ip("xfrm policy")
    await mn.reconciler.open()


def _raw(end: End, packet: IPv6) -> None:
    """Send a packet as it is, past this end's own policies."""
    end.enter()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD)) as sender:
        sender.sendto(bytes(packet), ("mn0", 0x86DD, 0, 0, b"\xff" * 6))


async def _until(true: Callable[[], object], what: str, timeout_s: float = 3.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not true():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


@pytest.fixture(autouse=True)
def _back_home() -> Iterator[None]:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        enter_descriptor(home)
        os.close(home)
