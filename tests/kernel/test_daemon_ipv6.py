"""IPv6 care-of addresses with real daemons, real charons and kernel ESP."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_lab import (
    HOME_ADDRESS,
    HOME_AGENT,
    IPV4_HOME_ADDRESS,
    DaemonLab,
    daemon_lab,
    tshark,
    until,
)

CN6, CN4 = "2001:db8:0:2::200", "192.0.2.200"


async def check(lab: DaemonLab, care_of_address: str, outer_address: str | None) -> None:
    """Both ends hold that binding, and payload of both families gets through."""
    for node in ("ha", "mn"):
        binding = await lab.binding(node)
        assert binding is not None
        assert binding["care_of_address"] == care_of_address
    binding = await lab.binding("ha")
    assert binding is not None
    assert binding["outer_address"] == outer_address
    await until(lambda: lab.reaches("mn", HOME_ADDRESS, CN6), "IPv6 payload")
    await until(lambda: lab.reaches("mn", IPV4_HOME_ADDRESS, CN4), "IPv4 payload")
    # What the home agent sends payload to, by the kernel's own account.
    where = outer_address or care_of_address
    template = lab.exec("ha", "ip", "xfrm", "policy", "list", "dst", f"{HOME_ADDRESS}/128")
    assert f"dst {where}\n" in template


@pytest.mark.rfc("5555-4.4.1-1")
@pytest.mark.parametrize("headers", ["kernel", "own"])
async def test_a_node_moves_between_ipv6_and_ipv4_and_back(tmp_path: Path, headers: str) -> None:
    """Native, behind a NAT, and native again; tshark says what was on the wire."""
    setting = {"native_signalling": headers}
    async with daemon_lab(tmp_path, mn=setting, ha=setting) as lab:
        await lab.move("six")
        await check(lab, "2001:db8:6::100", None)
        await lab.move("private")
        await check(lab, "10.0.0.100", "192.0.2.2")
        await lab.move("dual")
        await check(lab, "2001:db8:d::100", None)
        await lab.command("mn", "deregister")
        assert await lab.binding() is None
    updates = tshark(
        tmp_path, "ha-backbone", "mip6.mhtype == 5 && ipv6.dstopts && !udp",
        "ipv6.src", "ipv6.opt.mipv6.home_address", "esp.spi", "mip6.bu.k_flag",
    )  # fmt: skip
    assert {row[0].split(";")[0] for row in updates} == {"2001:db8:6::100", "2001:db8:d::100"}
    assert all(row[1] == HOME_ADDRESS and row[2] for row in updates)
    answers = tshark(
        tmp_path, "ha-backbone", "mip6.mhtype == 6 && ipv6.routing && !udp",
        "ipv6.src", "ipv6.routing.type", "ipv6.routing.mipv6.home_address", "esp.spi",
    )  # fmt: skip
    assert len(answers) >= 2
    for source, kind, home_address, spi in answers:
        assert source.split(";")[0] == HOME_AGENT
        assert (kind, home_address) == ("2", HOME_ADDRESS)
        assert spi
    # Nothing of the mobile node's in clear. (Its own captures show packets after ESP, too.)
    for capture in ("core-six", "core-dual", "nat-private"):
        clear = f"(ipv6.addr == {HOME_ADDRESS} || ip.addr == {IPV4_HOME_ADDRESS}) && !esp"
        assert tshark(tmp_path, capture, clear, "frame.number", "frame.protocols") == []
        assert tshark(tmp_path, capture, "esp", "frame.number")


@pytest.mark.rfc("5555-4.4.1-2", "5555-4.4.1-2a", "5555-4.4.1-3")
async def test_ipv6_that_is_silently_broken_is_given_up_for_ipv4(tmp_path: Path) -> None:
    """RFC 5555 §4.4.1: three binding updates go unanswered, then the IPv4 address is tried."""
    async with daemon_lab(tmp_path) as lab:
        await lab.move("six")
        # In the network with both families, IPv6 gets no further than the router.
        lab.exec("core", "ip", "-6", "rule", "add", "iif", "dual", "blackhole", "pref", "10")
        await lab.move("dual")
        await check(lab, "198.51.100.100", "198.51.100.100")
        assert await lab.counter("mn", "sent.binding_update") >= 1 + 3 + 1
