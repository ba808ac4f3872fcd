"""docs/examples/deployment: the README's inventory, stood up as a user would, in both families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rendered_nodes import run

pytestmark = pytest.mark.kernel

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "deployment"

# What a person would type then. Between the namespaces there is no way for home addresses but ESP.
MOVES = """
set -eux
ping() { ip netns exec try-mn1 ping -c 1 -W 5 "$@"; }
ping 203.0.113.130
ping 2001:db8:100::103
dsmip-ipsec control "$directory/mn1/daemon.toml" attach \
    interface=eth0 care_of_address=2001:db8:1::11 gateway=2001:db8:1::1
ping 203.0.113.130
ping 2001:db8:100::103
dsmip-ipsec control "$directory/mn1/daemon.toml" attach \
    interface=eth0 care_of_address=192.0.2.11 gateway=192.0.2.1
ping 203.0.113.130
ping 2001:db8:100::103
dsmip-ipsec control "$directory/ha/daemon.toml" status > "$directory/status.json"
"""


def ours() -> list[str]:
    shown = run("ps", "-eo", "args").splitlines()
    return [line for line in shown if "charon-systemd" in line or "daemon.toml" in line]


def test_three_bindings_and_moves_between_families(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "dsmip-ipsec"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m dsmip_ipsec.cli.main "$@"\n')
    command.chmod(0o755)
    before = ours(), run("ip", "netns")
    done = subprocess.run(
        ["sh", str(EXAMPLE / "try.sh"), str(tmp_path / "out"), "sh", "-c", MOVES],
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}:/usr/sbin"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    bindings = json.loads((tmp_path / "out" / "status.json").read_text())["bindings"]
    assert [each["home_address"] for each in bindings] == [
        f"2001:db8:100::10{number}" for number in (1, 2, 3)
    ]
    assert {each["care_of_address"] for each in bindings} == {
        f"192.0.2.1{number}" for number in (1, 2, 3)
    }
    assert (ours(), run("ip", "netns")) == before
