"""Dynamic home agent address discovery between a mobile node and a home agent's daemon, over three
links; tshark says what was on the wire."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from daemon_lab import HOME_AGENT, DaemonLab, daemon_lab, tshark, until

PREFIX = "2001:db8:100::/64"
ANYCAST = "2001:db8:100:0:fdff:ffff:ffff:fffe"  # RFC 2526 §2
CARE_OF_ADDRESS = "2001:db8:6::100"
# Packet by packet; the fields of both messages.
ASKED = "ipv6.src", "ipv6.dst", "icmpv6.code", "icmpv6.mip6.identifier"
ANSWERED = *ASKED, "icmpv6.mip6.home_agent_address"


# Another home agent of the home link, as scapy writes it.
OTHER = "2001:db8:100::2"
ADVERTISE = f"""
from scapy.all import *
send(
    IPv6(src="fe80::2", dst="ff02::1", hlim=255)
    / ICMPv6ND_RA(H=1, routerlifetime=0)
    / ICMPv6NDOptPrefixInfo(prefixlen=64, prefix="{OTHER}", R=1, L=1, A=0, validlifetime=3600)
    / ICMPv6NDOptHAInfo(pref=PREFERENCE, lifetime=LIFETIME),
    iface="home", verbose=False,
)
"""


def advertise(lab: DaemonLab, preference: int, lifetime: int) -> None:
    """It says so in a router advertisement."""
    lab.exec("neighbour", "ip", "addr", "replace", "fe80::2/64", "dev", "home", "nodad")
    # A signed number (RFC 6275 §7.4), for scapy an unsigned one.
    told = ADVERTISE.replace("PREFERENCE", str(preference & 0xFFFF)).replace(
        "LIFETIME", str(lifetime)
    )
    lab.exec("neighbour", sys.executable, "-c", told)


def found(lab: DaemonLab) -> list[str]:
    said = json.loads(discover(lab, PREFIX, "--from", CARE_OF_ADDRESS))
    return [each["home_agent"] for each in said["home_agents"]]


def lists(lab: DaemonLab, expected: list[str]) -> bool:
    return found(lab) == expected


def discover(lab: DaemonLab, *more: str, check: bool = True) -> str:
    words = (sys.executable, "-m", "dsmip_ipsec", "discover", "--json", "--home-prefix", *more)
    return lab.exec("mn", *words, check=check)


@pytest.mark.rfc("6275-8.4-8", "6275-8.4-9", "6275-10.5.1-4", "6275-10.5.1-5", "6275-10.5.1-6")
async def test_a_home_agent_is_found_by_its_prefix_alone(tmp_path: Path) -> None:
    ha = {"home_link": "home", "home_prefixes": [PREFIX]}
    async with daemon_lab(tmp_path, ha=ha) as lab:
        lab.exec("mn", "ip", "link", "set", "home", "down")  # it is away
        await lab.move("six")
        said = json.loads(discover(lab, PREFIX, "--from", CARE_OF_ADDRESS))
        assert said == {"home_agents": [{"home_agent": HOME_AGENT, "home_agent_ipv4": None}]}
        assert await lab.counter("ha", "discovery.answers") == 1
        assert await lab.counter("ha", "answered.icmp") == 1
        # Nobody else's: a prefix that the home agent doesn't have leads nowhere.
        said_nothing = discover(lab, "2001:db8:200::/64", "--timeout", "1", check=False)
        assert said_nothing == ""
        # An anycast address of the link as long as the daemon runs, no longer.
        anycast = lab.exec("ha", "cat", "/proc/net/anycast6")
        assert anycast.count("20010db801000000fdfffffffffffffe") == 1
        # Another one on the home link, preferred to ours (0), then less, then gone.
        for preference, lifetime, expected in (
            (10, 600, [OTHER, HOME_AGENT]),
            (-3, 600, [HOME_AGENT, OTHER]),
            (10, 0, [HOME_AGENT]),
        ):
            advertise(lab, preference, lifetime)
            await until(partial(lists, lab, expected), f"{expected}", 60)
        await lab.command("mn", "deregister")
    asked = tshark(tmp_path, "ha-backbone", f"icmpv6.type == 144 && ipv6.dst == {ANYCAST}", *ASKED)
    answered = tshark(tmp_path, "ha-backbone", "icmpv6.type == 145", *ANSWERED)
    assert {tuple(row[:3]) for row in asked} == {(CARE_OF_ADDRESS, ANYCAST, "0")}
    # Each is answered, by its identifier, from the home agent's unicast address.
    assert [row[:4] for row in answered] == [
        [HOME_AGENT, CARE_OF_ADDRESS, "0", row[3]] for row in asked
    ]
    listed = [row[4].split(";") for row in answered]
    # What is in which order was seen by who asked; a busy guest's capture may lack some.
    assert listed
    assert all(set(each) <= {HOME_AGENT, OTHER} for each in listed)


async def test_a_home_agent_that_stops_leaves_the_anycast_address(tmp_path: Path) -> None:
    async with daemon_lab(tmp_path, ha={"home_link": "home", "home_prefixes": [PREFIX]}) as lab:
        held = "20010db801000000fdfffffffffffffe"
        assert held in lab.exec("ha", "cat", "/proc/net/anycast6")
        await lab.processes.stop("daemon of ha")
        await until(lambda: held not in lab.exec("ha", "cat", "/proc/net/anycast6"), "left")
