"""The terminal view: what a reader needs is there, fits, and can't be spoofed by a name."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import report_samples as samples
from rich.console import Console

from dsmip_ipsec.lab.record import Expectation, Failure, Flow, NodeState, RunRecord, verdict_of
from dsmip_ipsec.report.changes import changes, udp_encapsulation
from dsmip_ipsec.report.table import MAX_CHANGES, milliseconds, render, worst_interruption


def shown(
    record: RunRecord, width: int = 80, *, encoding: str = "utf-8", colour: bool = False
) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, width=width, force_terminal=colour or None, legacy_windows=False)
    render(record, console, directory=Path("out"))
    file.flush()
    return raw.getvalue().decode(encoding)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def changed(record: RunRecord, **update: object) -> RunRecord:
    """The record with other fields and the verdict that they make."""
    new = record.model_copy(update=update)
    verdict = verdict_of(new.steps, new.expectations, new.failure)
    return RunRecord.model_validate(new.model_copy(update={"verdict": verdict}).model_dump())


def test_header() -> None:
    text = lines(shown(samples.record()))
    assert text[0] == "nat-handover run d5a1f0"
    assert "kernel 6.1.176 (uml)" in text
    assert "strongSwan 5.9.8 (certificate, mobike)" in text
    assert "RTT 40 ms, MN to HA" in text
    assert "took 24.2 s (boot 2.1 s, topology 0.8 s)" in text


@pytest.mark.parametrize("width", [80, 120])
def test_summary_has_a_row_for_each_step_and_family(width: int) -> None:
    text = lines(shown(samples.record(), width))
    start = next(n for n, line in enumerate(text) if line.startswith("Step NAT UDP encap"))
    assert text[start + 2 : start + 8] == [
        "ok attach-a - → yes - → yes - - - -",
        "ok to-b yes → no yes → no IPv6 65.5 ms (1.6 RTT) 9/800 13/800",
        "IPv4 60.5 ms (1.5 RTT) 9/800 12/800",
        "ok back-to-a no → yes no → yes IPv6 81.0 ms (2.0 RTT) 12/800 16/800",
        "IPv4 76.0 ms (1.9 RTT) 12/800 15/800",
        "ok deregister yes → - yes → - - - - -",
    ]


def test_sas_before_and_after_at_both_ends() -> None:
    text = lines(shown(samples.record(), 120))
    start = text.index("to-b move to visited-b, from 7.0 s to 11.0 s")
    assert text[start + 3 : start + 21] == [
        "mn binding was 10.1.0.2, NAT, UDP",
        "now 192.0.2.130, no NAT",
        "IKE_SA 1 established was 10.1.0.2:4500 - 203.0.113.1:4500, NAT here",
        "now 192.0.2.130:4500 - 203.0.113.1:4500",
        "0xc1000002 data tunnel was 10.1.0.2 → 203.0.113.1, UDP 4500 → 4500",
        "now 192.0.2.130 → 203.0.113.1, ESP",
        "0xc2000002 data tunnel was 203.0.113.1 → 10.1.0.2, UDP 4500 → 4500",
        "now 203.0.113.1 → 192.0.2.130, ESP",
        "same 0xc1000001, 0xc2000001, policies",
        "ha binding was 10.1.0.2 seen as 192.0.2.1:40123, NAT, UDP",
        "now 192.0.2.130 seen as 192.0.2.130:4191, no NAT",
        "IKE_SA 1 established was 203.0.113.1:4500 - 192.0.2.1:41011, NAT there",
        "now 203.0.113.1:4500 - 192.0.2.130:4500",
        "0xc1000002 data tunnel was 192.0.2.1 → 203.0.113.1, UDP 41011 → 4500",
        "now 192.0.2.130 → 203.0.113.1, ESP",
        "0xc2000002 data tunnel was 203.0.113.1 → 192.0.2.1, UDP 4500 → 41011",
        "now 203.0.113.1 → 192.0.2.130, ESP",
        "same 0xc1000001, 0xc2000001, policies",
    ]


def test_new_and_gone() -> None:
    text = lines(shown(samples.record(), 120))
    assert "0xc1000001 signalling transport new 2001:db8:1::10 → 2001:db8:1::1" in text
    assert "0xc1000001 signalling transport gone 2001:db8:1::10 → 2001:db8:1::1" in text


def test_pass_is_the_last_line_with_the_place_of_the_artefacts() -> None:
    last = lines(shown(samples.record()))[-1]
    assert last == "PASS 5 of 5 expectations held; see out"


def test_failed_expectation_says_what_was_expected_and_seen() -> None:
    text = lines(shown(samples.record(passed=False)))
    start = text.index("Failed expectations")
    assert text[start + 1 : start + 4] == [
        "back-to-a: IPv6 interruption",
        "expected at most 140 ms (1 RTT + 100 ms)",
        "saw 412.0 ms (10.3 RTT)",
    ]
    assert text[-1].startswith("FAIL 4 of 5 expectations held")
    assert any(line.startswith("FAIL back-to-a") for line in text)
    assert "Failed expectations" not in shown(samples.record())


@pytest.mark.parametrize(("stall_ms", "told"), [(24.9, False), (105.2, True)])
def test_a_busy_machine_is_told_of_beside_what_failed(stall_ms: float, told: bool) -> None:
    for step in (1, 2):  # the one whose expectations held, and the one whose didn't
        record = samples.record(passed=False)
        steps = list(record.steps)
        busy = [flow.model_copy(update={"sender_stall_ms": stall_ms}) for flow in steps[step].flows]
        steps[step] = steps[step].model_copy(update={"flows": tuple(busy)})
        text = " ".join(lines(shown(changed(record, steps=tuple(steps)))))
        assert ("senders went without a CPU for 105 ms there" in text) == (told and step == 2)


def test_early_end_names_step_and_hint() -> None:
    failure = Failure(step="back-to-a", message="charon of ha ended by signal 9", hint="read it")
    text = lines(shown(samples.record(failure=failure)))
    start = text.index("Ended early")
    assert text[start + 1 : start + 3] == [
        "step back-to-a: charon of ha ended by signal 9",
        "read it",
    ]
    assert text[-1].startswith("FAIL 3 of 3 expectations held, the run ended early")


def test_nothing_checked_is_said() -> None:
    record = changed(samples.record(), steps=(), expectations=())
    assert lines(shown(record))[-1].startswith("FAIL no expectation was checked")


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = shown(samples.record(passed=False), width)
    assert max(map(len, text.splitlines())) <= width


def test_summary_is_whole_at_80_columns() -> None:
    """Nothing is cut off, neither with an ellipsis nor by folding the numbers."""
    text = shown(samples.record(passed=False))
    assert "…" not in text
    assert "  412 ms (10 RTT)   12/800  16/800" in text


def test_no_escape_sequence_without_a_terminal_and_the_same_words_with_one() -> None:
    plain = shown(samples.record(passed=False))
    assert "\x1b" not in plain
    coloured = shown(samples.record(passed=False), colour=True)
    assert "\x1b[" in coloured
    assert Console(file=io.StringIO()).render_str(plain).plain == plain
    for word in ("FAIL", "Failed expectations", "was", "now", "gone"):
        assert word in plain


def test_ascii_terminal() -> None:
    text = shown(samples.record(passed=False), encoding="ascii")
    assert "yes -> no" in text
    assert "10.1.0.2 -> 203.0.113.1" in text


def test_names_are_text_whatever_they_hold() -> None:
    bad = "x[/]\x1b[2J[bold red]\r\nPASS"
    steps = (samples.step(bad, bad, 0, ("", "visited-a"), (), ()),)
    expectation = Expectation(name=bad, expected=bad, seen=bad, passed=False)
    failure = Failure(step=bad, message=bad, hint=bad)
    text = shown(
        changed(
            samples.record(),
            lab=bad,
            description=bad,
            run_id=bad,
            steps=steps,
            expectations=(expectation,),
            failure=failure,
        ),
        200,
    )
    assert "\x1b" not in text
    assert "\r" not in text
    assert not any(line.strip().startswith("PASS") for line in text.splitlines())
    assert "x[/]\\x1b[2J[bold red]\\r\\nPASS" in text


def test_flow_of_which_nothing_arrived_is_the_worst() -> None:
    flows = [
        samples.flow("ipv6", "up", 10, 0, 900.0),
        samples.flow("ipv6", "down", 10, 10, None),
    ]
    assert worst_interruption(flows) == "nothing arrived"
    assert worst_interruption(flows[:1]) == "900 ms (22 RTT)"
    assert worst_interruption([]) == "-"


def test_milliseconds() -> None:
    assert [milliseconds(value) for value in (0, 65.54, 99.96, 1240.4)] == [
        "0.0 ms",
        "65.5 ms",
        "100 ms",
        "1240 ms",
    ]


def test_several_mobile_nodes_are_told_apart() -> None:
    move = samples.steps()[1]
    other = tuple(Flow.model_validate(f.model_dump() | {"node": "mn2"}) for f in move.flows)
    record = changed(
        samples.record(), steps=(move.model_copy(update={"flows": move.flows + other}),)
    )
    text = lines(shown(record, 100))
    assert any(line.startswith("ok to-b mn yes → no yes → no IPv6") for line in text)
    assert any(line.startswith("mn2 - - IPv6 65.5 ms") for line in text)


def test_long_lists_are_cut_and_counted() -> None:
    sa = samples.state("mn", "visited-a").sas[0]
    many = NodeState(
        sas=tuple(
            type(sa).model_validate(sa.model_dump() | {"spi": spi})
            for spi in range(256, 256 + MAX_CHANGES + 3)
        )
    )
    step = samples.steps()[0].model_copy(update={"before": {}, "after": {"ha": many}})
    text = lines(shown(changed(samples.record(), steps=(step,))))
    assert "and 3 more in record.json" in text


def test_counters_that_grew_are_shown() -> None:
    step = samples.counted(samples.steps()[0])
    text = lines(shown(changed(samples.record(), steps=(step,))))
    assert "counters of ha: unprotected +2, XfrmInNoStates +1" in text


def test_mirrored_sa_is_apart_from_the_one_it_mirrors() -> None:
    """Same SPI, tunnel and transport (design: signalling behind a NAT)."""
    sa = samples.state("mn", "visited-a").sas[0]
    idle = type(sa).model_validate(sa.model_dump() | {"mode": "tunnel", "purpose": ""})
    step = samples.steps()[0].model_copy(
        update={"before": {"mn": NodeState(sas=(idle,))}, "after": {"mn": NodeState(sas=(sa,))}}
    )
    assert [(c.mode, c.before is None, c.after is None) for c in changes(step)] == [
        ("tunnel", False, True),
        ("transport", True, False),
    ]


def test_udp_encapsulation_is_told_by_tunnel_sas() -> None:
    behind_nat = samples.state("ha", "visited-a")
    public = samples.state("ha", "visited-b")
    both = NodeState(sas=behind_nat.sas + public.sas)
    assert [udp_encapsulation(s) for s in (behind_nat, public, both, NodeState(), None)] == [
        "yes",
        "no",
        "mixed",
        "-",
        "-",
    ]
