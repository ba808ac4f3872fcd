"""What we work round in charon. A test that fails here means that this charon no longer needs the
way round that it names: take it out, and the report in docs/upstream with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

SCRIPT = Path(__file__).parents[2] / "docs" / "upstream" / "reproduce.sh"


@pytest.mark.parametrize(
    ("case", "way_round"),
    [
        ("transport-proxy-nat", "signalling-tunnel, and the mirrors in ipsec/desired.py"),
        ("child-by-selector", "the second traffic selector of signalling-tunnel in ike/render.py"),
        ("kmaddress-port", "no MIGRATE with KMADDRESS: set_source = no and encap = yes"),
        ("no-follow", "encap = yes on mobile nodes without MOBIKE"),
    ],
)
def test_still_there(case: str, way_round: str) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), case], capture_output=True, text=True, check=False, timeout=90
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"no longer needed: {way_round}"
    assert done.stdout.splitlines()[-1] == "REPRODUCED"


def test_the_script_cleans_up_and_explains_itself() -> None:
    before = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(["bash", str(SCRIPT), "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "transport-proxy-nat" in done.stdout
    after = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert before == after
