"""What charon and the daemons go through, and come back from by themselves: rekeying, deletion,
restarts at either end. Payload never leaves in clear (captures), and no SA is left over."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from itertools import product
from pathlib import Path

import pytest
from mobility_lab import IDS, MODES, MobilityLab, mobility_lab, until

from dsmip_ipsec.ike.inventory import IkeSettings

pytestmark = pytest.mark.kernel

# The time in which a dead peer is noticed at the latest: quiet, then retransmissions.
DPD_S = IkeSettings().dpd_delay + IkeSettings().retransmission_time()


async def recovered(lab: MobilityLab, limit_s: float) -> float:
    """Seconds until payload passes again in both families; then everything is as it should be."""

    async def passes() -> bool:
        return all([await asyncio.to_thread(lab.ping, family) for family in (6, 4)])

    took = await until(passes, "data comes back", limit_s, lab.describe)
    await lab.agree()
    await lab.placed()
    await lab.rekey("mn")
    await lab.rekey("ha")
    return took


@pytest.mark.parametrize("mode", MODES)
async def test_home_agents_charon_is_killed_and_started(tmp_path: Path, mode: str) -> None:
    """Payload has to stop meanwhile; back within two DPD periods of the new charon's start."""
    async with mobility_lab(tmp_path / "out", mode) as lab:
        await lab.move("visited-a")
        await lab.data_flows()
        old = {sa.spi for sa in await lab.associations("ha")}
        await lab.kill("charon of ha")
        await lab.start_charon("ha")

        async def dropped() -> bool:
            return not old & {sa.spi for sa in await lab.associations("ha")}

        await until(dropped, "no SA of the old charon remains at the home agent", 10)
        await recovered(lab, 2 * DPD_S)
        assert not old & {sa.spi for sa in await lab.associations("mn")}
    lab.nothing_in_clear()


@pytest.mark.parametrize("mode", MODES)
async def test_mobile_nodes_charon_is_killed_and_started(tmp_path: Path, mode: str) -> None:
    async with mobility_lab(tmp_path / "out", mode) as lab:
        await lab.move("visited-a")
        await lab.move("visited-b")
        await lab.data_flows()
        await lab.kill("charon of mn")
        await lab.start_charon("mn")
        await recovered(lab, 10)
    lab.nothing_in_clear()


async def test_home_agents_daemon_is_killed_and_started(tmp_path: Path) -> None:
    """Its bindings are lost and its mirrors would begin anew: the mobile node is told by IKE."""
    async with mobility_lab(tmp_path / "out") as lab:
        await lab.move("visited-a")
        await lab.data_flows()
        mirrors = {sa.spi for sa in await lab.associations("ha") if sa.reqid == IDS.mirror}
        await lab.kill("daemon of ha")
        await lab.start_daemon("ha")
        await recovered(lab, 10)
        assert not mirrors & {sa.spi for sa in await lab.associations("ha")}
    lab.nothing_in_clear()


async def test_home_agent_reboots(tmp_path: Path) -> None:
    async with mobility_lab(tmp_path / "out") as lab:
        await lab.move("visited-a")
        await lab.data_flows()
        for name in ("daemon of ha", "charon of ha"):
            await lab.kill(name)
        await lab.forget("ha")
        await lab.start_charon("ha")
        await lab.start_daemon("ha")
        await recovered(lab, 2 * DPD_S)
    lab.nothing_in_clear()


async def test_mobile_nodes_daemon_is_killed_and_started(tmp_path: Path) -> None:
    """Its successor doesn't go on with mirrors whose sequence numbers would begin anew."""
    async with mobility_lab(tmp_path / "out") as lab:
        await lab.move("visited-a")
        await lab.data_flows()
        await lab.kill("daemon of mn")
        await lab.start_daemon("mn")
        await lab.standing.attach("mn", "visited-a")
        await recovered(lab, 5)
    lab.nothing_in_clear()


