"""The pytest plugin as another repository has it: the package installed from its wheel, the plugin
found by its entry point, docs/examples/handover-tests copied, two guests at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

# One run for all of them, also where pytest-xdist hands out tests.
pytestmark = pytest.mark.xdist_group("pytest_plugin")

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "docs" / "examples" / "handover-tests"

FAILING = """
import pytest


@pytest.mark.dsmip_scenario("nat-handover")
def test_wrong(dsmip_lab, mn, ha):
    mn.move("visited-a")
    before = ha.sad
    mn.move("visited-b")
    assert ha.sad == before
"""

STALE = "tunnel ha@backbone/4 > nat@access-a/4, UDP 4500 > nat2"


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    output: str
    cases: dict[str, ET.Element]
    base: Path

    def left(self, kind: str) -> list[Path]:
        """Files or directories of that name that labs left."""
        return sorted(self.base.rglob(kind))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed package. Its build needs nothing from the network."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "checkout"
    source.mkdir()
    for name in ("dsmip_ipsec", "labs", "templates"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(PROJECT / name, source / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--disable-pip-version-check", "--target", str(site)),
            str(source),
        ],
        check=True,
        timeout=120,
    )
    return site


def run_pytest(site: Path, directory: Path, options: Sequence[str]) -> Outcome:
    base, xml = directory.parent / "base", directory.parent / "junit.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:asyncio"),
            *(f"--basetemp={base}", f"--junit-xml={xml}", *options),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert xml.is_file(), done.stdout
    cases = {case.attrib["name"]: case for case in ET.parse(xml).iter("testcase")}
    return Outcome(done.returncode, done.stdout, cases, base)


@pytest.fixture(scope="module")
def outcome(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The example's tests, and one that fails, on two workers."""
    directory = tmp_path_factory.mktemp("example") / "tests"
    shutil.copytree(EXAMPLE, directory)
    (directory / "test_failing.py").write_text(FAILING)
    return run_pytest(site, directory, ["-n", "2", "--dist", "load"])


def test_the_example_passes_on_two_guests_at_once(outcome: Outcome) -> None:
    assert outcome.status == 1, outcome.output
    assert set(outcome.cases) == {
        "test_keys_stay",
        "test_both_ends_have_the_same_keys",
        "test_the_home_address_answers",
        "test_wrong",
    }
    failed = {n for n, case in outcome.cases.items() if len(case.findall("failure"))}
    assert failed == {"test_wrong"}, outcome.output
    assert not [n for n, case in outcome.cases.items() if len(case.findall("error"))]
    workers = set(re.findall(r"\[(gw\d)\]", outcome.output))
    assert workers == {"gw0", "gw1"}


def test_a_failure_shows_the_sas_the_messages_and_the_files(outcome: Outcome) -> None:
    text = outcome.output
    assert "assert SADs of 6 and 6 SAs" in text
    for title in ("what the last step changed", "messages", "files", "what the lab said last"):
        assert f"dsmip_lab: {title}" in text
    # The diff, with the names of step and node.
    assert re.search(r"^step '2: move mn to visited-b', node ha:$", text, re.MULTILINE)
    assert re.search(rf"^- SA +data ha>mn: {re.escape(STALE)}", text, re.MULTILINE)
    # The ladder knows what is inside ESP.
    assert re.search(r"mn -- BU \d+ --> ha   \[192\.0\.2\.2 > 203\.0\.113\.2\]", text)
    assert re.search(r"ha -- BA \d+, status 0 --> mn", text)
    # Paths that exist.
    named = [
        Path(path) for path in re.findall(r"^(/\S+\.(?:pcapng|log|json))$", text, re.MULTILINE)
    ]
    assert {"ha-backbone.pcapng", "ha-charon.log", "record.json"} <= {path.name for path in named}
    assert all(path.is_file() for path in named)


def test_only_failures_leave_files(outcome: Outcome) -> None:
    assert len(outcome.left("record.json")) == 1
    assert {path.parents[1] for path in outcome.left("*.pcapng")} == {
        outcome.left("record.json")[0].parent
    }


def test_a_snapshot_that_differs_fails_and_can_be_stored_anew(site: Path, tmp_path: Path) -> None:
    """One lab with a stored snapshot of another time, one that stores it, at once."""
    directories = []
    for name in ("compare", "update"):
        directory = tmp_path / name / "tests"
        shutil.copytree(EXAMPLE, directory)
        stored = directory / "snapshots" / "test_handover" / "test_keys_stay.txt"
        text = stored.read_text()
        assert "SA        data ha>mn: tunnel ha@backbone/4 > mn@visited-b/4, no UDP" in text
        # As if the SA had been left behind when the node moved.
        stored.write_text(
            text.replace(
                "SA        data ha>mn: tunnel ha@backbone/4 > mn@visited-b/4, no UDP",
                f"SA        data ha>mn: {STALE}",
            )
        )
        directories.append((directory, stored, text))
    chosen = ["-k", "test_keys_stay"]
    compare = run_pytest(site, directories[0][0], chosen)
    assert compare.status == 1
    assert "the IPsec state isn't as in" in compare.output
    assert f"- SA        data ha>mn: {STALE}" in compare.output
    assert "+ SA        data ha>mn: tunnel ha@backbone/4 > mn@visited-b/4, no UDP" in compare.output
    update = run_pytest(
        site, directories[1][0], [*chosen, "--dsmip-update-snapshots", "--dsmip-pcap"]
    )
    assert update.status == 0, update.output
    assert directories[1][1].read_text() == directories[1][2]
    assert update.left("ha-backbone.pcapng")
    assert update.left("wireshark")
    assert not update.left("logs")
