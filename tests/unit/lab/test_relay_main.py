"""When the relay delivers what it gets: rate, delay, jitter and loss as netem has them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dsmip_ipsec.lab.relay_main import Port, Relay, Wire
from dsmip_ipsec.lab.spec_models import Impairment

MS = 1_000_000


@pytest.fixture
def relay_of(tmp_path: Path) -> Callable[..., Relay]:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"generation": 0, "links": {}}))
    return lambda uniform=lambda a, b: (a + b) / 2: Relay(plan, uniform)


def wire(ports: int = 2, **impairment: float) -> Wire:
    made = Wire(Impairment.model_validate(impairment))
    made.ports = [Port(socket.socket(socket.AF_UNIX), made) for _ in range(ports)]
    return made


def frame(destination: int, source: int, length: int = 100) -> bytes:
    return bytes([2, 0, 0, 0, 0, destination, 2, 0, 0, 0, 0, source]).ljust(length, b"x")


def queued(relay: Relay) -> list[tuple[int, Port]]:
    return sorted(((due, target) for due, _, target, _, _ in relay._queue), key=lambda e: e[0])


def test_a_frame_is_due_by_when_it_arrived(relay_of: Callable[..., Relay]) -> None:
    relay, link = relay_of(), wire(delay_ms=20.0)
    relay.schedule(link.ports[0], frame(2, 1), 7 * MS)
    relay.schedule(link.ports[1], frame(1, 2), 9 * MS)
    assert queued(relay) == [(27 * MS, link.ports[1]), (29 * MS, link.ports[0])]


def test_a_rate_makes_frames_wait_for_one_another_in_one_direction(
    relay_of: Callable[..., Relay],
) -> None:
    relay, link = relay_of(), wire(rate_kbit=800)
    for port in (0, 0, 1):  # 100 octets take 1 ms
        relay.schedule(link.ports[port], frame(2, 1), 0)
    assert [due for due, _ in queued(relay)] == [1 * MS, 1 * MS, 2 * MS]


def test_jitter_reaches_both_sides_of_the_delay_and_never_the_past(
    relay_of: Callable[..., Relay],
) -> None:
    for uniform, due in ((min, 15 * MS), (max, 25 * MS)):
        relay, link = (
            relay_of(lambda a, b, pick=uniform: pick(a, b)),
            wire(delay_ms=20.0, jitter_ms=5.0, loss_percent=0.0),
        )
        relay.schedule(link.ports[0], frame(2, 1), 0)
        assert queued(relay)[0][0] == due
    relay, link = relay_of(lambda a, b: a), wire(delay_ms=1.0, jitter_ms=5.0)
    relay.schedule(link.ports[0], frame(2, 1), 3 * MS)
    assert queued(relay)[0][0] == 3 * MS


@pytest.mark.parametrize(("drawn", "passes"), [(4.9, False), (5.0, True)])
def test_loss(relay_of: Callable[..., Relay], drawn: float, passes: bool) -> None:
    relay, link = relay_of(lambda a, b: drawn), wire(loss_percent=5.0)
    relay.schedule(link.ports[0], frame(2, 1), 0)
    assert bool(queued(relay)) is passes


def test_a_hundred_percent_is_everything(relay_of: Callable[..., Relay]) -> None:
    relay, link = relay_of(lambda a, b: b * 0.999999), wire(loss_percent=100.0)
    relay.schedule(link.ports[0], frame(2, 1), 0)
    assert queued(relay) == []


def test_more_than_two_ends_learn_where_an_address_is(relay_of: Callable[..., Relay]) -> None:
    relay, link = relay_of(), wire(ports=3)
    relay.schedule(link.ports[0], frame(2, 1), 0)
    assert {target for _, target in queued(relay)} == set(link.ports[1:]), "not known yet: all"
    relay._queue.clear()
    relay.schedule(link.ports[2], frame(1, 3), 0)
    assert [target for _, target in queued(relay)] == [link.ports[0]]


def test_an_end_has_no_more_under_way_than_the_queue_holds(
    relay_of: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsmip_ipsec.lab.relay_main._QUEUE", 3)
    relay, link = relay_of(), wire(delay_ms=1000.0)
    for _ in range(5):
        relay.schedule(link.ports[0], frame(2, 1), 0)
    assert len(queued(relay)) == 3