async def test_rekeying_from_both_ends_at_once(tmp_path: Path) -> None:
    """RFC 7296 §2.8.1: the duplicates go; payload flows on, and nothing is left over."""
    async with mobility_lab(tmp_path / "out", "k-bit") as lab:
        await lab.move("visited-a")
        for child in ("data", "signalling-tunnel", None):
            await asyncio.gather(
                *(lab.driver(node).rekey("mn", child, timeout=8) for node in ("mn", "ha")),
                return_exceptions=True,  # who loses may be told so
            )
            await lab.data_flows()
            await lab.agree()
    lab.nothing_in_clear()


@pytest.mark.parametrize("node", ["mn", "ha"])
async def test_reauthentication_and_deletion(tmp_path: Path, node: str) -> None:
    """By command at either end; whatever is deleted is established again."""
    async with mobility_lab(tmp_path / "out", "renegotiate") as lab:
        await lab.move("visited-a")
        old = {sa.spi for sa in await lab.associations(node)}
        if node == "mn":
            await lab.driver(node).reauthenticate("mn")
            await lab.agree()
            assert not old & {sa.spi for sa in await lab.associations(node)}
        for child in ("data", "signalling-tunnel", None):
            await until(lambda: lab.single(node), "the rekeyed IKE_SA is gone")
            await lab.driver(node).terminate("mn", child)
            await recovered(lab, 10)
    lab.nothing_in_clear()


@pytest.mark.parametrize(("node", "mode"), [("mn", "k-bit"), ("ha", "mobike")])
async def test_an_sa_deleted_behind_charons_back(tmp_path: Path, node: str, mode: str) -> None:
    """charon doesn't notice; that end's daemon does, and there is another CHILD_SA soon."""
    async with mobility_lab(tmp_path / "out", mode) as lab:
        await lab.move("visited-a")
        await lab.move("visited-b")
        for purpose, direction in product((IDS.data, IDS.signalling), (0, 1)):
            old = [sa for sa in await lab.associations(node) if sa.reqid == purpose]
            lost = sorted(old, key=lambda sa: str(sa.source))[direction]
            which = f"dst {lost.destination} proto esp spi {lost.spi:#x}"
            command = f"ip -n {lab.namespace(node)} xfrm state delete {which}"
            subprocess.run(command.split(), check=True)

            async def replaced(old: frozenset[int] = frozenset(sa.spi for sa in old)) -> bool:
                found = [await lab.associations(end) for end in ("mn", "ha")]
                return not any(sa.spi in old for sas in found for sa in sas)

            await until(replaced, f"another CHILD_SA for {lost}", 10, lab.describe)
            await recovered(lab, 5)
    lab.nothing_in_clear()


async def test_a_transport_child_sa_is_replaced_behind_a_nat(tmp_path: Path) -> None:
    """MOBIKE: made without NAT, charon couldn't rekey it behind one."""
    async with mobility_lab(tmp_path / "out") as lab:
        await lab.move("visited-b")
        assert "signalling" in {child.name for child in (await lab.ike("mn")).children}
        await lab.move("visited-a")
        await lab.agree()
        assert "signalling" not in {child.name for child in (await lab.ike("mn")).children}
        await lab.rekey("mn", "signalling")
        await lab.rekey("ha", "signalling")
        await lab.agree()
        await lab.move("visited-b")  # binding updates pass by the new SAs
        await lab.data_flows()


async def test_a_hanging_charon_doesnt_hang_the_daemons(tmp_path: Path) -> None:
    """Stopped, not ended: the daemon still answers, and goes on when charon does."""
    async with mobility_lab(tmp_path / "out", "k-bit") as lab:
        await lab.move("visited-a")
        process = lab.standing.processes["charon of mn"]
        process.signal(signal.SIGSTOP)
        try:
            for _ in range(5):
                await lab.standing.observers["mn"].status()
            assert await asyncio.to_thread(lab.ping, 6)
        finally:
            process.signal(signal.SIGCONT)
        await lab.move("visited-b")
        await recovered(lab, 5)
