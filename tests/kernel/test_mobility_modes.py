"""The mobility modes of RFC 5555 §5.1 with real charons: after each move IKE exchanges work from
both ends, both SADs and both charons agree, and data flows in both families."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from daemon_lab import LAB, DaemonLab, daemon_lab, tshark
from daemon_lab import until as until_true
from mobility_lab import (
    CORRESPONDENT,
    CORRESPONDENT4,
    HOME,
    HOME4,
    IDS,
    MODES,
    NAT,
    PUBLIC,
    mobility_lab,
    until,
)

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import IkeSa
from dsmip_ipsec.lab.spec_models import Block, Rebind

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


# Beside that: each kind of move that there is between IPv6, public IPv4 and NATs.
NETWORKS = (
    LAB[: LAB.index("[links.six.ends]")]
    + """
[nodes.nat2]
role = "nat"
inside = "wifi"
outside = "access2"
mapping = "random"
[links.six.ends]
core = ["2001:db8:6::1/64"]
mn = ["2001:db8:6::100/64"]
[links.seven.ends]
core = ["2001:db8:7::1/64"]
mn = ["2001:db8:7::100/64"]
[links.public.ends]
core = ["198.51.100.1/25"]
mn = ["198.51.100.100/25"]
[links.hotel.ends]
core = ["198.51.100.129/25"]
mn = ["198.51.100.200/25"]
[links.wifi.ends]
nat2 = ["10.1.0.1/24"]
mn = ["10.1.0.100/24"]
[links.access2.ends]
core = ["192.0.2.5/30"]
nat2 = ["192.0.2.6/30"]
"""
    + LAB[LAB.index("[links.private.ends]") :]
)
# Where each network's mobile node is, seen from the home agent.
SEEN = {
    "private": "192.0.2.2",
    "wifi": "192.0.2.6",
    "public": "198.51.100.100",
    "hotel": "198.51.100.200",
    "six": "2001:db8:6::100",
    "seven": "2001:db8:7::100",
}
WALK = (
    "private",
    "wifi",  # from one NAT to another
    "public",  # NAT to none
    "hotel",  # IPv4 to IPv4, without NAT
    "six",  # IPv4 to IPv6
    "seven",  # IPv6 to IPv6
    "private",  # IPv6 to a NAT
    "six",  # from behind a NAT to IPv6
    "public",  # IPv6 to IPv4, without NAT
    "private",  # no NAT to one
)
# Far less than DPD takes: a node that went without a word isn't missed that late.
TIDY_S = 8.0


async def alone(lab: DaemonLab, node: str) -> IkeSa | None:
    """The IKE_SA of a node, if it has one only and that is established."""
    sas = await ViciDriver(lab.nodes[node].files.vici_socket).list_sas()
    return sas[0] if len(sas) == 1 and sas[0].established else None


async def sad(lab: DaemonLab, node: str) -> list[tuple[int, int, str]]:
    found = await lab.observers[node].associations()
    return sorted((sa.spi, sa.reqid, sa.mode.value) for sa in found)


async def data_spis(lab: DaemonLab) -> set[int]:
    return {spi for spi, reqid, _ in await sad(lab, "ha") if reqid == IDS.data}


async def exchange(lab: DaemonLab, node: str) -> None:
    """One that ``node`` begins on its only IKE_SA, proved by a new IKE_SA's number."""
    driver = ViciDriver(lab.nodes[node].files.vici_socket)

    async def answered() -> bool:
        sa = await alone(lab, node)
        if sa is None:
            return False
        try:
            before, after = await driver.probe_exchange(sa.name, timeout=5)
        except DsmipError as error:
            # Refused while another rekeying is under way (RFC 7296 §2.25).
            if "rekeying failed" not in error.message:
                raise
            return False
        return before.uniqueid != after.uniqueid

    await until_true(answered, f"an exchange begun by {node}", TIDY_S)


async def all_is_well(lab: DaemonLab, network: str) -> None:
    """Data, one IKE_SA at both ends, where the node is, and alive; the same SAs, nothing left."""
    await until_true(lambda: lab.reaches("mn", HOME, CORRESPONDENT), f"{network}: IPv6 payload")
    await until_true(lambda: lab.reaches("mn", HOME4, CORRESPONDENT4), f"{network}: IPv4 payload")
    for node in ("mn", "ha"):
        await until_true(partial(alone, lab, node), f"{network}: one IKE_SA at {node}", TIDY_S)
    for node in ("mn", "ha"):
        await exchange(lab, node)
    ike = await until_true(partial(alone, lab, "ha"), f"{network}: one IKE_SA", TIDY_S)
    assert str(ike.remote_host) == SEEN[network], network

    async def agree() -> bool:
        ends = [await sad(lab, node) for node in ("mn", "ha")]
        data = [sa for sa in ends[0] if sa[1] == IDS.data]
        signalling = [sa for sa in ends[0] if sa[2] == "transport"]
        return ends[0] == ends[1] and len(data) == len(signalling) == 2

    await until_true(agree, f"{network}: the same SAs at both ends", TIDY_S)


@pytest.mark.rfc("5555-5.1-3", "5555-5.1-4", "5555-5.1-5", "5555-5.1-6")
@pytest.mark.parametrize("mode", MODES)
async def test_every_kind_of_move(tmp_path: Path, mode: str) -> None:
    """Each network is gone when the node is in the next one: nothing can be said from there."""
    toml = NETWORKS.replace('mobility = "mobike"', f'mobility = "{mode}"')
    async with daemon_lab(tmp_path, toml) as lab:
        previous = ""
        for network in WALK:
            await lab.move(network)
            if previous:
                lab.leave("mn", previous)
            previous = network
            await all_is_well(lab, network)
        ports = (await until_true(partial(alone, lab, "ha"), "one IKE_SA")).remote_port
        spis = await data_spis(lab)
        await lab.rebind(Rebind(node="nat"))

        async def followed() -> bool:
            ike = await alone(lab, "ha")
            return ike is not None and ike.remote_port != ports

        await until_true(followed, "the home agent follows to the NAT's new port", 20)
        await all_is_well(lab, "private")
        assert await data_spis(lab) == spis, "another port of the same NAT costs no CHILD_SA"
    named = f"(ipv6.addr == {HOME} || ip.addr == {HOME4}) && !esp"
    for capture in ("core-six", "core-seven", "core-public", "core-hotel", "nat-private"):
        assert tshark(tmp_path, capture, named, "frame.number") == [], capture


@pytest.mark.parametrize("mode", ["mobike", "k-bit"])
async def test_a_network_that_lets_no_ike_pass_is_told(tmp_path: Path, mode: str) -> None:
    """From a public network to a Wi-Fi that drops UDP port 4500, where the binding is made and the
    tunnel isn't: not a success, and not the end either."""
    toml = NETWORKS.replace('mobility = "mobike"', f'mobility = "{mode}"')
    impatient = {"handover_timeout_s": 5, "ike": {"timeout_s": 5}}
    async with daemon_lab(tmp_path, toml, mn=impatient) as lab:
        await lab.move("public")
        await all_is_well(lab, "public")
        block = Block(node="nat2", port=4500)
        await lab.block(block)
        with pytest.raises(DsmipError) as raised:
            await lab.move("wifi")
        assert "4500" in f"{raised.value.message} {raised.value.hint}"
        lab.leave("mn", "public")
        # It opens up: to come again is enough.
        await lab.block(block, lift=True)
        await lab.move("wifi")
        await all_is_well(lab, "wifi")
