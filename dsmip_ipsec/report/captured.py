"""What a lab expects to be in its captures, as tshark finds it there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dsmip_ipsec.lab.expect_models import Captured
from dsmip_ipsec.lab.record import Expectation, RunRecord, StepRecord, verdict_of
from dsmip_ipsec.lab.spec_models import Step
from dsmip_ipsec.userspace.capture_file import CaptureError, dropped_packets

# A run's captures have some ten thousand packets. In a guest tshark takes a second or two to start.
_TSHARK_S = 60.0
# RFC 5555 §4.1: IP right behind UDP; ESP by the table of keys.
_OPTIONS = ("-d", "udp.port==4191,ip", "-o", "esp.enable_encryption_decode:TRUE")


def judge(record: RunRecord, steps: Sequence[Step], out: Path, keys: Path | None) -> RunRecord:
    """``record`` with the expectations ``captured`` of its steps judged.

    ``steps``: those that were carried out. ``out`` has the captures. ``keys``: a
    ``WIRESHARK_CONFIG_DIR``; without one only what is outside of ESP can match.
    """
    judged = tuple(
        _step(one, step, record.started.timestamp(), out, keys)
        for one, step in zip(record.steps, steps, strict=True)
    )
    verdict = verdict_of(judged, record.expectations, record.failure)
    return record.model_copy(update={"steps": judged, "verdict": verdict})


def _step(record: StepRecord, step: Step, start: float, out: Path, keys: Path | None) -> StepRecord:
    if not step.expect.captured:
        return record
    window = (start + record.started_s, start + record.ended_s)
    found = tuple(
        _expectation(wanted, out / "captures" / f"{wanted.node}-{wanted.link}.pcapng", window, keys)
        for wanted in step.expect.captured
    )
    return record.model_copy(update={"expectations": (*record.expectations, *found)})


def _expectation(
    wanted: Captured, file: Path, window: tuple[float, float], keys: Path | None
) -> Expectation:
    count, trouble = 0, incomplete(file)
    if not trouble:
        count, trouble = count_matching(file, wanted.filter, window, keys)
    return Expectation(
        name=f"captured at {wanted.node} on {wanted.link}",
        expected=f"{wanted.words} of: {wanted.filter}",
        seen=trouble or f"{count}",
        passed=not trouble
        and wanted.least <= count
        and (wanted.max is None or count <= wanted.max),
    )


def incomplete(file: Path) -> str:
    """Why nothing can be concluded from a capture of a lab, in words: the kernel dropped packets,
    or who wrote it didn't get to its end. "" where it is complete."""
    try:
        with file.open("rb") as opened:
            dropped = dropped_packets(opened)
    except OSError as error:
        return f"the capture can't be read: {error.strerror}"
    except CaptureError as error:
        return error.message
    if dropped is None:
        return "the capture has no end: its process was killed"
    return f"the kernel dropped {dropped} packets of this capture" if dropped else ""


def count_matching(
    file: Path, display_filter: str, window: tuple[float, float], keys: Path | None
) -> tuple[int, str]:
    """How many packets of the capture ``file`` match a display filter, seen from ``window[0]`` to
    ``window[1]`` (seconds since 1970); and, in words, why that can't be said."""
    begin, end = window
    timed = f"frame.time_epoch >= {begin:.6f} && frame.time_epoch <= {end:.6f}"
    command = ["tshark", "-n", *_OPTIONS, "-r", str(file), "-Y", f"{timed} && ({display_filter})"]
    command += ["-T", "fields", "-e", "frame.number"]
    environment = {**os.environ, **({} if keys is None else {"WIRESHARK_CONFIG_DIR": str(keys)})}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TSHARK_S,
            check=False,
        )
    except FileNotFoundError:
        return 0, "tshark isn't installed (apt-get install tshark)"
    except subprocess.TimeoutExpired:
        return 0, f"tshark took more than {_TSHARK_S:g} s"
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "Running as user" not in line]
        return 0, f"tshark: {said[0] if said else f'status {done.returncode}'}"
    return len(done.stdout.splitlines()), ""
