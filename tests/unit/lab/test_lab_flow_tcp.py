"""Records in a TCP connection, over the loopback: whole, in order, and again after it broke."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from dsmip_ipsec.lab.flow_tcp import Connection

SIZE = 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, Connection]]:
    port, address = free_port(), request.param
    far = Connection(address, address, port, SIZE, listens=True)
    near = Connection(address, address, port, SIZE, listens=False)
    yield near, far
    for end in (near, far):
        for one in end.sockets():
            one.close()


def record(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


def until(ends: tuple[Connection, Connection], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        for end in ends:
            end.tick()
        select.select([s for end in ends for s in end.sockets()], [], [], 0.01)


def sends(end: Connection, data: bytes) -> bool:
    try:
        end.send(data)
    except OSError:
        return False
    return True


def test_records_arrive_whole_and_in_order(ends: tuple[Connection, Connection]) -> None:
    near, far = ends
    with pytest.raises(OSError, match="no connection"):
        near.send(record(0))
    until(ends, lambda: sends(near, record(0)))
    got: list[bytes] = []
    # More than the kernel holds: what it doesn't take is refused, and never half sent.
    taken, number = [0], 1
    while len(taken) == number:
        if sends(near, record(number)):
            taken.append(number)
        number += 1
    assert number > 100

    def all_there() -> bool:
        got.extend(far.receive())
        return len(got) >= len(taken)

    until(ends, all_there)
    assert got == [record(sent) for sent in taken]
    # And the other way in the same connection.
    until(ends, lambda: sends(far, record(7)))
    back: list[bytes] = []

    def answered() -> bool:
        back.extend(near.receive())
        return bool(back)

    until(ends, answered)
    assert back == [record(7)]


def test_a_broken_connection_is_made_again(ends: tuple[Connection, Connection]) -> None:
    near, far = ends
    until(ends, lambda: sends(near, record(1)))
    until(ends, lambda: list(far.receive()) == [record(1)])
    near.drop()
    got: list[bytes] = []
    until(ends, lambda: sends(near, record(2)))

    def arrived() -> bool:
        got.extend(far.receive())
        return bool(got)

    until(ends, arrived)
    assert got == [record(2)]


def test_nobody_else_is_let_in() -> None:
    port = free_port()
    far = Connection("127.0.0.1", "127.0.0.1", port, SIZE, listens=True)
    stranger = Connection("127.0.0.2", "127.0.0.1", port, SIZE, listens=False)
    ends = (stranger, far)
    try:
        deadline = time.monotonic() + 1
        until(ends, lambda: time.monotonic() > deadline or (sends(stranger, record(1)) and False))
        assert list(far.receive()) == []
        assert not sends(far, record(2))
    finally:
        for end in ends:
            for one in end.sockets():
                one.close()
