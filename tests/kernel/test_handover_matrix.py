"""Every ordered pair of places that a mobile node can be in, as one walk through a standing lab.

Places: home, an IPv6 network, a public IPv4 network, behind a NAT, and behind one that has just
forgotten its mappings (same address, other port); there are two networks of each kind but home.
After each move both SADs, both SPDs and both charons agree, IKE exchanges succeed from both ends,
and payload flows both ways in both families; and nothing of the mobile node's went in clear.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import pairwise, product
from pathlib import Path

import pytest
from agreement import Whereabouts, describe, disagreements, look
from daemon_lab import (
    HOME_ADDRESS,
    HOME_AGENT,
    IPV4_HOME_ADDRESS,
    DaemonLab,
    daemon_lab,
    tshark,
    until,
)

from dsmip_ipsec.lab.spec_models import Rebind

LAB = """
[lab]
name = "matrix"
[nodes]
mn = { role = "mobile_node", home_address = "2001:db8:100::100", ipv4_home_address = "203.0.113.200" }
core = { role = "router" }
cn = { role = "correspondent_node" }
neighbour = { role = "router" }
nat1 = { role = "nat", inside = "private1", outside = "access1", mapping = "random" }
nat2 = { role = "nat", inside = "private2", outside = "access2", mapping = "random" }
[nodes.ha]
role = "home_agent"
home_link = "home"
address = "2001:db8:100::1"
ipv4_address = "203.0.113.2"
[links.six1.ends]
core = ["2001:db8:6::1/64"]
mn = ["2001:db8:6::100/64"]
[links.six2.ends]
core = ["2001:db8:7::1/64"]
mn = ["2001:db8:7::100/64"]
[links.public1.ends]
core = ["198.51.100.1/25"]
mn = ["198.51.100.100/25"]
[links.public2.ends]
core = ["198.51.100.129/25"]
mn = ["198.51.100.200/25"]
[links.private1.ends]
nat1 = ["10.0.0.1/24"]
mn = ["10.0.0.100/24"]
[links.private2.ends]
nat2 = ["10.0.2.1/24"]
mn = ["10.0.2.100/24"]
[links.access1.ends]
core = ["192.0.2.1/30"]
nat1 = ["192.0.2.2/30"]
[links.access2.ends]
core = ["192.0.2.5/30"]
nat2 = ["192.0.2.6/30"]
[links.backbone]
delay_ms = 5
[links.backbone.ends]
core = ["203.0.113.1/30", "2001:db8:0:1::1/64"]
ha = ["203.0.113.2/30", "2001:db8:0:1::2/64"]
[links.home]
gateway = "ha"
[links.home.ends]
ha = ["203.0.113.129/25", "2001:db8:100::1/64"]
neighbour = ["203.0.113.130/25", "2001:db8:100::2/64"]
mn = []
[links.internet.ends]
core = ["192.0.2.129/25", "2001:db8:0:2::1/64"]
cn = ["192.0.2.200/25", "2001:db8:0:2::200/64"]
[mobility]
lifetime_s = 600
nat_refresh_time_s = 1
[ike]
auth = "psk"
mobility = "mobike"
[data]
protected = true
[flow]
interval_ms = 100
"""  # noqa: E501 - TOML
# The home agent behind a static NAPT (RFC 5555 §1.3, 3). It forwards no IPv4 prefix, so home
# addresses are IPv6's, and no mobile node is at home.
BEHIND_NAPT = (
    LAB.replace(', ipv4_home_address = "203.0.113.200"', "")
    .replace(
        'ipv4_address = "203.0.113.2"',
        """ipv4_address = "10.1.0.2"
