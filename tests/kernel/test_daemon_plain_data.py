"""Payload without IPsec with real daemons, real charons and kernel ESP for signalling.

RFC 5555 §4.1 (IPv4 and IPv6 in IPv6, IPv4 and IPv6 in IPv4) and §4.2 (the same in UDP); tshark
says what was on the wire.
"""

from __future__ import annotations

import json
import signal
import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
from daemon_lab import (
    HOME_ADDRESS,
    HOME_AGENT,
    IPV4_HOME_ADDRESS,
    LAB,
    DaemonLab,
    daemon_lab,
    tshark,
    until,
)

from dsmip_ipsec.ike.inventory import IkeSettings
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.lab import nat
from dsmip_ipsec.lab.spec_models import Rebind
from dsmip_ipsec.wire.ip import IKE_NATT_PORT

CN6, CN4 = "2001:db8:0:2::200", "192.0.2.200"
PLAIN = LAB.replace("protected = true", "protected = false")
# Networks, and the kind of the kernel's tunnel there ("tun": in UDP, by the daemons).
PUBLIC = """
[links.public.ends]
core = ["198.18.0.1/24"]
mn = ["198.18.0.100/24"]
"""
PLACES = {"private": "tun", "public": "sit", "six": "ip6tnl", "dual": "ip6tnl"}
TUNNEL_METRIC = 55549
# For an IKE_SA with its CHILD_SAs, on a busy machine.
ESTABLISHED_S = 8.0
# The time in which a dead peer is noticed at the latest: quiet, then retransmissions.
DPD_S = IkeSettings().dpd_delay + IkeSettings().retransmission_time()


def plain_lab(out: Path) -> AbstractAsyncContextManager[DaemonLab]:
    return daemon_lab(out, PLAIN.replace("[mobility]", PUBLIC + "[mobility]"))


def tunnels(lab: DaemonLab, node: str) -> list[str]:
    """Kinds of our interfaces but the two TUNs, which are there all the time."""
    links = json.loads(lab.exec(node, "ip", "-j", "-d", "link", "show"))
    return [
        link["linkinfo"]["info_kind"]
        for link in links
        if "dsmip-ipsec tunnel of" in link.get("ifalias", "")
    ]


def routes(lab: DaemonLab, node: str) -> set[str]:
    """Interfaces that our routes lead to."""
    found = [
        route
        for family in ("-4", "-6")
        for route in lab.ip(node, family, "route", "show", "table", "all")
    ]
    return {route["dev"] for route in found if route.get("metric") == TUNNEL_METRIC}


def data_sas(lab: DaemonLab, node: str) -> str:
    return "\n".join(
        line for line in lab.exec(node, "ip", "xfrm", "policy").splitlines() if "tunnel" in line
    )


async def check(lab: DaemonLab, kind: str) -> None:
    """Payload of both families gets through, by one tunnel of that kind at each end."""
    await until(lambda: lab.reaches("mn", HOME_ADDRESS, CN6), "IPv6 payload")
    await until(lambda: lab.reaches("mn", IPV4_HOME_ADDRESS, CN4), "IPv4 payload")
    assert lab.reaches("cn", CN6, HOME_ADDRESS)
    assert lab.reaches("cn", CN4, IPV4_HOME_ADDRESS)
    for node in ("mn", "ha"):
        assert tunnels(lab, node) == ([] if kind == "tun" else [kind])
        assert len(routes(lab, node)) == 1
        assert ("dsmip-udp" in routes(lab, node)) == (kind == "tun")
        assert data_sas(lab, node) == "", "no payload in ESP"


def _without(lab: DaemonLab, node: str) -> bool:
    return not tunnels(lab, node)


async def nothing_left(lab: DaemonLab) -> None:
    for node in ("mn", "ha"):
        await until(partial(_without, lab, node), f"no tunnel at {node}")
        assert routes(lab, node) == set()


@pytest.mark.rfc("5555-4.5-13", "5555-4.5-15", "5555-4.4.2-8")
async def test_a_node_moves_between_all_formats(tmp_path: Path) -> None:
    async with plain_lab(tmp_path) as lab:
        await nothing_left(lab)
        for place in ("private", "public", "six", "private", "dual", "public"):
            await lab.move(place)
            await check(lab, PLACES[place])
        assert await lab.counter("mn", "tunnel.sent") > 0
        assert await lab.counter("ha", "tunnel.received") > 0
        await lab.command("mn", "deregister")
        assert await lab.binding() is None
        await nothing_left(lab)
        assert not lab.reaches("mn", HOME_ADDRESS, CN6, count=1), "nothing leaves in clear"
        assert not lab.reaches("mn", IPV4_HOME_ADDRESS, CN4, count=1)
    formats(tmp_path)


