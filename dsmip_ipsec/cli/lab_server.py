"""The program behind a lab session: ``python -m dsmip_ipsec.cli.lab_server LAB.toml OUT``.

Started by :mod:`dsmip_ipsec.lab.session` where the lab's kernel is; of no use by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from dsmip_ipsec.cli.progress import say_with_time
from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.kernel import user_namespace
from dsmip_ipsec.lab import spec
from dsmip_ipsec.lab.guest import run_until_signal
from dsmip_ipsec.lab.guest_stream import STREAM_VARIABLE
from dsmip_ipsec.lab.nursery import Nursery
from dsmip_ipsec.lab.record import RunRecord
from dsmip_ipsec.lab.scenario import Scenario
from dsmip_ipsec.lab.server import LabServer
from dsmip_ipsec.lab.startup import startup
from dsmip_ipsec.report import captured, wireshark


def complete(scenario: Scenario, record: RunRecord, *, export_keys: bool, write: bool) -> RunRecord:
    """Judge what needs the captures; leave keys and record in the scenario's output directory.
    Raises DsmipError."""
    out = scenario.standing.out
    if any(step.expect.captured for step in scenario.steps):
        with tempfile.TemporaryDirectory(prefix="dsmip-keys-") as private:
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
    parser.add_argument("--user-namespace", action="store_true")
    arguments = parser.parse_args(argv)
    nursery: Nursery | None = None
    try:
        if arguments.user_namespace:
            user_namespace.enter()
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
        scenario.standing.phases += startup()
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
