"""The home link while a mobile node is away, and its return, with real daemons and neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_lab import HOME_ADDRESS, IPV4_HOME_ADDRESS, DaemonLab, daemon_lab, until

from dsmip_ipsec.errors import DsmipError

HA = {"home_link": "home"}


def knows(lab: DaemonLab, address: str) -> str:
    """The link-layer address that the neighbour on the home link has for ``address``."""
    entries = lab.ip("neighbour", "neigh", "show", address, "dev", "home")
    return str(entries[0].get("lladdr", "")) if entries else ""


def mac(lab: DaemonLab, node: str) -> str:
    return str(lab.ip(node, "link", "show", "dev", "home")[0]["address"])


@pytest.mark.rfc("6275-10.4.1-1")
async def test_neighbours_on_the_home_link_reach_a_node_that_is_away(tmp_path: Path) -> None:
    async with daemon_lab(tmp_path, ha=HA) as lab:
        lab.exec("mn", "ip", "link", "set", "home", "down")  # it is away
        # Until then the neighbour has the mobile node's own link-layer address, as from yesterday.
        for address in (HOME_ADDRESS, IPV4_HOME_ADDRESS):
            lab.exec(
                "neighbour", "ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:99",
                "nud", "stale", "dev", "home",
            )  # fmt: skip
        await lab.move("six")
        # The unsolicited advertisement and the gratuitous ARP have overridden it.
        await until(lambda: knows(lab, HOME_ADDRESS) == mac(lab, "ha"), "advertised")
        await until(lambda: knows(lab, IPV4_HOME_ADDRESS) == mac(lab, "ha"), "told by ARP")
        assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
        assert lab.reaches("neighbour", "203.0.113.130", IPV4_HOME_ADDRESS)
        # And the home agent answers who asks anew.
        lab.exec("neighbour", "ip", "neigh", "flush", "dev", "home")
        assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
        assert lab.reaches("neighbour", "203.0.113.130", IPV4_HOME_ADDRESS)
        await lab.command("mn", "deregister")
        assert lab.ip("ha", "neigh", "show", "proxy") == []
        assert lab.ip("ha", "-6", "neigh", "show", "proxy") == []
        assert "dsmip0" not in lab.exec("ha", "ip", "-6", "route", "show", HOME_ADDRESS)
        lab.exec("neighbour", "ip", "neigh", "flush", "dev", "home")
        assert not lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS, 1)


@pytest.mark.rfc("6275-10.3.1-14", "6275-10.3.1-15")
async def test_a_home_address_that_somebody_has_is_refused(tmp_path: Path) -> None:
    """Status 134: the neighbour has taken the home address."""
    async with daemon_lab(tmp_path, ha=HA) as lab:
        lab.exec("neighbour", "ip", "addr", "add", f"{HOME_ADDRESS}/64", "dev", "home", "nodad")
        with pytest.raises(DsmipError):
            await lab.move("six")
        assert await lab.binding() is None
        assert await lab.counter("ha", "answered.134") >= 1
        assert (await lab.observers["mn"].status())["state"] == "abandoned"
