"""The home link while a mobile node is away, and its return, with real daemons and neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_lab import HOME_ADDRESS, IPV4_HOME_ADDRESS, DaemonLab, daemon_lab, tshark, until

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ike.inventory import IkeSettings
from dsmip_ipsec.ike.vici_driver import ViciDriver

HA = {"home_link": "home"}
MN = {"home_prefix": "2001:db8:100::/64", "ipv4_home_prefix_length": 25}


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


@pytest.mark.rfc(
    "6275-11.5.5-1", "6275-11.5.5-3", "6275-11.5.5-4", "6275-11.5.5-13", "6275-11.5.5-17"
)
async def test_a_node_returns_home_and_leaves_again(tmp_path: Path) -> None:
    async with daemon_lab(tmp_path, ha=HA, mn=MN) as lab:
        lab.exec("mn", "ip", "link", "set", "home", "down")
        await lab.move("private")
        assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
        assert lab.reaches("neighbour", "203.0.113.130", IPV4_HOME_ADDRESS)
        lab.exec("mn", "ip", "link", "set", "home", "up")
        await lab.command("mn", "return_home", interface="home")
        assert await lab.binding("ha") is None
        assert await lab.binding("mn") is None
        # The neighbours have learnt it without asking.
        await until(lambda: knows(lab, HOME_ADDRESS) == mac(lab, "mn"), "advertised")
        await until(lambda: knows(lab, IPV4_HOME_ADDRESS) == mac(lab, "mn"), "told by ARP")
        assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
        assert lab.reaches("neighbour", "203.0.113.130", IPV4_HOME_ADDRESS)
        assert "priority 5555" not in lab.exec("mn", "ip", "xfrm", "policy")
        assert lab.ip("ha", "-6", "neigh", "show", "proxy") == []
        # And away again.
        await lab.move("six")
        lab.exec("mn", "ip", "link", "set", "home", "down")
        await until(lambda: knows(lab, HOME_ADDRESS) == mac(lab, "ha"), "advertised")
        assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
    # RFC 5555 §4.4.2.1: over IPv6, under ESP, without a home address option.
    updates = tshark(
        tmp_path, "ha-home", "mip6.mhtype == 5 && esp",
        "ipv6.src", "ipv6.dst", "mip6.bu.lifetime", "ipv6.opt.mipv6.home_address",
    )  # fmt: skip
    assert updates
    for source, destination, lifetime, option in updates:
        assert (source, destination) == (HOME_ADDRESS, "2001:db8:100::1")
        assert (lifetime, option) == ("0", "")


@pytest.mark.parametrize("network", ["six", "private"])
async def test_a_node_returns_home_from_a_network_that_is_gone(
    tmp_path: Path, network: str
) -> None:
    """Its DELETE has no way to the home agent, which would keep IKE_SA and SAs until DPD."""
    async with daemon_lab(tmp_path, ha=HA, mn=MN) as lab:
        lab.exec("mn", "ip", "link", "set", "home", "down")
        await lab.move(network)
        lab.leave("mn", network)
        lab.exec("mn", "ip", "link", "set", "home", "up")
        await lab.command("mn", "return_home", interface="home")
        assert await lab.binding("ha") is None

        async def clean() -> bool:
            ikes = await ViciDriver(lab.nodes["ha"].files.vici_socket).list_sas()
            return not ikes and not await lab.observers["ha"].associations()

        # Less than DPD's delay, which would have to pass before anybody was missed.
        await until(clean, "no IKE_SA and no SA of a node at home", IkeSettings().dpd_delay)
        await until(lambda: "priority 5555" not in lab.exec("ha", "ip", "xfrm", "policy"), "clean")
        assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
