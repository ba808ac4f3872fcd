"""The mobility modes of RFC 5555 §5.1 with real charons: after each move IKE exchanges work from
both ends, both SADs and both charons agree, and data flows in both families."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from daemon_lab import LAB, daemon_lab, tshark
from daemon_lab import until as until_true
from mobility_lab import (
    CORRESPONDENT,
    CORRESPONDENT4,
    HOME,
    HOME4,
    MODES,
    NAT,
    PUBLIC,
    mobility_lab,
    until,
)

from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import IkeSa

pytestmark = pytest.mark.kernel


@pytest.mark.rfc("5555-5.1-3", "5555-5.1-4", "5555-5.1-5", "5555-5.1-6")
@pytest.mark.parametrize("mode", MODES)
async def test_moves(tmp_path: Path, mode: str) -> None:
    """Behind the NAT, to the public network, back, and another port of the same NAT."""
    async with mobility_lab(tmp_path / "out", mode) as lab:
        for network in ("visited-a", "visited-b", "visited-a"):
            await lab.move(network)
            await lab.placed()
            await lab.data_flows()
            await lab.exchanges()
            await lab.data_flows()
            await lab.agree()
            await lab.placed()
        before = (await lab.ike("ha")).remote_port
        lab.rebind()

        async def followed() -> bool:
            return (await lab.ike("ha")).remote_port != before

        await until(followed, "the home agent's IKE_SA follows to the NAT's new port", 20)
        await lab.data_flows()
        await lab.exchanges()
        await lab.placed()
        await lab.agree()
    lab.nothing_in_clear()
    rows = lab.captured("ha-backbone", "isakmp", "ip.src", "udp.dstport", "isakmp.exchangetype")
    assert {row[1] for row in rows if row[0] in (NAT, PUBLIC)} == {"4500"}
    initial = [row for row in rows if row[0] in (NAT, PUBLIC) and row[2] == "34"]
    # One IKE_SA for good, unless the mode is to make a new one for each of the two moves.
    assert len(initial) == (3 if mode == "renegotiate" else 1)


async def only(driver: ViciDriver) -> IkeSa | None:
    sas = await driver.list_sas()
    return sas[0] if len(sas) == 1 and sas[0].established else None


@pytest.mark.parametrize("mode", ["k-bit", "renegotiate"])
async def test_families_without_mobike(tmp_path: Path, mode: str) -> None:
    """IPv6, IPv4 behind a NAT, IPv6 again: an IKE_SA keeps its family, so there is a new one."""
    toml = LAB.replace('mobility = "mobike"', f'mobility = "{mode}"')
    async with daemon_lab(tmp_path, toml) as lab:
        previous = ""
        for network, address, seen in (
            ("six", "2001:db8:6::100", "2001:db8:6::100"),
            ("private", "10.0.0.100", "192.0.2.2"),
            ("dual", "2001:db8:d::100", "2001:db8:d::100"),
        ):
            await lab.move(network)
            if previous:
                lab.leave("mn", previous)
            previous = network
            binding = await lab.binding("ha")
            assert binding is not None
            assert binding["care_of_address"] == address
            await until_true(lambda: lab.reaches("mn", HOME, CORRESPONDENT), "IPv6 payload")
            await until_true(lambda: lab.reaches("mn", HOME4, CORRESPONDENT4), "IPv4 payload")
            driver = ViciDriver(lab.nodes["mn"].files.vici_socket)
            sa = await until_true(partial(only, driver), "a single IKE_SA", 10)
            before, after = await driver.probe_exchange(sa.name)
            assert before.uniqueid != after.uniqueid
            # The home agent may keep an IKE_SA of the other family: no way was left to delete it.
            found = await ViciDriver(lab.nodes["ha"].files.vici_socket).list_sas()
            assert seen in {str(sa.remote_host) for sa in found if sa.established}
    for capture in ("core-six", "core-dual", "nat-private"):
        clear = f"(ipv6.addr == {HOME} || ip.addr == {HOME4}) && !esp"
        assert tshark(tmp_path, capture, clear, "frame.number") == []
