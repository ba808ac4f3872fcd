"""The run record as JUnit XML, which every CI shows: a test case for each expectation."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET  # it writes here, and reads nothing

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.record import Expectation, NotApplicable, RunRecord


def render(record: RunRecord) -> str:
    """The document. A suite for each step, and one for what holds of the run as a whole; a run
    that ended early has an error in the last."""
    failed = sum(not e.passed for _, e in record.all_expectations())
    count = len(record.all_expectations()) + len(record.all_not_applicable())
    count += record.failure is not None
    root = ET.Element(
        "testsuites",
        name=_text(record.lab),
        tests=str(count),
        failures=str(failed),
        errors=str(int(record.failure is not None)),
        time=f"{record.duration_s:.3f}",
    )
    for step in record.steps:
        suite = _suite(root, record, step.name, step.expectations, step.not_applicable)
        suite.set("time", f"{step.ended_s - step.started_s:.3f}")
    if record.expectations or record.failure is not None:
        suite = _suite(root, record, "the run", record.expectations)
        if record.failure is not None:
            suite.set("tests", str(len(record.expectations) + 1))
            suite.set("errors", "1")
            case = ET.SubElement(
                suite,
                "testcase",
                classname=_text(record.lab),
                name=_text(record.failure.step or "set-up"),
            )
            error = ET.SubElement(case, "error", message=_text(record.failure.message))
            error.text = _text(record.failure.hint)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write(record: RunRecord, path: Path) -> None:
    """Write the document. Raises LabError if it can't be written."""
    try:
        path.write_text(render(record), encoding="utf-8", errors="replace")
    except OSError as error:
        raise LabError(
            f"the JUnit file {path} can't be written: {error.strerror}",
            hint="check that its directory exists, is yours and has room",
        ) from error


def _suite(
    root: ET.Element,
    record: RunRecord,
    name: str,
    expectations: tuple[Expectation, ...],
    not_applicable: tuple[NotApplicable, ...] = (),
) -> ET.Element:
    suite = ET.SubElement(
        root,
        "testsuite",
        name=_text(name),
        tests=str(len(expectations) + len(not_applicable)),
        failures=str(sum(not e.passed for e in expectations)),
        errors="0",
        skipped=str(len(not_applicable)),
        timestamp=f"{record.started:%Y-%m-%dT%H:%M:%S}",
    )
    for expectation in expectations:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_text(f"{record.lab}.{name}"),
            name=_text(expectation.name),
        )
        if not expectation.passed:
            said = f"expected {expectation.expected}, saw {expectation.seen}"
            ET.SubElement(case, "failure", message=_text(said))
    for item in not_applicable:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_text(f"{record.lab}.{name}"),
            name=_text(item.name),
        )
        ET.SubElement(case, "skipped", message=_text(f"not applicable: {item.reason}"))
    return suite


def _text(text: str) -> str:
    """XML has no way at all to write most control characters: they are shown."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
