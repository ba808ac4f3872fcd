"""``dsmip-ipsec report``: views of a finished run, from its record and captures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import ConfigError, LabError


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "report",
        help="HTML page, JUnit XML or snapshot of a finished run",
        description="DIR is what `lab run --out DIR` wrote. Without options: DIR/report.html.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a self-contained page")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML, for CI")
    parser.add_argument(
        "--snapshot", type=Path, metavar="FILE", help="the IPsec state after each step, as text"
    )
    parser.set_defaults(run=report)


def report(arguments: argparse.Namespace) -> int:
    """Write what was asked for. Raises ConfigError and LabError."""
    directory: Path = arguments.directory
    if not any((arguments.html, arguments.junit, arguments.snapshot)):
        arguments.html = directory / "report.html"
    write_views(directory, html=arguments.html, junit=arguments.junit, snapshot=arguments.snapshot)
    return 0


def write_views(
    directory: Path, *, html: Path | None, junit: Path | None, snapshot: Path | None = None
) -> None:
    """Write the views of the run in ``directory``. The page's links are relative to it, so a page
    elsewhere is refused. Raises ConfigError and LabError."""
    from dsmip_ipsec.lab import record as records

    if html is not None and html.absolute().parent != directory.absolute():
        raise ConfigError(
            f"{html} isn't in {directory}, which its links to captures and logs need",
            hint=f"name a file there, such as {directory / 'report.html'}",
        )
    record = records.load(directory / "record.json")
    if junit is not None:
        from dsmip_ipsec.report import junit as junit_view

        junit_view.write(record, junit)
        print(f"wrote {junit}")
    if snapshot is not None:
        from dsmip_ipsec.report.snapshot import of_record

        try:
            snapshot.write_text(of_record(record).text(), encoding="utf-8")
        except OSError as error:
            raise LabError(
                f"the snapshot {snapshot} can't be written: {error.strerror}",
                hint="check that its directory exists and is yours",
            ) from error
        print(f"wrote {snapshot}")
    if html is not None:
        from dsmip_ipsec.report import html as html_view
        from dsmip_ipsec.report import run_ladder

        try:
            ladder = run_ladder.of_run(record, directory)
        except LabError as error:
            # The page is worth having without the drawing, too.
            print(f"no message ladder: {error.message} ({error.hint})")
            ladder = None
        html_view.write(record, ladder, html)
        print(f"wrote {html}")
