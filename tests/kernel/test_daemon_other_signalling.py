"""What RFC 4877 protects beside binding updates, with real daemons, charons and kernel ESP: mobile
prefix discovery (§4.3), and HoTI and HoT where payload isn't protected (§4.2); tshark judges."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path

import pytest
from daemon_lab import HOME_ADDRESS, HOME_AGENT, LAB, DaemonLab, daemon_lab, tshark, until

from dsmip_ipsec.ipsec.peering import numbered_reqids
from dsmip_ipsec.node.control import ControlError
from dsmip_ipsec.wire.messages import HomeTest, HomeTestInit
from dsmip_ipsec.wire.mobility import encode

CN6 = "2001:db8:0:2::200"
IDS = numbered_reqids(0, prefix_discovery=True, return_routability=True)
HOME_PREFIX = "2001:db8:100::/64"
HA = {"home_prefixes": [HOME_PREFIX]}
PUBLIC = """
[links.public.ends]
core = ["198.18.0.1/24"]
mn = ["198.18.0.100/24"]
[mobility]
prefix_discovery = true
return_routability = true
"""

# A correspondent node that answers home test inits, and a mobile node that sends them until one is.
CORRESPONDENT = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 135)
while True:
    data, sender = s.recvfrom(2048)
    if data[2] == 1:
        s.sendto(bytes.fromhex(sys.argv[1]), (sender[0], 0))
"""
MOBILE = """
import socket, sys, time
home, peer, message = sys.argv[1:]
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 135)
s.bind((home, 0))
s.settimeout(0.5)
end = time.monotonic() + 15
while time.monotonic() < end:
    try:
        s.sendto(bytes.fromhex(message), (peer, 0))
        while True:
            data, sender = s.recvfrom(2048)
            if data[2] == 3 and sender[0] == peer:
                print("answered")
                sys.exit()
    except OSError:
        pass
"""


def toml(*, protected: bool, mode: str = "mobike") -> str:
    text = LAB.replace("[mobility]\n", PUBLIC)
    text = text.replace("protected = true", f"protected = {str(protected).lower()}")
    return text.replace('mobility = "mobike"', f'mobility = "{mode}"')


async def pair(lab: DaemonLab, reqid: int) -> None:
    """Both ends have one SA for each direction under ``reqid``, the same ones."""

    async def same() -> bool:
        ends = [
            {sa.spi for sa in await lab.observers[node].associations() if sa.reqid == reqid}
            for node in ("mn", "ha")
        ]
        return ends[0] == ends[1] and len(ends[0]) == 2

    await until(same, f"a pair of SAs of reqid {reqid}")


@pytest.mark.rfc("5555-2.2-1")
@pytest.mark.parametrize(
    ("headers", "protected"), [("kernel", True), ("kernel", False), ("own", True)]
)
async def test_mobile_prefix_discovery(tmp_path: Path, headers: str, protected: bool) -> None:
    setting = {"native_signalling": headers}
    text = toml(protected=protected)
    async with daemon_lab(tmp_path, text, mn=setting, ha={**HA, **setting}) as lab:
        for network in ("six", "private", "dual"):
            await lab.move(network)
            await pair(lab, IDS.prefix_discovery)
            before = await lab.counter("mn", "signalling.icmp_received")
            await lab.command("mn", "solicit_prefixes")

            async def answered(before: int = before) -> bool:
                return await lab.counter("mn", "signalling.icmp_received") > before

            await until(answered, f"a mobile prefix advertisement in {network}")
            status = await lab.observers["mn"].status()
            assert status["home_prefixes"] == [HOME_PREFIX]
        await lab.command("mn", "deregister")
        with pytest.raises(ControlError, match="no binding"):
            await lab.command("mn", "solicit_prefixes")
    for capture, stack, source in (
        ("core-six", "ipv6:ipv6.dstopts:esp:icmpv6", "2001:db8:6::100"),
        ("core-dual", "ipv6:ipv6.dstopts:esp:icmpv6", "2001:db8:d::100"),
        ("nat-private", "ip:udp:ipv6:ipv6.dstopts:esp:icmpv6", HOME_ADDRESS),
    ):
        seen = tshark(
            tmp_path, capture, "icmpv6.type == 146",
            "frame.protocols", "ipv6.src", "ipv6.dst", "ipv6.opt.mipv6.home_address",
        )  # fmt: skip
        assert seen, capture
        for protocols, sender, destination, home_address in seen:
            # tshark's dissector for the port is called ip in both families.
            words = protocols.removeprefix("eth:ethertype:").replace("udp:ip:ipv6", "udp:ipv6")
            assert words == stack
            assert (sender, destination) == (source, HOME_AGENT)
            assert home_address == HOME_ADDRESS
        answers = tshark(
            tmp_path, capture, "icmpv6.type == 147",
            "esp.spi", "ipv6.routing.mipv6.home_address", "icmpv6.opt.prefix",
        )  # fmt: skip
        assert answers, capture
        for spi, home_address, prefix in answers:
            assert spi
            assert home_address == HOME_ADDRESS
            assert prefix == HOME_PREFIX.partition("/")[0]
        clear = "(icmpv6.type == 146 || icmpv6.type == 147) && !esp"
        assert tshark(tmp_path, capture, clear, "frame.number") == []


@pytest.mark.parametrize(
    ("mode", "networks"),
    [("mobike", ("private", "public", "six", "private")), ("k-bit", ("public", "private"))],
)
async def test_home_tests_are_protected_where_payload_is_not(
    tmp_path: Path, mode: str, networks: tuple[str, ...]
) -> None:
    home, peer = IPv6Address(HOME_ADDRESS), IPv6Address(CN6)
    init = encode(HomeTestInit(bytes(range(8))), home, peer).hex()
    test = encode(HomeTest(1, bytes(range(8)), bytes(8)), peer, home).hex()
    async with daemon_lab(tmp_path, toml(protected=False, mode=mode), ha=HA) as lab:
        answering = await lab.execute("cn", ["python3", "-c", CORRESPONDENT, test])
        for network in networks:
            await lab.move(network)
            await pair(lab, IDS.return_routability)
            words = ("python3", "-c", MOBILE, HOME_ADDRESS, CN6, init)
            assert "answered" in lab.exec("mn", *words), network
        answering.terminate()
        await answering.wait()
    outer = {"private": ("nat-private", "ip:udp:esp"), "public": ("core-public", "ip:esp"),
             "six": ("core-six", "ipv6:esp")}  # fmt: skip
    for network in set(networks):
        capture, stack = outer[network]
        for number in (1, 3):
            seen = tshark(tmp_path, capture, f"mip6.mhtype == {number}", "frame.protocols")
            assert seen, (network, number)
            for row in seen:
                layers = row[0].removeprefix("eth:ethertype:").replace(":udpencap", "")
                assert layers == f"{stack}:ipv6:mipv6"
    # Behind the home agent they are anybody's, for the correspondent node to read.
    assert tshark(tmp_path, "cn-internet", "mip6.mhtype == 1 && !esp", "frame.number")
