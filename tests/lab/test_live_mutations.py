"""Mistakes of tests/mutations/mutations.toml that a lab must not let pass, on real kernels and
charons: those with `fails`. The others show between the two engines and need none of that
(tests/mutations/test_mutations.py has all of them, on paper).

The package is copied, the mistake made in the copy, and the lab run with it. How long anything was
interrupted doesn't count: that fails on a busy machine anyhow.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from lab_runs import LABS, LabRun, run_lab

ROOT = LABS.parent
LIST = Path(__file__).parents[1] / "mutations" / "mutations.toml"
MUTATIONS: list[dict[str, str]] = [
    mutation for mutation in tomllib.loads(LIST.read_text())["mutation"] if "fails" in mutation
]
# The mode in which our own engine and reconciler do what MOBIKE leaves to charon.
LAB = "nat-handover-k-bit"
SNAPSHOT = Path(__file__).parent / "snapshots" / f"{LAB}.txt"


def told(run: LabRun) -> list[str]:
    """What the run says against the code: failed expectations, what ended it, and the diff."""
    record: dict[str, Any] = run.record
    found = [
        f"{step['name']}: {expectation['name']}: {expectation['seen']}"
        for step in [*record["steps"], {**record, "name": "run"}]
        for expectation in step["expectations"]
        if not expectation["passed"] and not expectation["name"].endswith("interruption")
    ]
    if record["failure"] is not None:
        found.append(f"{record['failure']['step']}: failure: {record['failure']['message']}")
    lines = [line.strip() for line in run.output.splitlines()]
    return found + [line for line in lines if line.startswith(("- ", "+ "))]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m["name"] for m in MUTATIONS])
def test_the_lab_sees_the_mistake(tmp_path: Path, mutation: dict[str, str]) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "dsmip_ipsec", tree / "dsmip_ipsec", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("labs", "templates"):  # within the package, as in a wheel
        shutil.copytree(ROOT / name, tree / "dsmip_ipsec" / name)
    file = tree / "dsmip_ipsec" / mutation["file"]
    source = file.read_text(encoding="utf-8")
    assert source.count(mutation["old"]) == 1, "the list no longer fits the code"
    file.write_text(source.replace(mutation["old"], mutation["new"]), encoding="utf-8")
    lab = tree / "dsmip_ipsec" / "labs" / f"{LAB}.toml"
    run = run_lab(
        lab, tmp_path / "out", "--snapshot", str(SNAPSHOT),
        # `python -m` looks into the working directory first.
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)},
    )  # fmt: skip
    assert run.status == 1, run.output
    lines = told(run)
    assert any(re.search(mutation["fails"], line) for line in lines), "\n".join(lines)
