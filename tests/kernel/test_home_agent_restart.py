"""The home agent's charon dies or is restarted under the load of several mobile nodes, each with
its own charon and daemon: all come back by themselves, and nothing of before is left."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

import pytest
from daemon_lab import DaemonLab, daemon_lab, tshark, until

from dsmip_ipsec.ike.inventory import IkeSettings
from dsmip_ipsec.ipsec.peering import numbered_reqids

pytestmark = pytest.mark.kernel

# In the order of their reqids: three behind one NAT, two with a public IPv4 address, one in IPv6.
NETWORKS = ("private", "private", "private", "public", "public", "six")
NODES = {f"mn{number}": network for number, network in enumerate(NETWORKS, 1)}
CORRESPONDENT = {6: "2001:db8:0:2::200", 4: "192.0.2.200"}
# The time in which a dead peer is noticed at the latest: quiet, then retransmissions.
DPD_S = IkeSettings().dpd_delay + IkeSettings().retransmission_time()


def home(node: str) -> dict[int, str]:
    number = 100 + int(node.removeprefix("mn"))
    return {6: f"2001:db8:100::{number}", 4: f"203.0.113.{number + 100}"}


def lab_file() -> str:
    """All nodes send and receive probes in both families all the time."""
    mobile = "".join(
        f'{node} = {{ role = "mobile_node", home_address = "{home(node)[6]}", '
        f'ipv4_home_address = "{home(node)[4]}" }}\n'
        for node in NODES
    )

    def ends(network: str, prefix: str) -> str:
        return "".join(
            f'{node} = ["{prefix.format(10 + n)}"]\n'
            for n, (node, where) in enumerate(NODES.items())
            if where == network
        )

    return f"""
[lab]
name = "many"
[nodes]
core = {{ role = "router" }}
cn = {{ role = "correspondent_node" }}
{mobile}
[nodes.nat]
role = "nat"
inside = "private"
outside = "access"
mapping = "random"
[nodes.ha]
role = "home_agent"
home_link = "home"
address = "2001:db8:100::1"
ipv4_address = "203.0.113.2"
[links.private.ends]
nat = ["10.0.0.1/24"]
{ends("private", "10.0.0.{}/24")}
[links.access.ends]
core = ["192.0.2.1/30"]
nat = ["192.0.2.2/30"]
[links.public.ends]
core = ["198.51.100.1/24"]
{ends("public", "198.51.100.{}/24")}
[links.six.ends]
core = ["2001:db8:6::1/64"]
{ends("six", "2001:db8:6::{}/64")}
[links.backbone]
delay_ms = 5
[links.backbone.ends]
core = ["203.0.113.1/30", "2001:db8:0:1::1/64"]
ha = ["203.0.113.2/30", "2001:db8:0:1::2/64"]
[links.home.ends]
ha = ["203.0.113.129/25", "2001:db8:100::1/64"]
[links.internet.ends]
core = ["192.0.2.129/25", "2001:db8:0:2::1/64"]
cn = ["192.0.2.200/25", "2001:db8:0:2::200/64"]
[mobility]
lifetime_s = 600
[ike]
auth = "psk"
mobility = "mobike"
[data]
protected = true
[capture]
links = ["private", "public", "six"]
[flow]
interval_ms = 100
nodes = [{", ".join(f'"{node}"' for node in NODES)}]
"""


async def reaches(lab: DaemonLab, node: str) -> bool:
    """One echo in each family."""
    for family in (6, 4):
        if not await asyncio.to_thread(
            lab.reaches, node, home(node)[family], CORRESPONDENT[family], 1
        ):
            return False
    return True


async def spis(lab: DaemonLab, node: str) -> set[tuple[int, str]]:
    return {(sa.spi, sa.mode.value) for sa in await lab.observers[node].associations()}


async def consistent(lab: DaemonLab) -> bool:
    """The home agent has the SAs of all mobile nodes and no others; each has one of each kind."""
    mobile = [await spis(lab, node) for node in NODES]
    found = await lab.observers["ha"].associations()
    for index in range(len(NODES)):
        ids = numbered_reqids(index)
        data = [sa for sa in found if sa.reqid == ids.data]
        signalling = [sa for sa in found if sa.reqid in ids and sa.mode.value == "transport"]
        if len(data) != 2 or len(signalling) != 2:
            return False
    return set().union(*mobile) == {(sa.spi, sa.mode.value) for sa in found}


async def back(lab: DaemonLab, node: str, old: set[tuple[int, str]]) -> bool:
    """Whether payload of ``node`` comes in at both ends, by SAs of after the restart."""
    new = {f"0x{spi:08x} {mode}" for spi, mode in await spis(lab, node) - old if mode == "tunnel"}
    for end in (node, "ha"):
        # By each data SA: what comes in is as good a proof as what goes out, at the other end.
        carried = [
            n["packets"] for sa, n in (await lab.observers[end].traffic()).items() if sa in new
        ]
        if len([packets for packets in carried if packets]) < 2:
            return False
    return True


async def describe(lab: DaemonLab, node: str) -> None:
    """For who has to find out why it isn't back."""
    for name in (node, "ha"):
        print(*(f"{name}: {sa}" for sa in await lab.observers[name].associations()), sep="\n")
        print(lab.exec(name, "ip", "xfrm", "policy", check=False))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_every_mobile_node_is_back_within_two_dpd_periods(
    tmp_path: Path, how: signal.Signals
) -> None:
    """SIGKILL: without a word to anyone. SIGTERM: charon takes leave of its peers."""
    async with daemon_lab(tmp_path, lab_file()) as lab:
        for node, network in NODES.items():
            await lab.move(network, node)
        for node in NODES:
            await until(partial(reaches, lab, node), f"payload of {node}")
        await until(lambda: consistent(lab), "the same SAs at all ends")
        old = await spis(lab, "ha")

        loop = asyncio.get_running_loop()
        began = loop.time()
        restart = asyncio.ensure_future(lab.restart_charon("ha", how))

        async def timed(node: str) -> float:
            try:
                await until(partial(back, lab, node, old), f"payload of {node}", 2 * DPD_S)
            except AssertionError:
                await describe(lab, node)
                raise
            return round(loop.time() - began, 1)

        times = await asyncio.gather(*map(timed, NODES))
        await restart
        print("back after", dict(zip(NODES, times, strict=True)))
        await until(lambda: consistent(lab), "no stale SA remains", 10)
        assert not old & await spis(lab, "ha")
        for node in NODES:
            assert not old & await spis(lab, node)
            await until(partial(reaches, lab, node), f"payload of {node}")
    homes = " || ".join(f"ipv6.addr == {home(n)[6]} || ip.addr == {home(n)[4]}" for n in NODES)
    for capture in ("nat-private", "core-public", "core-six"):
        assert tshark(tmp_path, capture, f"({homes}) && !esp", "frame.number") == [], capture
