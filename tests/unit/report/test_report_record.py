"""The run record: what is written can be read by others, what is broken gives a typed error."""

from __future__ import annotations

import json
import os
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import report_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dsmip_ipsec.errors import ConfigError, LabError
from dsmip_ipsec.lab.record import (
    SCHEMA_VERSION,
    Expectation,
    Failure,
    RunRecord,
    SecurityAssociation,
    load,
    verdict_of,
)
from dsmip_ipsec.report import schema

ROOT = Path(__file__).parents[3]
HELD = Expectation(name="n", expected="e", seen="s", passed=True)
BROKEN = Expectation(name="n", expected="e", seen="s", passed=False)


def test_json_is_what_the_documentation_says(tmp_path: Path) -> None:
    """Read by the plain json module, as somebody else's tool would."""
    samples.record().write(tmp_path / "record.json")
    data = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["verdict"] == "passed"
    assert data["started"] == "2025-03-01T12:00:00Z"
    assert data["kernel"]["kind"] == "uml"
    step = data["steps"][1]
    assert (step["name"], step["started_s"]) == ("to-b", 7)
    assert step["flows"][0] == {
        "node": "mn",
        "family": "ipv6",
        "direction": "up",
        "sent": 800,
        "received": 791,
        "lost": 9,
        "duplicates": 0,
        "reordered": 0,
        "refused": 0,
        "interruption_ms": 45.5,
        "interruption_rtts": 1.1375,
        "outage_ms": 0,
        "sender_stall_ms": 0,
        "delay_ms_min": None,
        "delay_ms_max": None,
    }
    before, after = step["before"]["ha"], step["after"]["ha"]
    assert before["bindings"][0]["outer_address"] == "192.0.2.1"
    assert before["bindings"][0]["outer_port"] == 40123
    assert before["sas"][2]["spi"] == "0xc1000002"
    assert before["sas"][2]["encapsulation"] == {"source_port": 41011, "destination_port": 4500}
    assert after["sas"][2]["encapsulation"] is None
    assert data["artefacts"]["captures"][0] == "captures/ha-core.pcapng"


def test_written_record_is_read_back(tmp_path: Path) -> None:
    record = samples.record(failure=Failure(step="back-to-a", message="m", hint="h"))
    record.write(tmp_path / "record.json")
    assert load(tmp_path / "record.json") == record


def test_time_is_written_in_utc() -> None:
    record = samples.record()
    local = record.started.astimezone(timezone(timedelta(hours=5)))
    moved = RunRecord.model_validate(record.model_dump() | {"started": local})
    assert json.loads(moved.model_dump_json())["started"] == "2025-03-01T12:00:00Z"
    with pytest.raises(ValidationError):
        RunRecord.model_validate(record.model_dump() | {"started": local.replace(tzinfo=None)})


def test_record_is_readable_by_others_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    samples.record().write(path)
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    assert load(path).lab == "nat-handover"


def test_failed_write_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError) as caught:
        samples.record().write(path)
    assert caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_directory_is_a_lab_error(tmp_path: Path) -> None:
    with pytest.raises(LabError):
        samples.record().write(tmp_path / "missing" / "record.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "isn't JSON"),
        (b"\xff\xfe", "isn't JSON"),
        (b'{"schema_version": 1', "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b'{"schema_version": NaN}', "isn't JSON"),
        (b"[]", "no schema_version"),
        (b"{}", "no schema_version"),
        (b'{"schema_version": true}', "no schema_version"),
        (b'{"schema_version": "1"}', "no schema_version"),
        (b'{"schema_version": 0}', "schema version 0"),
        (b'{"schema_version": 1}', "Field required"),
    ],
)
def test_broken_file_is_a_config_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path)
    assert caught.value.hint
    assert caught.value.path == str(path)


def test_record_of_a_newer_release_says_so(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    newer = json.loads(samples.record().model_dump_json())
    newer |= {"schema_version": SCHEMA_VERSION + 1, "more": 1}
    path.write_text(json.dumps(newer))
    with pytest.raises(ConfigError, match=f"schema version {SCHEMA_VERSION + 1}") as caught:
        load(path)
    assert "newer release" in caught.value.hint


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_unreadable_file_is_a_config_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path / path)


