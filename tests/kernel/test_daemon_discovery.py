"""Dynamic home agent address discovery between a mobile node and a home agent's daemon, over three
links; tshark says what was on the wire."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from daemon_lab import HOME_AGENT, DaemonLab, daemon_lab, tshark, until

PREFIX = "2001:db8:100::/64"
ANYCAST = "2001:db8:100:0:fdff:ffff:ffff:fffe"  # RFC 2526 §2
CARE_OF_ADDRESS = "2001:db8:6::100"
# Packet by packet; the fields of both messages.
ASKED = "ipv6.src", "ipv6.dst", "icmpv6.code", "icmpv6.mip6.identifier"
ANSWERED = *ASKED, "icmpv6.mip6.home_agent_address"


def discover(lab: DaemonLab, *more: str, check: bool = True) -> str:
    words = (sys.executable, "-m", "dsmip_ipsec", "discover", "--json", "--home-prefix", *more)
    return lab.exec("mn", *words, check=check)


@pytest.mark.rfc("6275-10.5.1-4")
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
        await lab.command("mn", "deregister")
    asked = tshark(tmp_path, "ha-backbone", f"icmpv6.type == 144 && ipv6.dst == {ANYCAST}", *ASKED)
    answered = tshark(tmp_path, "ha-backbone", "icmpv6.type == 145", *ANSWERED)
    assert [row[:3] for row in asked] == [[CARE_OF_ADDRESS, ANYCAST, "0"]]
    assert answered == [[HOME_AGENT, CARE_OF_ADDRESS, "0", asked[0][3], HOME_AGENT]]


async def test_a_home_agent_that_stops_leaves_the_anycast_address(tmp_path: Path) -> None:
    async with daemon_lab(tmp_path, ha={"home_link": "home", "home_prefixes": [PREFIX]}) as lab:
        held = "20010db801000000fdfffffffffffffe"
        assert held in lab.exec("ha", "cat", "/proc/net/anycast6")
        await lab.processes.stop("daemon of ha")
        await until(lambda: held not in lab.exec("ha", "cat", "/proc/net/anycast6"), "left")