outer_ipv4_address = "203.0.113.2"
[nodes.napt]
role = "nat"
inside = "dmz"
outside = "backbone"
mapping = "preserve"
forward_ports = [500, 4191, 4500]
forward_to = "ha"
[links.dmz.ends]
napt = ["10.1.0.1/24", "2001:db8:0:3::1/64"]
ha = ["10.1.0.2/24", "2001:db8:0:3::2/64"]""",
    )
    .replace('ha = ["203.0.113.2/30"', 'napt = ["203.0.113.2/30"')
    .replace('ha = ["203.0.113.129/25", "2001:db8:100::1/64"]', 'ha = ["2001:db8:100::1/64"]')
    .replace('neighbour = ["203.0.113.130/25", "2001:db8:100::2/64"]\nmn = []\n', "")
    .replace('neighbour = { role = "router" }\n', "")
    .replace('gateway = "ha"\n', "")
    .replace("[flow]\n", '[flow]\nfamilies = ["ipv6"]\n')
)
CORRESPONDENT = {6: "2001:db8:0:2::200", 4: "192.0.2.200"}
NEIGHBOUR = {6: "2001:db8:100::2", 4: "203.0.113.130"}
HOMES = {6: HOME_ADDRESS, 4: IPV4_HOME_ADDRESS}

HOME, SIX, PUBLIC, PRIVATE, REBOUND = "home", "six", "public", "private", "rebound"
# Each ordered pair of different places; of equal ones, too, where there are two networks.
PAIRS = {
    *((a, b) for a, b in product((HOME, SIX, PUBLIC, PRIVATE, REBOUND), repeat=2) if b != REBOUND),
    (PRIVATE, REBOUND),  # a NAT forgets while the mobile node is behind it
    (REBOUND, REBOUND),
} - {(HOME, HOME)}
WALK = (
    HOME, PUBLIC, PRIVATE, REBOUND, SIX, PRIVATE, SIX, SIX, PRIVATE, REBOUND, REBOUND, PUBLIC,
    HOME, PRIVATE, REBOUND, PRIVATE, PRIVATE, REBOUND, HOME, SIX, HOME, PRIVATE, PUBLIC, SIX,
    PUBLIC, PUBLIC, PRIVATE, HOME,
)  # fmt: skip
WALK_BEHIND_NAPT = (
    SIX, SIX, PRIVATE, PRIVATE, SIX, PRIVATE, REBOUND, REBOUND, PUBLIC, PUBLIC, PRIVATE, PUBLIC,
    SIX, PUBLIC, PRIVATE, REBOUND, PRIVATE, REBOUND, SIX,
)  # fmt: skip
# All mappings, those of DSMIPv6 alone, those of IKE and ESP alone.
FORGOTTEN = (None, 4191, 4500)
SEEN = {"private1": "192.0.2.2", "private2": "192.0.2.6"}
VISITED = (
    "core-six1",
    "core-six2",
    "core-public1",
    "core-public2",
    "nat1-private1",
    "nat2-private2",
)
MODES = ("mobike", "k-bit", "renegotiate")


@dataclass(slots=True)
class Walker:
    """The mobile node of a lab, on its way. ``link``: where it is."""

    lab: DaemonLab
    one_ike_sa: bool
    agent_own: str = "203.0.113.2"
    families: tuple[int, ...] = (6, 4)
    # An exchange begun by the mobile node comes first: what it mends is in strongswan-notes.
    exchange_first: bool = False
    link: str = ""
    rebinds: int = 0
    number: int = 1

    async def go(self, place: str) -> None:
        """To a network of that kind other than where it is, or let the NAT forget."""
        if place == REBOUND:
            await self.rebind()
            return
        previous = self.link
        self.link = place
        if place != HOME:
            self.number = 3 - self.number
            self.link = f"{place}{self.number}"
            await self.lab.move(self.link)
        else:
            await self.lab.attach("mn", HOME)
        if previous:
            self.lab.leave("mn", previous)

    async def rebind(self) -> None:
        """In turn all mappings, DSMIPv6's, and those of IKE and ESP; and see what the home agent
        then sees: other ports for what was forgotten only, and the same IKE_SA."""
        forgotten = FORGOTTEN[self.rebinds % len(FORGOTTEN)]
        self.rebinds += 1
        before = await self.ports()
        await self.lab.rebind(Rebind(node=f"nat{self.link[-1]}", port=forgotten))

        async def changed() -> bool:
            now = await self.ports()
            return (
                (now[0] != before[0]) == (forgotten in (None, 4191))
                and (now[1] != before[1]) == (forgotten in (None, 4500))
                and now[2] == before[2]
            )

        await until(changed, f"other ports, with port {forgotten or 'any'} forgotten", 25)

    async def ports(self) -> tuple[int | None, int, int]:
        """DSMIPv6's and IKE's port as the home agent sees them; its IKE_SA."""
        agent = await look(self.lab, "ha")
        outer = self.where().outer
        sa = max((sa for sa in agent.ike if sa.remote_host == outer), key=lambda sa: sa.uniqueid)
        (binding,) = agent.bindings
        return binding.outer_port, sa.remote_port, sa.uniqueid

    def where(self) -> Whereabouts:
        if self.link == HOME:
            nowhere = ip_address("::")
            return Whereabouts(nowhere, nowhere, nowhere, nowhere, False, home=True)
        attachment = self.lab.attachment("mn", self.link)
        care_of = (attachment.address(6) or attachment.addresses[0]).ip
        outer = ip_address(SEEN.get(self.link, str(care_of)))
        if care_of.version == 6:
            agent = ip_address(HOME_AGENT)
            return Whereabouts(care_of, outer, agent, agent, esp_in_udp=False)
        agent, own = ip_address("203.0.113.2"), ip_address(self.agent_own)
        return Whereabouts(care_of, outer, agent, own, outer != care_of or agent != own)

    async def settled(self) -> None:
        """All agree, and go on doing so after exchanges from both ends."""
        if self.exchange_first:
            await until(partial(self.exchange, "mn"), "an exchange begun by mn")
        await self.agree()
        if self.link != HOME:
            for node in ("mn", "ha"):
                await until(partial(self.exchange, node), f"an exchange begun by {node}")
            await self.agree()
        await self.data_flows()

    async def exchange(self, node: str) -> bool:
        # Refused while another one is under way (RFC 7296 §2.25).
        return await self.lab.exchange(node, "mn") == ""

    async def agree(self) -> None:
        found: list[str] = []
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            mobile, agent = await look(self.lab, "mn"), await look(self.lab, "ha")
            found = disagreements(
                mobile, agent, self.where(), protected=True, one_ike_sa=self.one_ike_sa
            )
            if not found:
                return
            await asyncio.sleep(0.05)
        text = [
            "they don't agree:",
            *found,
            "--- mn",
            *describe(mobile),
            "--- ha",
            *describe(agent),
        ]
        raise AssertionError("\n".join(text))

    async def data_flows(self) -> None:
        """Both ways in both families."""
        others = NEIGHBOUR if self.link == HOME else CORRESPONDENT
        far = "neighbour" if self.link == HOME else "cn"
        for family in self.families:
            home, other = HOMES[family], others[family]
            for node, source, target in (("mn", home, other), (far, other, home)):
                reaches = partial(self.lab.reaches, node, source, target, 1)
                await until(partial(asyncio.to_thread, reaches), f"{source} to {target}")


async def walk(walker: Walker, places: tuple[str, ...]) -> None:
    previous = "nowhere"
    for step, place in enumerate(places):
        started = time.monotonic()
        try:
            await walker.go(place)
            await walker.settled()
        except BaseException:
            print(f"step {step}: {previous} to {place}, at {walker.link}")
            raise
        print(f"step {step}: {walker.link} {place} {time.monotonic() - started:.1f} s")
        previous = place


def nothing_in_clear(out: Path) -> None:
    """Of the mobile node's, on every visited network."""
    whose = f"(ipv6.addr == {HOME_ADDRESS} || ip.addr == {IPV4_HOME_ADDRESS}) && !esp"
    for capture in VISITED:
        assert tshark(out, capture, whose, "frame.number", "frame.protocols") == []
        assert tshark(out, capture, "esp", "frame.number")


