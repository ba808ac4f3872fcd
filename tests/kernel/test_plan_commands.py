"""`dsmip-ipsec plan` and the kernel: iproute2 takes its commands, and a live daemon is read."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from home_agent_bench import AGENT, AGENT4, Bench, home_agent
from xfrm_netns import fresh_netns, ip_objects

from dsmip_ipsec.cli.situation_file import SituationFile
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.plan import plan
from dsmip_ipsec.ipsec.plan_commands import as_ip_xfrm
from dsmip_ipsec.ipsec.situation import Situation, handover, negotiated_at, state_of
from dsmip_ipsec.kernel.reconciler import Reconciler

NAT = {"care_of_address": "10.0.0.100", "nat_detected": True}
PLACES: dict[str, dict[str, Any]] = {
    "ipv6": {"care_of_address": "2001:db8:2::100"},
    "ipv6 2": {"care_of_address": "2001:db8:3::100"},
    "public": {"care_of_address": "198.51.100.100"},
    "nat": {**NAT, "outer": "192.0.2.2:40191", "esp": "192.0.2.2:40450"},
    "nat rebound": {**NAT, "outer": "192.0.2.2:50191", "esp": "192.0.2.2:50450"},
}
MOVES = [
    ("ipv6", "ipv6 2"), ("ipv6", "public"), ("public", "nat"), ("nat", "nat rebound"),
    ("nat", "ipv6"), ("nat", None),
]  # fmt: skip


def situation(role: str, place: str | None) -> Situation:
    return SituationFile.model_validate(
        {
            "role": role, "mobike": False, "home_address": "2001:db8:100::100",
            "ipv4_home_address": "203.0.113.200", "home_agent": "2001:db8:100::1",
            "home_agent_ipv4": "203.0.113.2", "prefix_discovery": True,
            "mobile_network_prefixes": ["2001:db8:100:1::/64"],
            **({} if place is None else {"binding": PLACES[place]}),
        }
    ).situation()  # fmt: skip


def run(commands: str) -> None:
    """In this namespace, with keys filled in."""
    keys = re.sub(
        r"\$(KEY_\w+)", lambda m: f"0x{hashlib.sha256(m[1].encode()).hexdigest()[:40]}", commands
    )
    subprocess.run(["sh", "-e", "-c", keys], check=True, capture_output=True, text=True)


def kernel() -> list[str]:
    """Policies and SAs as iproute2 prints them, without what is counted."""
    texts = ip_objects("xfrm policy") + ip_objects("xfrm state")
    return sorted(
        " ".join(re.sub(r"\n\s+(anti-replay context|replay-window).*", "", text).split())
        for text in texts
    )


@pytest.mark.parametrize("role", ["mobile_node", "home_agent"])
@pytest.mark.parametrize(("before", "after"), MOVES)
async def test_the_commands_do_what_the_reconciler_does(
    role: str, before: str, after: str | None
) -> None:
    old, new = situation(role, before), situation(role, after)
    assert old.binding is not None
    sas = negotiated_at(old.peering, old.binding, old.esp_care_of)
    of_ike = as_ip_xfrm(plan(DesiredState(), DesiredState(associations=tuple(sas))))
    found: list[list[str]] = []
    with fresh_netns():
        run(of_ike)
        for operations in (handover(None, old), handover(old, new)):
            run(as_ip_xfrm(operations))
            found.append(kernel())
    with fresh_netns():
        run(of_ike)
        now = [old]
        reconciler = Reconciler(
            lambda _, negotiated: state_of(now[0], list(negotiated)), (old.peering.reqids,)
        )
        await reconciler.open()
        assert kernel() == found[0]
        now[0] = new
        await reconciler.reconcile()
        assert kernel() == found[1]
        await reconciler.close()


def config(directory: Path, bench: Bench) -> Path:
    """The running bench's configuration, as a file."""
    nodes = "".join(
        f'[[mobile_nodes]]\nhome_address = "{node.home_address}"\n'
        f"signalling_reqid = {node.ids.signalling}\nmirror_reqid = {node.ids.mirror}\n"
        f"data_reqid = {node.ids.data}\n"
        for node in bench.nodes
    )
    path = directory / "ha.toml"
    path.write_text(
        f'control_socket = "{directory / "ha.sock"}"\n{nodes}'
        f'[home_agent]\nhome_agent = "{AGENT}"\nhome_agent_ipv4 = "{AGENT4}"\n'
    )
    tomllib.loads(path.read_text())
    return path


async def dsmip_plan(*arguments: object) -> tuple[int, str, str]:
    """(status, standard output, standard error) of the command in this namespace."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dsmip_ipsec", "plan", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_live_home_agent(tmp_path: Path) -> None:
    with fresh_netns():
        async with home_agent(tmp_path, 2) as bench:
            node = bench.nodes[1]
            node.send(node.protected(node.update(1)))
            await node.answer()
            file = config(tmp_path, bench)
            live = ("--config", file, "--mobile-node", node.home_address)
            assert await dsmip_plan("--from", "live", "--to", "live", *live) == (
                0, "nothing to do\n", "",
            )  # fmt: skip
            status, text, _ = await dsmip_plan("--from", "nothing", "--to", "live", *live)
            assert status == 0
            assert f"out {AGENT}/128 -> {node.home_address}/128 proto mh type 6" in text
            assert "add sa" in text, "the mirrors"
            assert str(bench.nodes[0].home_address) not in text.replace(str(node.home_address), "")
            # What a move to another network would change, by the SAs that are there.
            there = tmp_path / "there.toml"
            there.write_text(
                f'role = "home_agent"\nhome_address = "{node.home_address}"\n'
                f'home_agent = "{AGENT}"\nhome_agent_ipv4 = "{AGENT4}"\n'
                f'[binding]\ncare_of_address = "{IPv4Address("198.51.100.7")}"\n'
            )
            status, text, err = await dsmip_plan("--from", "live", "--to", there, *live)
            assert (status, err) == (0, "")
            assert "delete" not in text

            status, _, err = await dsmip_plan("--from", "live", "--to", "live", "--config", file)
            assert status != 0
            assert "which mobile node?" in err
        status, _, err = await dsmip_plan("--from", "live", "--to", "live", *live)
        assert status != 0
        assert "no daemon answers" in err
        assert "Traceback" not in err
