"""What a step expects of captures and of the order and delay of probes; tshark counts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import PcapNgWriter

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import pcapng, spec
from dsmip_ipsec.lab.expect_models import Captured, Expect, Limit
from dsmip_ipsec.lab.expectations import Observation, judge, not_yet
from dsmip_ipsec.lab.record import Flow, NodeState, RunRecord, StepRecord
from dsmip_ipsec.lab.spec_models import Step
from dsmip_ipsec.report import captured

LABS = Path(__file__).parents[3] / "labs"
DATA = Path(__file__).parents[2] / "data" / "nat-handover-record.json"
START = datetime(2026, 1, 2, tzinfo=UTC)
PORTS = (4500, 4500, 4191)  # one packet a second, from the run's start


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "captures").mkdir()
    with PcapNgWriter(str(tmp_path / "captures" / "mn-visited-a.pcapng")) as writer:
        for second, port in enumerate(PORTS):
            packet = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=port, dport=port) / b"x"
            packet.time = START.timestamp() + second
            writer.write(packet)
    ended(tmp_path, dropped=0)
    return tmp_path


def ended(out: Path, *, dropped: int) -> None:
    """The capture's end, as our process writes it."""
    with (out / "captures" / "mn-visited-a.pcapng").open("ab") as file:
        file.write(pcapng.statistics(0, len(PORTS) + dropped, dropped))


def judged(out: Path, *wanted: Captured, ended_s: float = 10.0) -> tuple[RunRecord, list[str]]:
    record = RunRecord.model_validate_json(DATA.read_bytes())
    step = StepRecord(name="one", action="x", started_s=0.5, ended_s=ended_s)
    record = record.model_copy(update={"started": START, "steps": (step,), "failure": None})
    steps = [Step(name="one", congest="core", expect=Expect(captured=wanted))]
    record = captured.judge(record, steps, out, None)
    found = record.steps[0].expectations
    return record, [f"{e.expected} saw {e.seen} {e.passed}" for e in found]


def wanted(words: str, **limits: int) -> Captured:
    return Captured(node="mn", link="visited-a", filter=words, **limits)


def test_packets_of_the_steps_time_are_counted(out: Path) -> None:
    # The first packet came before the step.
    assert judged(out, wanted("udp"))[1] == ["at least 1 of: udp saw 2 True"]
    assert judged(out, wanted("udp"), ended_s=1.5)[1] == ["at least 1 of: udp saw 1 True"]
    record, found = judged(
        out,
        wanted("udp.port == 4500", min=1, max=1),
        wanted("udp.port == 4500 || udp.port == 4191", max=0),
        wanted("tcp"),
        wanted("udp", min=2, max=4),
    )
    assert found == [
        "1 of: udp.port == 4500 saw 1 True",
        "0 of: udp.port == 4500 || udp.port == 4191 saw 2 False",
        "at least 1 of: tcp saw 0 False",
        "2 to 4 of: udp saw 2 True",
    ]
    assert record.verdict == "failed"


def test_what_tshark_can_not_read_is_no_success(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (
        wanted("no such field", max=0),
        Captured(node="ha", link="visited-a", filter="udp", max=0),
    ):
        record, (text,) = judged(out, one)
        assert text.endswith("False"), text
        assert record.verdict == "failed"
    monkeypatch.setenv("PATH", str(out))
    assert "tshark isn't installed" in judged(out, wanted("udp"))[1][0]


def test_nothing_is_concluded_from_a_capture_that_lacks_packets(out: Path) -> None:
    path = out / "captures" / "mn-visited-a.pcapng"
    whole = path.read_bytes()
    ended(out, dropped=3)
    record, found = judged(out, wanted("udp"), wanted("tcp", max=0))
    assert [text.partition(" saw ")[2] for text in found] == [
        "the kernel dropped 3 packets of this capture False"
    ] * 2
    assert record.verdict == "failed"
    # Killed behind a packet, and in the middle of one.
    path.write_bytes(whole[: -len(pcapng.statistics(0, 0, 0))])
    assert judged(out, wanted("tcp", max=0))[1][0].endswith("its process was killed False")
    path.write_bytes(whole[: -len(pcapng.statistics(0, 0, 0)) - 5])
    assert judged(out, wanted("tcp", max=0))[1][0].endswith("in the middle of a block False")
    path.unlink()
    assert judged(out, wanted("tcp", max=0))[1][0].endswith("No such file or directory False")


def test_it_is_not_judged_before_the_captures_are_complete() -> None:
    assert not_yet(Expect(captured=(wanted("udp"),)))[0].name == "captured"
    assert not_yet(Expect(binding=True)) == ()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('{ node = "mn", link = "visited-c", filter = "udp" }', "'visited-c' is no link that is"),
        ('{ node = "cn", link = "visited-a", filter = "udp" }', "'cn' is no end of 'visited-a'"),
        ('{ node = "mn", link = "visited-a", filter = "" }', "filter"),
        ('{ node = "mn", link = "visited-a" }', "lacks the key 'filter'"),
        ('{ node = "mn", link = "visited-a", filter = "udp", min = 2, max = 1 }', "'min' above"),
        ('{ node = "mn", link = "visited-a", filter = "udp", mim = 2 }', "did you mean 'min'"),
    ],
)
def test_mistakes(entry: str, words: str) -> None:
    text = (LABS / "nat-handover.toml").read_text()
    text = text.replace("nat_detected = true\n", f"nat_detected = true\ncaptured = [{entry}]\n", 1)
    with pytest.raises(ConfigError) as caught:
        spec.parse(text, "x.toml")
    assert words in f"{caught.value.message}; {caught.value.hint}"
    assert caught.value.line is not None


def flow(reordered: int, delay_ms: float | None) -> Flow:
    received = 0 if delay_ms is None else 10
    return Flow(
        family="ipv6", direction="up", sent=10, received=received, lost=10 - received,
        reordered=reordered, interruption_ms=delay_ms, delay_ms_max=delay_ms,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flow", "passed"),
    [
        (flow(0, 20.0), [True, True]),
        (flow(2, 61.0), [True, True]),
        (flow(3, 61.0), [False, True]),
        (flow(2, 61.2), [True, False]),
        (flow(0, None), [False, False]),  # what never arrives is neither in order nor in time
    ],
)
def test_order_and_delay_of_probes(flow: Flow, passed: list[bool]) -> None:
    seen = Observation(
        mobile_node=NodeState(), home_agent=NodeState(), care_of_addresses=frozenset(),
        flows=[flow], after=[], exchanges={}, rtt_ms=40,
    )  # fmt: skip
    expect = Expect(reordered_max=2, delay_max=Limit(rtts=1.5, ms=1.1))
    assert [expectation.passed for expectation in judge(expect, seen)] == passed
