"""Runs ``dsmip-ipsec lab run`` as a user would, and asks tshark about the captures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmip_ipsec.report.captured import incomplete

LABS = Path(__file__).parents[2] / "labs"
LIMIT_S = 150


@dataclass(frozen=True, slots=True)
class LabRun:
    status: int
    output: str
    out: Path

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.out / "record.json").read_text())
        return record

    @property
    def failed(self) -> list[tuple[str, dict[str, Any]]]:
        """Expectations that didn't hold, with their steps' names ("": the whole run's)."""
        return [
            (step["name"], expectation)
            for step in [*self.record["steps"], {**self.record, "name": ""}]
            for expectation in step["expectations"]
            if not expectation["passed"]
        ]

    def step(self, name: str) -> dict[str, Any]:
        found = [step for step in self.record["steps"] if step["name"] == name]
        assert len(found) == 1, f"no step {name!r} in the record"
        step: dict[str, Any] = found[0]
        return step

    def tshark(self, capture: str, display_filter: str, *fields: str) -> list[list[str]]:
        """Fields of the packets that match, decoded with nothing but the exported keys."""
        path = self.out / "captures" / f"{capture}.pcapng"
        assert incomplete(path) == ""
        command = [
            *("tshark", "-d", "udp.port==4191,ip", "-o", "esp.enable_encryption_decode:TRUE"),
            *("-r", str(path), "-Y", display_filter),
            *("-T", "fields", "-E", "separator=|", "-E", "occurrence=a", "-E", "aggregator=;"),
        ]
        for field in fields:
            command += ["-e", field]
        result = subprocess.run(
            command,
            env={**os.environ, "WIRESHARK_CONFIG_DIR": str(self.out / "wireshark")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return [line.split("|") for line in result.stdout.splitlines()]


def run_lab(
    lab: Path | str, out: Path, *options: str, limit_s: float = LIMIT_S, **settings: Any
) -> LabRun:
    """Run a lab in a guest; ``settings`` go to subprocess.run."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "dsmip_ipsec", "lab", "run", str(lab), "--out", str(out)),
            *("--kernel", "uml", *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
        **settings,
    )
    return LabRun(result.returncode, result.stdout, out)


def run_lab_in_time(lab: Path | str, out: Path, *options: str, **settings: Any) -> LabRun:
    """:func:`run_lab`, and again, twice at most, where nothing failed but limits of time.

    A machine whose processors are somebody else's for a while lengthens any interruption, and
    shortens none: what is slow by itself is so each time.
    """
    for number in range(_RUNS):
        run = run_lab(lab, out if not number else Path(f"{out}-{number + 1}"), *options, **settings)
        if not _only_late(run):
            break
        late = [f"{step}: {each['name']} {each['seen']}" for step, each in run.failed]
        warnings.warn(f"late in run {number + 1} of {_RUNS}: {', '.join(late)}", stacklevel=2)
    return run


_RUNS = 3


def _only_late(run: LabRun) -> bool:
    return (
        run.status != 0
        and (run.out / "record.json").is_file()
        and run.record["failure"] is None
        and bool(run.failed)
        and all(
            each["name"].endswith((" interruption", " delay")) and each["seen"].endswith(" ms")
            for _, each in run.failed
        )
    )


def assert_nothing_left(directory: Path, *, within_s: float = 0.0) -> None:
    """No guest, no lab and no directory of theirs below ``directory`` (the fixture own_tmp's),
    but for the directory in which a user's standing labs are registered."""
    deadline = time.monotonic() + within_s
    while True:
        processes = subprocess.run(
            ["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        left = [str(path) for path in directory.iterdir()]
        left += [line for line in processes if str(directory) in line]
        left = [found for found in left if not found.endswith(f"dsmip-ipsec-{os.geteuid()}")]
        if not left or time.monotonic() >= deadline:
            assert left == []
            return
        time.sleep(0.1)
