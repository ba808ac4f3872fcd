"""Mistakes of tests/mutations/mutations.toml that a lab must not let pass, on real kernels and
charons: those with `fails`. The others show between the two engines and need none of that
(tests/mutations/test_mutations.py has all of them, on paper).

The package is copied, the mistake made in the copy, and the lab's steps done with it until one
shows the mistake; what would come after isn't waited for. How long anything was interrupted doesn't
count: that fails on a busy machine anyhow.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lab_runs import LABS, LIMIT_S

ROOT = LABS.parent
LIST = Path(__file__).parents[1] / "mutations" / "mutations.toml"
MUTATIONS: list[dict[str, str]] = [
    mutation for mutation in tomllib.loads(LIST.read_text())["mutation"] if "fails" in mutation
]
# The mode in which our own engine and reconciler do what MOBIKE leaves to charon.
LAB = "nat-handover-k-bit"
# What issue 7 asks for, at least.
ASKED = {
    "ignore the NAT",
    "forget the forward policies",
    "keep the old encapsulation",
    "drop the K bit in binding updates",
    "send the acknowledgement to the care-of address instead of V4ADDR",
    "accept an IPv4 home address that isn't authorised",
}
# No captures, and few probes: nothing here is measured.
CHANGES = """
[flow]
interval_ms = 25

[capture]
links = []
"""
# Runs in the copy, with its package; a line for each expectation that failed, or for what ended it.
STEPS = """
import sys
from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.lab.session import LabSession

with LabSession.start(sys.argv[1], kernel="uml") as lab:
    for step in lab.lab.steps:
        failed = []
        try:
            done = lab.step(step.model_dump(mode="json", exclude_unset=True))
            failed = [
                f"{e.name}: {e.seen}"
                for e in done.expectations
                if not e.passed and not e.name.endswith("interruption")
            ]
        except DsmipError as error:
            failed = [f"failure: {error.message}"]
        for line in failed:
            print(f"{step.name}: {line}")
        if failed:
            break
"""


def test_the_list_has_what_was_asked_for() -> None:
    assert {mutation["name"] for mutation in MUTATIONS} >= ASKED


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m["name"] for m in MUTATIONS])
def test_the_lab_sees_the_mistake(tmp_path: Path, mutation: dict[str, str]) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "dsmip_ipsec", tree / "dsmip_ipsec")
    for name in ("labs", "templates"):  # within the package, as in a wheel
        shutil.copytree(ROOT / name, tree / "dsmip_ipsec" / name)
    file = tree / "dsmip_ipsec" / mutation["file"]
    source = file.read_text(encoding="utf-8")
    assert source.count(mutation["old"]) == 1, "the list no longer fits the code"
    file.write_text(source.replace(mutation["old"], mutation["new"]), encoding="utf-8")
    # A guest can't keep what it compiles: each of its processes would compile the whole package.
    assert compileall.compile_dir(tree / "dsmip_ipsec", quiet=1)
    lab = tree / "lab.toml"
    lab.write_text(f'extends = "{mutation.get("lab", LAB)}"\n\n[lab]\nname = "mutated"\n{CHANGES}')
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(lab)],
        # `python -c` looks into the working directory first.
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(re.search(mutation["fails"], line) for line in lines), done.stdout + done.stderr
