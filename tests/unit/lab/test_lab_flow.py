"""The analysis of probe series, on series made by hand."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.flow import FlowSpec, NodeLog, Series, analyse, flows, merge
from dsmip_ipsec.lab.timeline import timeline

MS = 1_000_000
START = 5_000 * MS
INTERVAL = 5

SPEC = FlowSpec(
    number=0,
    name="ipv4-up",
    direction="up",
    source=ip_address("192.0.2.1"),
    destination=ip_address("192.0.2.2"),
    port=7777,
    interval_ms=INTERVAL,
    size=64,
)


def series(
    count: int = 100,
    lost: set[int] | None = None,
    delay_ms: float = 20,
    delays: dict[int, float] | None = None,
    unsent: set[int] | None = None,
) -> Series:
    """``count`` probes, one each 5 ms, that take ``delay_ms`` or what ``delays`` says."""
    sent = [(n, START + n * INTERVAL * MS) for n in range(count) if n not in (unsent or set())]
    received = [
        (n, at, at + round((delays or {}).get(n, delay_ms) * MS))
        for n, at in sent
        if n not in (lost or set())
    ]
    return Series(SPEC, tuple(sent), tuple(sorted(received, key=lambda probe: probe[2])))


def test_nothing_happens() -> None:
    found = analyse(series())
    assert (found.sent, found.received, found.lost) == (100, 100, 0)
    assert (found.duplicates, found.reordered) == (0, 0)
    assert found.interruption_ms == 0
    assert found.outage_ms == 0
    assert found.sender_stall_ms == 0
    assert (found.delay_ms_min, found.delay_ms_max) == (20, 20)


@pytest.mark.parametrize("first", [0, 40, 90])
def test_ten_lost_probes_are_50_ms_wherever_they_are(first: int) -> None:
    """At the start, in the middle, at the end: an interruption at a window's edge counts whole."""
    found = analyse(series(lost=set(range(first, first + 10))))
    assert found.lost == 10
    assert found.interruption_ms == pytest.approx(50)
    assert found.outage_ms == pytest.approx(50)


def test_the_longest_counts_not_the_sum() -> None:
    found = analyse(series(lost={10, 11, 12, 50, 70, 71}))
    assert found.lost == 6
    assert found.interruption_ms == pytest.approx(15)
    assert found.outage_ms == pytest.approx(15)


def test_held_up_packets_interrupt_without_loss() -> None:
    """Ten probes kept back and let go together: none is lost, but the receiver waited."""
    held = {n: 20.0 + (50 - n) * INTERVAL for n in range(40, 50)}
    found = analyse(series(delays=held))
    assert (found.lost, found.reordered) == (0, 0)
    assert found.interruption_ms == pytest.approx(50)
    assert found.outage_ms == 0
    assert found.delay_ms_max == pytest.approx(70)
    # Seen from a window that starts with them as well.
    assert analyse(series(delays=held), START + 200 * MS).interruption_ms == pytest.approx(50)


def test_longer_path_is_an_interruption_by_the_difference() -> None:
    slower = dict.fromkeys(range(50, 100), 60.0)
    assert analyse(series(delays=slower)).interruption_ms == pytest.approx(40)


def test_shorter_path_reorders_and_does_not_interrupt() -> None:
    faster = dict.fromkeys(range(50, 100), 20.0)
    found = analyse(series(delay_ms=60, delays=faster))
    assert found.interruption_ms == 0
    assert found.reordered == 7  # those sent less than 40 ms before the change
    assert found.lost == 0


def test_duplicates_are_counted_once_as_received() -> None:
    plain = series(count=10)
    twice = (*plain.received, (4, START + 20 * MS, START + 90 * MS))
    found = analyse(Series(SPEC, plain.sent, twice))
    assert (found.received, found.duplicates, found.lost) == (10, 1, 0)


def test_nothing_arrives() -> None:
    found = analyse(series(count=10, lost=set(range(10))))
    assert found.lost == 10
    assert found.interruption_ms is None
    assert found.outage_ms == pytest.approx(50)
    assert found.delay_ms_min is None


def test_nothing_was_sent() -> None:
    found = analyse(Series(SPEC, (), ()))
    assert (found.sent, found.lost, found.interruption_ms) == (0, 0, None)


@pytest.mark.parametrize(
    ("lost", "interruption"),
    [
        (set(), 0),
        ({36, 37, 38, 39}, 20),  # lost, then not sent: the network's part
        ({38, 39, 50, 51, 52}, 25),
        ({70, 71}, 10),  # elsewhere
    ],
)
def test_sender_that_did_not_send_is_told_apart(lost: set[int], interruption: float) -> None:
    found = analyse(series(unsent=set(range(40, 50)), lost=lost))
    assert (found.sent, found.lost) == (90, len(lost))
    assert found.interruption_ms == pytest.approx(interruption)
    assert found.sender_stall_ms == pytest.approx(50)


