"""Every mistake of the list is seen, and the code without one isn't accused.

The package is copied, the mistake made in the copy, and the handover on paper done with it by a
fresh interpreter. ``--update-golden`` writes the stored text anew.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import dsmip_ipsec

HERE = Path(__file__).parent
STORED = HERE / "snapshots" / "paper-handover.txt"
PACKAGE = Path(dsmip_ipsec.__file__).parent
MUTATIONS: list[dict[str, str]] = tomllib.loads((HERE / "mutations.toml").read_text())["mutation"]


def copied(target: Path) -> Path:
    """A tree of links to the package's files, in which one can be put in place of a link."""
    for source in PACKAGE.rglob("*.py"):
        link = target / "dsmip_ipsec" / source.relative_to(PACKAGE)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    return target


def on_paper(tree: Path) -> str:
    """What the handover on paper says with the package in ``tree``."""
    # -P: only what is named here is on the path, and -B leaves nothing beside our own files.
    code = "import runpy, sys; sys.path[:0] = sys.argv[1:3]; " + (
        "runpy.run_module('paper', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-c", code, str(tree), str(HERE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def differing(text: str) -> list[str]:
    stored = STORED.read_text(encoding="utf-8").splitlines()
    lines = difflib.unified_diff(stored, text.splitlines(), n=0, lineterm="")
    return [
        f"{line[0]} {line[1:]}"
        for line in lines
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]


def test_without_a_mistake_nothing_differs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = on_paper(copied(tmp_path))
    if request.config.getoption("--update-golden"):
        STORED.write_text(text, encoding="utf-8")
    assert differing(text) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m["name"] for m in MUTATIONS])
def test_the_mistake_is_seen(tmp_path: Path, mutation: dict[str, Any]) -> None:
    file = copied(tmp_path) / "dsmip_ipsec" / mutation["file"]
    source = file.read_text(encoding="utf-8")
    assert source.count(mutation["old"]) == 1, "the list no longer fits the code"
    file.unlink()  # the link, not what it leads to
    file.write_text(source.replace(mutation["old"], mutation["new"]), encoding="utf-8")
    lines = differing(on_paper(tmp_path))
    assert any(re.search(mutation["shows"], line) for line in lines), "\n".join(lines)
    # No other mistake than this one may be what was seen: the copy runs to its end (above).
    assert (PACKAGE / mutation["file"]).read_text(encoding="utf-8") == source
