"""A mobile router with a network behind it (RFC 3963), by real daemons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from daemon_lab import HOME_ADDRESS, daemon_lab, tshark, until

PREFIX = "2001:db8:beef::/64"
INSIDE = "2001:db8:beef::1"
CN6 = "2001:db8:0:2::200"


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
        assert lab.exec("ha", "ip", "-6", "route", "show", PREFIX) == ""
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