def test_the_walks_are_complete() -> None:
    assert set(pairwise(WALK)) >= PAIRS
    assert set(pairwise(WALK_BEHIND_NAPT)) >= {pair for pair in PAIRS if HOME not in pair}


@pytest.mark.parametrize("mode", MODES)
async def test_every_ordered_pair_of_places(tmp_path: Path, mode: str) -> None:
    toml = LAB.replace('mobility = "mobike"', f'mobility = "{mode}"')
    async with daemon_lab(tmp_path, toml) as lab:
        walker = Walker(lab, one_ike_sa=mode == "mobike")
        await walk(walker, WALK)
    nothing_in_clear(tmp_path)


@pytest.mark.parametrize("mode", ["mobike", "k-bit"])
async def test_every_ordered_pair_with_the_home_agent_behind_a_nat(
    tmp_path: Path, mode: str
) -> None:
    toml = BEHIND_NAPT.replace('mobility = "mobike"', f'mobility = "{mode}"')
    async with daemon_lab(tmp_path, toml) as lab:
        walker = Walker(
            lab,
            one_ike_sa=mode == "mobike",
            agent_own="10.1.0.2",
            families=(6,),
            exchange_first=mode == "k-bit",
        )
        await walk(walker, WALK_BEHIND_NAPT)
    nothing_in_clear(tmp_path)
