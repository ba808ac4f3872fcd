"""Moves of SAs, against a SAD of a few lines that answers as the kernel does."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from xfrm_samples import HAO_STATE, MEANINGS, STATES, TUNNEL_STATE

from dsmip_ipsec.xfrm import (
    Algorithm,
    Encap,
    Key,
    Move,
    Replay,
    Request,
    Result,
    Selector,
    State,
    StateId,
    XfrmError,
    decode,
    encode,
    moved_state,
    replace_state,
)
from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import Message
from dsmip_ipsec.xfrm.move import MoveInProgress, deal, moved_octets

_old = MEANINGS[TUNNEL_STATE]
assert isinstance(_old, State)
OLD: State = _old
V6 = ip_address("2001:db8::a"), ip_address("2001:db8::b")
V4 = {"source": ip_address("198.51.100.7"), "destination": ip_address("198.51.100.8")}
NEW_V6 = Move(OLD.id, *V6, encap=None)
NEW_PORT = Move(OLD.id, OLD.source, OLD.destination, encap=Encap(4500, 50000))


class Sad:
    """States by identity. ``refuses``: message types that fail, with the errno."""

    def __init__(self, *states: State) -> None:
        self.states = {state.id: state for state in states}
        self.refuses: dict[Message, list[int]] = {}

    def run(self, request: Request[Any]) -> Result[Any]:
        subject = request.subject
        refusals = self.refuses.get(request.message)
        code = refusals.pop(0) if refusals else 0
        if request.message == Message.GETSA:
            return Result(request, Key(encode.encode_state(OLD)))
        if request.message == Message.NEWSA:
            state = decode.decode_state(request.payload)
            code = code or (errno.EEXIST if state.id in self.states else 0)
            if not code:
                self.states[state.id] = state
        elif request.message == Message.DELSA and isinstance(subject, StateId):
            code = code or (0 if subject in self.states else errno.ESRCH)
            if not code:
                del self.states[subject]
        return Result(request, None, XfrmError(code, "refused") if code else None)

    def move(self, move: Move) -> Result[StateId]:
        running = MoveInProgress(move)
        asked: Iterable[Request[Any]] = running.read
        for step in (running.make, running.settle):
            asked = step([self.run(request) for request in asked])
        running.end([self.run(request) for request in asked])
        return running.result


def test_the_new_state_keeps_keys_counters_and_lifetimes() -> None:
    old = replace(OLD, current=replace(OLD.current, bytes=9, add_time=8), sequence=5)
    new = moved_state(old, NEW_V6)
    assert (new.source, new.destination, new.encap) == (NEW_V6.source, NEW_V6.destination, None)
    for name in ("aead", "replay", "lifetime", "current", "selector", "mark", "reqid", "extra"):
        assert getattr(new, name) == getattr(old, name)
    assert new.sequence == 0
    assert moved_state(old, NEW_PORT).encap == Encap(4500, 50000)
    assert moved_state(old, replace(NEW_V6, encap=Encap(1, 2))).encap == Encap(1, 2)


def test_it_is_added_first_where_the_kernel_can_hold_both() -> None:
    add, delete = replace_state(OLD, moved_state(OLD, NEW_V6))
    assert (add.message, delete.message) == (Message.NEWSA, Message.DELSA)
    delete, add = replace_state(OLD, moved_state(OLD, NEW_PORT))
    assert (delete.message, add.message) == (Message.DELSA, Message.NEWSA)


@pytest.mark.parametrize("move", [NEW_V6, NEW_PORT])
def test_a_move_leaves_the_new_state_alone(move: Move) -> None:
    sad = Sad(OLD)
    assert sad.move(move).unwrap() == moved_state(OLD, move).id
    assert list(sad.states.values()) == [moved_state(OLD, move)]


@pytest.mark.parametrize("move", [NEW_V6, NEW_PORT])
def test_a_refused_addition_leaves_the_old_state(move: Move) -> None:
    sad = Sad(OLD)
    sad.refuses[Message.NEWSA] = [errno.EPROTONOSUPPORT]
    error = sad.move(move).error
    assert error is not None
    assert error.code == errno.EPROTONOSUPPORT
    assert list(sad.states.values()) == [OLD]


def test_an_old_state_that_can_not_be_put_back_is_told() -> None:
    sad = Sad(OLD)
    sad.refuses[Message.NEWSA] = [errno.ENOMEM, errno.ENOBUFS]
    assert "couldn't be put back" in str(sad.move(NEW_PORT).error)
    assert not sad.states


@pytest.mark.parametrize("move", [NEW_V6, NEW_PORT])
def test_a_state_that_somebody_else_moves_as_well_is_not_lost(move: Move) -> None:
    """They deleted it, and their addition fails, since ours is there already."""
    sad = Sad()  # what was read is gone before we delete it
    error = sad.move(move).error
    assert error is not None
    assert error.code == errno.ESRCH
    assert list(sad.states.values()) == [moved_state(OLD, move)]


def test_what_was_not_found_is_not_moved() -> None:
    running = MoveInProgress(NEW_V6)
    gone = Result(running.read[0], None, XfrmError(errno.ESRCH, "gone"))
    assert (running.make([gone]), running.settle([])) == ((), ())
    running.end([])
    assert running.result.error is gone.error


@pytest.mark.parametrize("octets", STATES)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"encap": None},
        {"encap": Encap(1, 2)},
        {"selector": Selector()},
        {"selector": Selector(ip_network("10.0.0.0/8"), ip_network("10.0.0.0/8"))},
        {"skip": 9},
        V4,
    ],
)
def test_the_fast_path_is_the_slow_one(octets: bytes, change: dict[str, Any]) -> None:
    state = decode.decode_state(octets)
    addresses = {"source": V6[0], "destination": V6[1]}
    move = Move(state.id, **(addresses | change))
    if change == V4 and octets == HAO_STATE:
        for move_it in (lambda: moved_octets(octets, move), lambda: moved_state(state, move)):
            with pytest.raises(XfrmError, match="care-of address"):
                move_it()
        return
    fast = decode.decode_state(moved_octets(octets, move))
    slow = moved_state(state, move)
    assert fast == replace(slow, last_used=0)
    assert fast == decode.decode_state(encode.encode_state(replace(slow, last_used=0)))


def test_the_fast_path_keeps_what_it_does_not_know() -> None:
    unknown = c.pack_attribute(60, b"abcde")
    assert (
        dict(c.iterate_attributes(moved_octets(STATES[1], NEW_V6), 224))[9]
        == (
            STATES[1][160:192]  # lifetimes so far: the kernel takes them from LTIME_VAL only
        )
    )
    moved = moved_octets(STATES[1] + unknown, NEW_V6)
    assert unknown in moved
    authentication = [n for n, _ in c.iterate_attributes(moved, 224) if n in (1, 20)]
    assert authentication == [20]  # the kernel tells the key twice


def test_the_fast_path_refuses_what_is_broken() -> None:
    for octets in (b"", STATES[1][:100], STATES[1][:230]):
        with pytest.raises(XfrmError):
            moved_octets(octets, NEW_V6)
    with pytest.raises(XfrmError):
        moved_octets(STATES[1], replace(NEW_V6, source=ip_address("192.0.2.1")))


def test_skipped_sequence_numbers() -> None:
    assert moved_state(OLD, replace(NEW_V6, skip=100)).replay.oseq == 107
    extended = replace(OLD, replay=Replay(64, oseq=0xFFFFFFFF, oseq_hi=3, extended=True))
    moved = moved_state(extended, replace(NEW_V6, skip=2)).replay
    assert (moved.oseq_hi, moved.oseq) == (4, 1)
    last = replace(OLD, replay=replace(OLD.replay, oseq=0xFFFFFFFF))
    with pytest.raises(XfrmError, match="run out"):
        moved_state(last, replace(NEW_V6, skip=1))


def test_hidden_keys_are_not_installed() -> None:
    hidden = replace(OLD, aead=Algorithm("rfc4106(gcm(aes))", Key(bytes(20)), 128))
    with pytest.raises(XfrmError, match="hides the keys"):
        replace_state(hidden, moved_state(hidden, NEW_V6))
    with pytest.raises(XfrmError, match="hides the keys"):
        moved_octets(encode.encode_state(hidden), NEW_V6)
    null = replace(OLD, aead=None, encryption=Algorithm("ecb(cipher_null)", Key(b"")))
    assert len(replace_state(null, moved_state(null, NEW_V6))) == 2


def test_each_move_gets_its_own_results() -> None:
    moves = [MoveInProgress(NEW_PORT), MoveInProgress(NEW_V6)]
    read = [Result(request, Key(STATES[2])) for move in moves for request in move.read]
    asked = [move.make([result]) for move, result in zip(moves, read, strict=True)]
    results = [Result(request) for requests in asked for request in requests]
    dealt = [[result.request for result in own] for _, own in deal(moves, asked, results)]
    assert dealt == [list(requests) for requests in asked]
    assert [len(requests) for requests in asked] == [2, 1]


def test_what_was_read_does_not_show() -> None:
    (request,) = MoveInProgress(NEW_V6).read
    assert request.decode is not None
    assert repr(Result(request, request.decode(STATES[2]))).count("<Key of") == 1