def traffic_classes(out: Path, capture: str, where: str) -> set[tuple[str, ...]]:
    """Headers and the traffic class of each IP header among them, once each."""
    rows = tshark(
        out, capture, f"({where}) && (icmp.type == 8 || icmpv6.type == 128)",
        "frame.protocols", "ip.dsfield", "ipv6.tclass",
    )  # fmt: skip
    found: set[tuple[str, ...]] = set()
    for protocols, four, six in rows:
        stack = _inner(protocols.removeprefix("eth:ethertype:"))
        fours, sixes = (list(filter(None, text.split(";"))) for text in (four, six))
        classes = [
            int((sixes if word == "ipv6" else fours).pop(0), 0)
            for word in stack.split(":")
            if word != "udp"
        ]
        found.add((stack, *(f"{each:#04x}" for each in classes)))
    return found


@pytest.mark.rfc("5555-4.1.1-1", "5555-4.1.1-2")
async def test_dscp_and_ecn_in_every_format(tmp_path: Path) -> None:
    """EF and ECT(0) are seen outside, both ways; CE, set outside by a router, arrives inside."""
    ways = [("mn", HOME_ADDRESS, CN6), ("mn", IPV4_HOME_ADDRESS, CN4)]
    ways += [("cn", CN6, HOME_ADDRESS), ("cn", CN4, IPV4_HOME_ADDRESS)]

    def echoes(traffic_class: int) -> list[bool]:
        found = []
        for node, source, target in ways:
            words = ["ping", "-n", "-c", "1", "-W", "2", "-Q", str(traffic_class)]
            out = lab.exec(node, *words, "-I", source, target, check=False)
            found.append(" 1 received" in out)
        return found

    async with plain_lab(tmp_path) as lab:
        for place in ("private", "public", "six"):
            await lab.move(place)
            await check(lab, PLACES[place])
            assert all(echoes(0xBA))
        await lab.move("private")
        await check(lab, "tun")
        await lab._in_namespace("core", nat.congest)
        assert all(echoes(0xBA))
    for capture, outer in (
        ("nat-private", "ip:udp"),
        ("core-public", "ip"),
        ("core-six", "ipv6"),
    ):
        for way in ("mn", "cn"):
            here = f"ipv6.src == {HOME_ADDRESS} || ip.src == {IPV4_HOME_ADDRESS}"
            seen = traffic_classes(tmp_path, capture, here if way == "mn" else f"!({here})")
            assert {(f"{outer}:{inner}", "0xba", "0xba") for inner in ("ip", "ipv6")} <= seen, way
            # And probes without.
            assert {(f"{outer}:{inner}", "0x00", "0x00") for inner in ("ip", "ipv6")} <= seen, way
    arrived = traffic_classes(tmp_path, "cn-internet", f"ipv6.src == {HOME_ADDRESS}")
    assert {("ipv6", "0xba"), ("ipv6", "0xbb")} <= arrived, "marked with CE by the outer header"


def formats(out: Path) -> None:
    """What tshark saw between mobile node and home agent."""
    echo = "(icmp.type == 8 || icmpv6.type == 128)"
    seen = {
        capture: {
            row[0].removeprefix("eth:ethertype:")
            for row in tshark(out, capture, echo, "frame.protocols")
        }
        for capture in ("nat-private", "core-public", "core-six", "core-dual")
    }
    assert {_inner(each) for each in seen["nat-private"]} == {"ip:udp:ip", "ip:udp:ipv6"}
    assert {_inner(each) for each in seen["core-public"]} == {"ip:ip", "ip:ipv6"}
    for capture in ("core-six", "core-dual"):
        assert {_inner(each) for each in seen[capture]} == {"ipv6:ip", "ipv6:ipv6"}
    # RFC 5555 §4.2: nothing between the UDP header and the inner IP header.
    whole = tshark(out, "nat-private", f"udp && {echo}", "udp.length", "ip.len", "ipv6.plen")
    for udp_length, ip_lengths, payload_length in whole:
        inner = int(payload_length) + 40 if payload_length else int(ip_lengths.split(";")[1])
        assert int(udp_length) == 8 + inner
    # DSMIPv6's port; the NAT chose the other one, the same as for signalling.
    ports = tshark(out, "ha-backbone", f"udp.port == 4191 && {echo}", "udp.srcport", "udp.dstport")
    assert ports
    assert all("4191" in row for row in ports)
    signalling = tshark(out, "ha-backbone", "udp.dstport == 4191 && esp", "udp.srcport", "ip.src")
    behind = {port for port, address in signalling if address == "192.0.2.2"}
    payload = {source for source, destination in ports if destination == "4191"}
    assert payload <= behind
    # Every BU and BA in ESP nevertheless.
    for capture in seen:
        assert tshark(out, capture, "mip6.mhtype >= 5 && !esp", "frame.number") == []
        assert tshark(out, capture, "mip6.mhtype == 5 && esp", "frame.number")


def _inner(protocols: str) -> str:
    """The stack of IP and UDP headers."""
    words = [word for word in protocols.split(":") if word in ("ip", "ipv6", "udp", "esp")]
    # tshark's dissector for the port is called ip in both families.
    return ":".join(words).replace("udp:ip:ipv6", "udp:ipv6")


