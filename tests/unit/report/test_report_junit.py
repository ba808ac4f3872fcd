"""JUnit XML, read back by an XML parser, counts as CI systems count."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from report_samples import record

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.record import Failure, NotApplicable, RunRecord
from dsmip_ipsec.report import junit


def counts(run: RunRecord) -> tuple[int, int, int]:
    """(cases, failures, errors) as counted, after a check that the document says the same."""
    root = ET.fromstring(junit.render(run))
    assert root.tag == "testsuites"
    totals = []
    for tag, attribute in (("testcase", "tests"), ("failure", "failures"), ("error", "errors")):
        found = len(list(root.iter(tag)))
        assert int(root.attrib[attribute]) == found
        assert sum(int(s.attrib[attribute]) for s in root.iter("testsuite")) == found
        totals.append(found)
    return totals[0], totals[1], totals[2]


def test_passed_failed_and_ended_early() -> None:
    assert counts(record()) == (5, 0, 0)
    assert counts(record(passed=False)) == (5, 1, 0)
    cases, failures, errors = counts(record(failure=Failure(step="to-b", message="charon died")))
    assert (cases, failures, errors) == (4, 0, 1)


def test_a_failure_says_what_was_expected_and_seen() -> None:
    root = ET.fromstring(junit.render(record(passed=False)))
    case = next(case for case in root.iter("testcase") if case.find("failure") is not None)
    assert case.attrib["classname"] == "nat-handover.back-to-a"
    failure = case.find("failure")
    assert failure is not None
    assert "at most 140 ms" in failure.attrib["message"]
    assert "412.0 ms" in failure.attrib["message"]


def test_what_could_not_be_judged_is_skipped() -> None:
    run = record()
    missing = NotApplicable(name="IKE exchange", reason="there is no IKE")
    first = run.steps[0].model_copy(update={"not_applicable": (missing,)})
    run = run.model_copy(update={"steps": (first, *run.steps[1:])})
    assert counts(run) == (6, 0, 0)
    root = ET.fromstring(junit.render(run))
    (case,) = [case for case in root.iter("testcase") if case.find("skipped") is not None]
    assert case.attrib["name"] == "IKE exchange"
    assert next(suite.attrib["skipped"] for suite in root.iter("testsuite")) == "1"


def test_hostile_text_stays_text() -> None:
    evil = "\x00\x1b]]>&<failure/>\ufffe"
    run = record(failure=Failure(step=evil, message=evil, hint=evil)).model_copy(
        update={"lab": evil}
    )
    assert counts(run) == (4, 0, 1)


def test_an_unwritable_file_is_a_lab_error(tmp_path: Path) -> None:
    with pytest.raises(LabError):
        junit.write(record(), tmp_path / "missing" / "junit.xml")