@pytest.mark.parametrize("first", [0, 45])
def test_sender_that_did_not_send_at_the_edge_of_a_window(first: int) -> None:
    whole = series(unsent=set(range(38, 45)), lost=set(range(45, 49)))
    found = analyse(whole, START + first * INTERVAL * MS)
    assert found.lost == 4
    assert found.interruption_ms == pytest.approx(20)


def test_refused_probes_are_lost_and_counted() -> None:
    plain = series(count=20, lost={3, 4, 9})
    found = analyse(Series(SPEC, plain.sent, plain.received, frozenset({3, 4, 77})))
    assert (found.lost, found.refused) == (3, 2)


def test_window_takes_probes_by_their_time_of_sending() -> None:
    whole = series(lost={10, 50, 51, 52, 90})
    start, end = START + 40 * INTERVAL * MS, START + 80 * INTERVAL * MS
    found = analyse(whole, start, end)
    assert (found.sent, found.received, found.lost) == (40, 37, 3)
    assert found.interruption_ms == pytest.approx(15)
    # A probe sent in the window that arrives after it is not lost.
    late = analyse(series(delays={79: 500}), start, end)
    assert late.lost == 0
    assert late.interruption_ms == pytest.approx(480)


def test_windows_are_half_open() -> None:
    found = [analyse(series(), None, START + 5 * MS), analyse(series(), START + 5 * MS, None)]
    assert [statistics.sent for statistics in found] == [1, 99]


# Descriptions and files --------------------------------------------------------------------------


def test_flows_of_two_families_and_directions() -> None:
    home = [ip_address("2001:db8::1"), ip_address("192.0.2.1")]
    peer = [ip_address("192.0.2.9"), ip_address("2001:db8::9")]
    found = flows(home, peer, interval_ms=5)
    assert [(f.name, str(f.source), str(f.destination)) for f in found] == [
        ("mn-ipv6-up", "2001:db8::1", "2001:db8::9"),
        ("mn-ipv6-down", "2001:db8::9", "2001:db8::1"),
        ("mn-ipv4-up", "192.0.2.1", "192.0.2.9"),
        ("mn-ipv4-down", "192.0.2.9", "192.0.2.1"),
    ]
    assert len({flow.number for flow in found}) == 4
    assert [FlowSpec.from_json(json.loads(json.dumps(f.to_json()))) for f in found] == found
    assert flows(home, peer[:1], interval_ms=5)[0].family == "ipv4"


@pytest.mark.parametrize("value", [{}, {"source": "x"}, {**SPEC.to_json(), "more": 1}])
def test_broken_descriptions(value: dict[str, object]) -> None:
    with pytest.raises(LabError, match="not a flow's description"):
        FlowSpec.from_json(value)


def test_logs_of_both_ends_are_put_together(tmp_path: Path) -> None:
    mobile = NodeLog({"ipv4-up": [(0, 10), (1, 20)]}, {"ipv4-up": [1]}, {"ipv4-down": []})
    peer = NodeLog({"ipv4-down": []}, {}, {"ipv4-up": [(0, 10, 15)]})
    logs = []
    for number, log in enumerate((mobile, peer)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(log.to_json()))
        logs.append(NodeLog.load(path))
    assert logs == [mobile, peer]
    (found,) = merge([SPEC], logs)
    assert found.sent == ((0, 10), (1, 20))
    assert found.received == ((0, 10, 15),)
    assert found.refused == {1}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "sent": {"a": [1]}}', "null"]
)
def test_broken_result_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "result").write_text(text)
    with pytest.raises(LabError):
        NodeLog.load(tmp_path / "result")
    with pytest.raises(LabError, match="no flow results"):
        NodeLog.load(tmp_path / "absent")


# Over the whole run ------------------------------------------------------------------------------


def test_a_timeline_shows_losses_and_waits_when_they_were() -> None:
    """A second of probes, of which 50 to 59 are lost: sent at 250 to 295 ms."""
    found = timeline(series(200, lost=set(range(50, 60))), "mn", START - 1000 * MS)
    assert (found.start_s, found.bin_ms) == (1.0, 100)
    assert found.sent == (20,) * 10 + (0,)
    assert found.lost == (0, 0, 10, *(0,) * 8)
    # The next arrives at 300 + 20 ms, 55 ms after the one before.
    assert found.wait_ms == (5.0, 5.0, 5.0, 55.0, *(5.0,) * 7)


def test_a_timeline_of_nothing() -> None:
    assert timeline(series(0), "mn", START).sent == ()
    found = timeline(series(20, lost=set(range(20))), "mn", START)
    assert (found.sent, found.lost, found.wait_ms) == ((20,), (20,), (0.0,))


def test_a_timeline_counts_a_probe_once() -> None:
    one = series(20)
    twice = Series(SPEC, one.sent, tuple(sorted([*one.received] * 2, key=lambda p: p[2])))
    assert timeline(twice, "mn", START) == timeline(one, "mn", START)