FORGE = """
import sys
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.sendrecv import send
outer, source, destination, data = sys.argv[1:]
inner = IPv6(src=source, dst=destination) / ICMPv6EchoRequest(data=data)
src, dst = outer.split(",")
if ":" in src:
    send(IPv6(src=src, dst=dst, nh=41) / inner, verbose=False)
else:
    send(IP(src=src, dst=dst, proto=41) / inner, verbose=False)
"""


@pytest.mark.parametrize("place", ["public", "six"])
async def test_the_home_agent_checks_sources_behind_kernel_tunnels(
    tmp_path: Path, place: str
) -> None:
    """RFC 6275 §10.4.5: of the mobile node's tunnel only the home address's packets come out,
    for a correspondent and for the home agent itself."""
    async with plain_lab(tmp_path) as lab:
        await lab.move(place)
        await check(lab, PLACES[place])
        outer = {"public": "198.18.0.100,203.0.113.2", "six": f"2001:db8:6::100,{HOME_AGENT}"}
        for source, data in (("2001:db8:100::77", "forged"), (HOME_ADDRESS, "honest")):
            for target in (CN6, HOME_AGENT):
                lab.exec("mn", "python3", "-c", FORGE, outer[place], source, target, data + "-echo")
        name = next(iter(routes(lab, "ha")))
        dropped = lab.exec("ha", "tc", "-s", "filter", "show", "dev", name, "ingress")
        assert "dropped 2," in dropped, dropped
    text = b"forged-echo".hex()
    where = f"frame contains {':'.join(text[i : i + 2] for i in range(0, len(text), 2))}"
    assert len(tshark(tmp_path, "ha-backbone", where, "frame.number")) == 2
    assert tshark(tmp_path, "cn-internet", where, "frame.number") == []
    where = where.replace(b"forged".hex(":"), b"honest".hex(":"))
    assert len(tshark(tmp_path, "cn-internet", f"{where} && icmpv6.type == 128", "frame.number"))


async def test_nothing_is_left_after_a_kill_and_a_restart_and_a_stop(tmp_path: Path) -> None:
    async with plain_lab(tmp_path) as lab:
        await lab.move("public")
        await check(lab, "sit")
        for node in ("ha", "mn"):
            await kill(lab, node)
            assert tunnels(lab, node) == ["sit"], "the kernel's tunnel outlives the daemon"
        await lab._start_daemons()
        await nothing_left(lab)
        await lab.move("six")
        await check(lab, "ip6tnl")
        for node in ("mn", "ha"):
            await lab.processes.stop(f"daemon of {node}")
        await nothing_left(lab)
        for node in ("mn", "ha"):
            assert not [link for link in lab.ip(node, "link") if link["ifname"][:5] == "dsmip"]


async def kill(lab: DaemonLab, node: str) -> None:
    process = lab.processes[f"daemon of {node}"]
    process.stopping = True  # expected
    process.signal(signal.SIGKILL)
    await process.ended


@pytest.mark.parametrize("mode", ["mobike", "k-bit"])
async def test_a_nats_other_port_for_ike_heals_without_payload_in_esp(
    tmp_path: Path, mode: str
) -> None:
    """No ESP tells of it: charons have to find out by dead peer detection (RFC 7296 §2.4), also
    where a rekeying has just made one forget what it knew of the NAT. Payload doesn't mind."""
    toml = PLAIN.replace('mobility = "mobike"', f'mobility = "{mode}"')
    async with daemon_lab(tmp_path, toml) as lab:
        await lab.move("private")
        for rekeyed in (False, True):
            if rekeyed:
                await until(lambda: exchanges(lab, "mn"), "an exchange begun by mn")
            before = await ike_port(lab)
            await lab.rebind(Rebind(node="nat", port=IKE_NATT_PORT))
            began = time.monotonic()

            async def followed(before: int = before) -> bool:
                return await ike_port(lab) not in (0, before)

            # With MOBIKE first the home agent gives the IKE_SA up, then the mobile node.
            await until(followed, "the home agent's IKE follows", 2 * DPD_S + ESTABLISHED_S)
            print(f"{mode}, rekeyed {rekeyed}: followed after {time.monotonic() - began:.1f} s")
            for node in ("mn", "ha"):
                await until(partial(exchanges, lab, node), f"an exchange begun by {node}")
            await check(lab, "tun")
            await lab.move("private")  # a binding update, acknowledged


async def exchanges(lab: DaemonLab, node: str) -> bool:
    return await lab.exchange(node, "mn") == ""


async def ike_port(lab: DaemonLab) -> int:
    """The mobile node's as the home agent's newest IKE_SA has it; 0: there is none."""
    sa = await ViciDriver(lab.nodes["ha"].files.vici_socket).ike_sa("mn")
    return sa.remote_port if sa is not None else 0
