from __future__ import annotations
import asyncio, os, shutil
from pathlib import Path
import pytest
import test_mobility_modes as m
from daemon_lab import daemon_lab

pytestmark = pytest.mark.kernel
MODE = os.environ.get("DSMIP_MODE", "renegotiate")
WALK = os.environ.get("DSMIP_WALK", "six seven").split()


async def test_reneg(tmp_path: Path) -> None:
    share = Path(os.environ["DSMIP_SHARE"])
    async with daemon_lab(
        tmp_path, m.NETWORKS.replace('mobility = "mobike"', f'mobility = "{MODE}"')
    ) as lab:
        try:
            previous = ""
            for network in WALK:
                print("MOVE", network, flush=True)
                await lab.move(network)
                if previous:
                    lab.leave("mn", previous)
                previous = network
                await m.all_is_well(lab, network)
        finally:
            for node in lab.nodes.values():
                shutil.copy(node.files.log_file, share / f"{node.name}-charon.log")
            for f in (tmp_path / "logs").glob("*"):
                shutil.copy(f, share / f.name)