def test_fault_is_named_by_its_place_without_its_value(tmp_path: Path) -> None:
    data = json.loads(samples.record().model_dump_json())
    data["steps"][1]["before"]["ha"]["sas"][2]["key"] = "0x5ec2e7"
    path = tmp_path / "record.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "steps[1].before.ha.sas[2].key: " in str(caught.value)
    assert "5ec2e7" not in str(caught.value)


PLACES = st.lists(st.integers(0, 30), min_size=1, max_size=8)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(places=PLACES, odd=ODD)
@settings(max_examples=200, deadline=None)
def test_any_value_anywhere_loads_or_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], odd: object
) -> None:
    root: Any = json.loads(samples.record().model_dump_json())
    part = root
    for place in places:
        keys: list[Any] = list(part) if isinstance(part, dict) else list(range(len(part)))
        if not keys:
            break
        key = keys[place % len(keys)]
        if isinstance(part[key], dict | list) and place != places[-1]:
            part = part[key]
        else:
            part[key] = odd
            break
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_text(json.dumps(root))
    try:
        loaded = load(path)
    except ConfigError:
        return
    assert loaded.verdict == verdict_of(loaded.steps, loaded.expectations, loaded.failure)


@pytest.mark.parametrize(
    ("expectations", "failure", "verdict"),
    [
        ([HELD], None, "passed"),
        ([HELD, BROKEN], None, "failed"),
        ([], None, "failed"),
        ([HELD], Failure(message="m"), "error"),
    ],
)
def test_verdict(expectations: list[Expectation], failure: Failure | None, verdict: str) -> None:
    assert verdict_of((), expectations, failure) == verdict
    step = samples.step("s", "a", 0, ("", "visited-a"), (), tuple(expectations))
    assert verdict_of((step,), (), failure) == verdict


def test_record_cannot_claim_success_against_its_expectations() -> None:
    data = samples.record(passed=False).model_dump()
    with pytest.raises(ValidationError, match="verdict"):
        RunRecord.model_validate(data | {"verdict": "passed"})


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 8},
        {"sent": -1},
        {"interruption_ms": float("nan")},
        {"interruption_ms": float("inf")},
        {"family": "ipv5"},
    ],
)
def test_impossible_measurement_is_refused(change: dict[str, object]) -> None:
    good = samples.flow("ipv6", "up", 800, 9, 45.5)
    type(good).model_validate(good.model_dump())
    with pytest.raises(ValidationError):
        type(good).model_validate(good.model_dump() | change)


def test_spi_is_taken_as_a_number_and_written_in_hex() -> None:
    sa = samples.state("mn", "visited-a").sas[0]
    again = SecurityAssociation.model_validate(sa.model_dump() | {"spi": 0xBEEF})
    assert again.spi == "0x0000beef"
    for wrong in (-1, 1 << 32, True, "0xBEEF", "beef"):
        with pytest.raises(ValidationError):
            SecurityAssociation.model_validate(sa.model_dump() | {"spi": wrong})


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_artefact_outside_of_the_directory_is_refused(path: str) -> None:
    data = samples.record().model_dump()
    data["artefacts"] |= {"captures": [path]}
    with pytest.raises(ValidationError, match="inside the record's directory"):
        RunRecord.model_validate(data)


def test_documentation_is_the_schema() -> None:
    written = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    assert written == schema.markdown(), "run: python -m dsmip_ipsec.report.schema > docs/record.md"


def test_documentation_has_every_field_with_a_meaning() -> None:
    page = schema.markdown()
    document = schema.json_schema()
    for name, model in {"RunRecord": document, **document["$defs"]}.items():
        assert f"## {name}\n" in page
        assert model["description"], name
        for field, about in model["properties"].items():
            assert about.get("description"), f"{name}.{field}"
            assert f"| `{field}` | " in page


def test_no_field_is_there_for_secrets() -> None:
    document = schema.json_schema()
    for model in (document, *document["$defs"].values()):
        assert model["additionalProperties"] is False
        for field in model["properties"]:
            words = field.split("_")
            assert not {"key", "keys", "secret", "psk", "password", "salt"} & set(words)


def test_schema_command(capsys: pytest.CaptureFixture[str]) -> None:
    schema.main(["--json"])
    assert json.loads(capsys.readouterr().out)["title"] == "RunRecord"
    schema.main([])
    assert capsys.readouterr().out == schema.markdown()
