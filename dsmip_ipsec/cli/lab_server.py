"""The program behind a lab session: ``python -m dsmip_ipsec.cli.lab_server LAB.toml OUT``.

Started by :mod:`dsmip_ipsec.lab.session` where the lab's kernel is; of no use by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.lab import spec
from dsmip_ipsec.lab.guest import run_until_signal
from dsmip_ipsec.lab.guest_stream import STREAM_VARIABLE
from dsmip_ipsec.lab.nursery import Nursery
from dsmip_ipsec.lab.record import RunRecord
from dsmip_ipsec.lab.scenario import Scenario
from dsmip_ipsec.lab.server import LabServer
from dsmip_ipsec.report import captured, wireshark


def say_with_time() -> Callable[[str], None]:
    """A printer of progress lines, with the seconds since now in front."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    return say


def complete(scenario: Scenario, record: RunRecord, *, export_keys: bool, write: bool) -> RunRecord:
    """Judge what needs the captures; leave keys and record in the scenario's output directory.
    Raises DsmipError."""
    out = scenario.standing.out
    with tempfile.TemporaryDirectory(prefix="dsmip-keys-") as private:
        if any(step.expect.captured for step in scenario.steps):
            record = captured.judge(record, scenario.steps, out, _export(scenario, Path(private)))
    if export_keys:
        _export(scenario, out / "wireshark")
        record = record.model_copy(
            update={"artefacts": record.artefacts.model_copy(update={"wireshark": "wireshark"})}
        )
    if write:
        record.write(out / "record.json")
    return record


def _export(scenario: Scenario, directory: Path) -> Path:
    wireshark.export(
        directory,
        map(wireshark.SaKeys.of, scenario.standing.associations),
        scenario.standing.ike_keys,
    )
    return directory


def open_stream() -> tuple[int, bool]:
    """The stream to the client, non-blocking, and whether a pump is between. Raises LabError when
    there is none."""
    where = os.environ.pop(STREAM_VARIABLE, "")
    try:
        if where.startswith("fd:"):
            descriptor = int(where[3:])
            os.set_inheritable(descriptor, False)
        else:
            descriptor = os.open(where, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.set_blocking(descriptor, False)
    except (OSError, ValueError) as error:
        raise LabError(
            f"no stream to serve a lab on ('{where}')", hint="use `dsmip-ipsec lab up`"
        ) from error
    return descriptor, not where.startswith("fd:")


def main(argv: list[str] | None = None) -> int:
    """Entry point. :returns: exit status."""
    parser = argparse.ArgumentParser(prog="python -m dsmip_ipsec.cli.lab_server")
    parser.add_argument("lab", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--export-keys", action="store_true")
    parser.add_argument("--ipsec", default="kernel", choices=("kernel", "userspace"))
    arguments = parser.parse_args(argv)
    nursery: Nursery | None = None
    try:
        stream, pumped = open_stream()
        lab = spec.load(arguments.lab)
        nursery = Nursery.start()
        scenario = Scenario(
            lab,
            arguments.out,
            export_keys=arguments.export_keys,
            say=say_with_time(),
            nursery=nursery,
            ipsec=arguments.ipsec,
        )
        server = LabServer(
            scenario,
            stream,
            lambda done, record: complete(
                done, record, export_keys=arguments.export_keys, write=True
            ),
            pumped=pumped,
        )
        return run_until_signal(server.run())
    except DsmipError as error:
        print(f"error: {error.message}\n  hint: {error.hint}", file=sys.stderr)
        return 1
    finally:
        if nursery is not None:
            nursery.stop()


if __name__ == "__main__":
    sys.exit(main())
