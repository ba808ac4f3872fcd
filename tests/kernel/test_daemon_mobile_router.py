"""A mobile router with a network behind it (RFC 3963), by real daemons."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from daemon_lab import HOME_ADDRESS, LAB, DaemonLab, daemon_lab, tshark, until

PREFIX = "2001:db8:beef::/64"
INSIDE = "2001:db8:beef::1"
PASSENGER = "2001:db8:beef::100"
CN6 = "2001:db8:0:2::200"
# With a host of its own in that network.
CAR_LAB = LAB.replace(
    'ipv4_home_address = "203.0.113.200" }',
    'ipv4_home_address = "203.0.113.200", mobile_networks = ["car"] }\n'
    'passenger = { role = "mobile_network_node" }',
).replace(
    "[links.six.ends]",
    f'[links.car.ends]\nmn = ["{INSIDE}/64"]\npassenger = ["{PASSENGER}/64"]\n[links.six.ends]',
)


def ping(lab: DaemonLab, node: str, source: str, target: str, size: int = 56) -> str:
    """Two echo requests, in a hurry; what came of them."""
    words = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-s", str(size), "-I", source]
    return lab.exec(node, *words, target, check=False)


def to_and_fro(out: Path) -> int:
    """How often echo requests for the mobile network were on the home agent's link. (An error
    that quotes one has another type as well.)"""
    shown = f"ipv6.dst == {INSIDE} && icmpv6.type == 128 && !(icmpv6.type < 128) && !esp"
    return len(tshark(out, "core-backbone", shown, "frame.number"))


def in_clear(out: Path, size: int) -> int:
    """Echo requests of ``size`` from the mobile network on the visited link. (8: their header.)"""
    shown = f"ipv6.src == {PREFIX} && !esp && icmpv6.type == 128 && ipv6.plen == {size + 8}"
    return len(tshark(out, "core-six", shown, "frame.number"))


async def test_a_mobile_network_lives_while_its_router_is_away(tmp_path: Path) -> None:
    """What stays in the network isn't tunnelled: its hosts find their router, and it finds them.
    From the visited network nothing gets to them in clear, not even in the name of one of them."""
    spoofed = "2001:db8:beef::66"
    async with daemon_lab(tmp_path, CAR_LAB) as lab:
        await lab.move("six")
        await until(lambda: lab.reaches("passenger", PASSENGER, CN6), "through the tunnel")
        for _ in range(2):
            for node in ("passenger", "mn"):
                lab.exec(node, "ip", "-6", "neigh", "flush", "dev", "car")
            assert " 2 received" in ping(lab, "passenger", PASSENGER, INSIDE)
            assert " 2 received" in ping(lab, "passenger", PASSENGER, CN6)
        for node in ("passenger", "mn"):
            lab.exec(node, "ip", "-6", "neigh", "flush", "dev", "car")
        assert " 2 received" in ping(lab, "mn", INSIDE, PASSENGER)
        lab.exec("core", "ip", "addr", "add", f"{spoofed}/128", "dev", "lo")
        route = (f"{PASSENGER}/128", "via", "2001:db8:6::100", "dev", "six")
        lab.exec("core", "ip", "-6", "route", "add", *route)
        assert " 0 received" in ping(lab, "core", spoofed, PASSENGER)
    from_outside = f"ipv6.src == {spoofed} && icmpv6.type == 128"
    assert tshark(tmp_path, "core-six", from_outside, "frame.number")
    assert tshark(tmp_path, "mn-car", from_outside, "frame.number") == []


async def test_a_mobile_network_without_a_binding(tmp_path: Path) -> None:
    """In a visited network with a default route nothing leaves it in clear: neither before the
    first binding, nor after the last one, nor when the daemon is killed then. What stays in the
    mobile network passes. The home agent doesn't send back what comes for it, either."""
    states: list[str] = []

    def silent(lab: DaemonLab, state: str) -> None:
        states.append(state)
        for node, source in (("mn", INSIDE), ("passenger", PASSENGER)):
            assert " 0 received" in ping(lab, node, source, CN6), state
        # The visited network's own addresses are none of the main table's default routes.
        assert " 0 received" in ping(lab, "passenger", PASSENGER, "2001:db8:6::1"), state
        assert " 2 received" in ping(lab, "passenger", PASSENGER, INSIDE), state
        assert " 2 received" in ping(lab, "mn", INSIDE, PASSENGER), state
        assert " 0 received" in ping(lab, "cn", CN6, INSIDE), state

    async with daemon_lab(tmp_path, CAR_LAB) as lab:
        lab._addresses("mn", lab.attachment("mn", "six"), add=True)
        lab.exec("mn", "ip", "route", "add", "default", "via", "2001:db8:6::1", "dev", "six")
        await until(lambda: lab.reaches("mn", "2001:db8:6::100", CN6), "by the default route")
        silent(lab, "before")
        await lab.move("six")
        await until(lambda: lab.reaches("passenger", PASSENGER, CN6), "through the tunnel")
        await lab.command("mn", "deregister")
        silent(lab, "after")
        await lab.processes.stop("daemon of mn", first=signal.SIGKILL)
        await lab.processes.stop("daemon of ha", first=signal.SIGKILL)
        silent(lab, "killed")
        # The same would be seen, did it leave.
        for rule in json.loads(lab.exec("mn", "ip", "-6", "-j", "rule")):
            if rule.get("src") == "2001:db8:beef::":
                lab.exec("mn", "ip", "-6", "rule", "del", "priority", str(rule["priority"]),
                         "from", PREFIX)  # fmt: skip
        ping(lab, "passenger", PASSENGER, CN6, size=333)
    assert states == ["before", "after", "killed"]
    assert to_and_fro(tmp_path) == 2 * len(states)
    assert in_clear(tmp_path, 56) == 0
    assert in_clear(tmp_path, 333) == 2


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
async def test_the_network_behind_a_mobile_router(tmp_path: Path, explicit: bool) -> None:
    """It reaches a correspondent through the tunnel, in both kinds of networks; the home agent
    has the route while the binding stands. (Its host is played by an address of the router.)"""
    prefixes = {"mobile_network_prefixes": [PREFIX]}
    mn: dict[str, Any] = {"mobile_node": prefixes, "explicit_prefixes": explicit}
    async with daemon_lab(tmp_path, mn=mn, ha={"mobile_nodes": [prefixes]}) as lab:
        lab.exec("mn", "ip", "addr", "add", f"{INSIDE}/64", "dev", "lo", "nodad")
        # The correspondent's router knows that the prefix belongs to the home network.
        lab.exec("core", "ip", "-6", "route", "add", PREFIX, "via", "2001:db8:0:1::2")
        for link in ("six", "private"):
            await lab.move(link)
            assert "dsmip0" in lab.exec("ha", "ip", "-6", "route", "show", PREFIX)
            await until(lambda: lab.reaches("mn", INSIDE, CN6), f"out of the network, on {link}")
            await until(lambda: lab.reaches("cn", CN6, INSIDE), f"into the network, on {link}")
        await lab.command("mn", "deregister")
        assert "dsmip0" not in lab.exec("ha", "ip", "-6", "route", "show", PREFIX)
        assert await lab.binding() is None
    updates = tshark(
        tmp_path, "ha-backbone", "mip6.mhtype == 5 && mip6.bu.lifetime > 0",
        "ipv6.src", "mip6.nemo.bu.r_flag", "mip6.nemo.mnp.mnp",
    )  # fmt: skip
    assert updates
    for _, router, prefix in updates:
        assert router in ("1", "True")
        assert bool(prefix) is explicit
    clear = f"(ipv6.addr == {INSIDE} || ipv6.addr == {HOME_ADDRESS}) && !esp"
    for capture in ("core-six", "nat-private"):
        assert tshark(tmp_path, capture, clear, "frame.number") == []
