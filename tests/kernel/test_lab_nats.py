"""What each kind of NAT lets in, and which ports it gives: asked from both sides (RFC 4787 §4, §5;
RFC 3489 §5's names)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab_support import attach, built, inside

from dsmip_ipsec.lab.spec import parse
from dsmip_ipsec.lab.topology import Topology

ONE, OTHER = "192.0.2.200", "192.0.2.201"
OUTSIDE, HOST, PORT = "192.0.2.2", "10.0.0.100", 4191
TIMEOUT_S = 2
DEADLINE_S = 10.0

LAB = """
[lab]
name = "nat"
[nodes]
mn = {{ role = "mobile_node", home_address = "2001:db8:100::100" }}
ha = {{ role = "home_agent", home_link = "home", ipv4_address = "203.0.113.2" }}
core = {{ role = "router" }}
cn = {{ role = "correspondent_node" }}
[nodes.nat]
role = "nat"
inside = "private"
outside = "access"
{nat}
[links]
private.ends = {{ nat = ["10.0.0.1/24"], mn = ["10.0.0.100/24"] }}
access.ends = {{ core = ["192.0.2.1/30"], nat = ["192.0.2.2/30"] }}
backbone.ends = {{ core = ["203.0.113.1/30"], ha = ["203.0.113.2/30"] }}
home.ends = {{ ha = ["2001:db8:100::1/64"] }}
internet.ends = {{ core = ["192.0.2.129/25"], cn = ["192.0.2.200/25", "192.0.2.201/25"] }}
"""


@dataclass(frozen=True)
class Kind:
    """``admits``: what comes in to a port that has sent to port 9001 of ONE only."""

    settings: str
    preserves: bool
    admits: frozenset[str]


ANSWER = "from where it sent to"
OTHER_PORT = "from another port there"
OTHER_HOST = "from somebody else"
KINDS = {
    "full cone": Kind(
        'mapping = "preserve"\nfiltering = "endpoint-independent"',
        True,
        frozenset({ANSWER, OTHER_PORT, OTHER_HOST}),
    ),
    "restricted cone": Kind(
        'mapping = "preserve"\nfiltering = "address-dependent"',
        True,
        frozenset({ANSWER, OTHER_PORT}),
    ),
    "port restricted cone": Kind('mapping = "preserve"', True, frozenset({ANSWER})),
    "symmetric": Kind('mapping = "random"', False, frozenset({ANSWER})),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def topology(kind: Kind) -> Iterator[Topology]:
    with built(parse(LAB.format(nat=f"{kind.settings}\nudp_timeout_s = {TIMEOUT_S}"))) as topology:
        attach(topology, "private")
        yield topology


def udp(topology: Topology, node: str, address: str, port: int) -> socket.socket:
    def make() -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.settimeout(DEADLINE_S)
        bound.bind((address, port))
        return bound

    return inside(topology, node, make)


def seen(outside: socket.socket, expected: bytes) -> tuple[str, int]:
    """Where a datagram came from."""
    data: bytes
    where: tuple[str, int]
    data, where = outside.recvfrom(100)
    assert data == expected
    return where


def test_who_gets_in(kind: Kind, topology: Topology) -> None:
    host = udp(topology, "mn", HOST, PORT)
    answering = udp(topology, "cn", ONE, 9001)
    host.sendto(b"out", (ONE, 9001))
    mapped = seen(answering, b"out")
    assert mapped[0] == OUTSIDE
    assert (mapped[1] == PORT) is kind.preserves
    silent = udp(topology, "mn", HOST, mapped[1] + 1)  # listens, but has sent nothing
    silent.setblocking(False)
    for sender, label in (
        (udp(topology, "cn", OTHER, 9001), OTHER_HOST),
        (udp(topology, "cn", ONE, 9002), OTHER_PORT),
        (answering, ANSWER),  # the last, and admitted by all
    ):
        sender.sendto(label.encode(), (OUTSIDE, mapped[1] + 1))
        sender.sendto(label.encode(), mapped)
    found = set()
    while ANSWER not in found:
        found.add(host.recv(100).decode())
    assert found == kind.admits
    with pytest.raises(BlockingIOError):
        silent.recv(100)


@pytest.mark.parametrize("kind", ["full cone", "restricted cone"], indirect=True)
def test_answers_to_whom_it_let_in_leave_by_the_same_port(topology: Topology) -> None:
    host = udp(topology, "mn", HOST, PORT)
    first, second = (udp(topology, "cn", ONE, port) for port in (9001, 9002))
    host.sendto(b"out", (ONE, 9001))
    mapped = seen(first, b"out")
    second.sendto(b"in", mapped)
    assert host.recvfrom(100) == (b"in", (ONE, 9002))
    host.sendto(b"back", (ONE, 9002))
    assert seen(second, b"back") == mapped


def test_mappings_of_one_port(kind: Kind, topology: Topology) -> None:
    """A cone gives a port the same mapping for all destinations, a symmetric NAT another each."""
    host = udp(topology, "mn", HOST, PORT)
    mappings = set()
    for address, port in ((ONE, 9001), (ONE, 9002), (OTHER, 9001)):
        outside = udp(topology, "cn", address, port)
        host.sendto(b"out", (address, port))
        mappings.add(seen(outside, b"out"))
    assert len(mappings) == (1 if kind.preserves else 3)


def test_a_mapping_ends(topology: Topology) -> None:
    """Not at once, but when nothing was sent for its time. Each attempt asks a mapping that has
    had no traffic since it was made: an answer would prolong it."""
    outside = udp(topology, "cn", ONE, 9001)
    mapped: list[tuple[socket.socket, tuple[str, int], float]] = []
    for port in range(5000, 5040):
        host = udp(topology, "mn", HOST, port)
        sent = time.monotonic()
        host.sendto(b"out", (ONE, 9001))
        mapped.append((host, seen(outside, b"out"), sent))
    kept = udp(topology, "mn", HOST, PORT)
    for attempt, (host, mapping, sent) in enumerate(reversed(mapped)):
        kept.sendto(b"open", (ONE, 9001))
        open_one = seen(outside, b"open")
        outside.sendto(b"in", mapping)
        outside.sendto(b"afterwards", open_one)
        assert kept.recv(100) == b"afterwards"
        host.setblocking(False)
        try:
            assert host.recv(100) == b"in"
        except BlockingIOError:
            assert attempt > 0
            assert time.monotonic() > sent + TIMEOUT_S - 0.1
            return
        time.sleep(TIMEOUT_S / 10)
    pytest.fail("no mapping has ended")
