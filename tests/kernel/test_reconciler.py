"""The reconciler on a real kernel: converges from everything, touches nothing that isn't ours."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.ipsec.plan import plan
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.kernel.live_state import LINGER_S
from dsmip_ipsec.kernel.reconciler import Reconciler, _request
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.constants import Message, Mode, Protocol
from dsmip_ipsec.xfrm.errors import XfrmError
from dsmip_ipsec.xfrm.exchange import Request, Result
from dsmip_ipsec.xfrm.notifications import Notification, Unread
from dsmip_ipsec.xfrm.socket import XfrmSocket
from dsmip_ipsec.xfrm.types import Algorithm, Encap, Key, Replay, State

IDS = Reqids(signalling=55501, mirror=55502, data=55503)
HOME, HOME4 = IPv6Address("2001:db8:100::100"), IPv4Address("203.0.113.200")
AGENT, AGENT4 = IPv6Address("2001:db8:100::1"), IPv4Address("203.0.113.2")
NAT, PUBLIC = IPv4Address("192.0.2.2"), IPv4Address("198.51.100.100")
HA = Peering(Role.HOME_AGENT, HOME, HOME4, AGENT, AGENT4, IDS)
BINDING = Binding(
    home_address=HOME, home_agent=AGENT, care_of_address=NAT, sequence=1, lifetime=600,
    registered_at=0, expires_at=600, home_agent_ipv4=AGENT4,
    ipv4_home_address=IPv4Interface(HOME4), outer=OuterAddress(NAT, 4191),
)  # fmt: skip

FOREIGN = (
    "xfrm policy add dir out src 10.9.0.0/16 dst 10.8.0.0/16 priority 1000 "
    "tmpl src 10.9.0.1 dst 10.8.0.1 proto esp reqid 9 mode tunnel"
)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_netns():
        yield


def charon_states(mobile: IPv4Address, *, encap: bool = True) -> list[State]:
    """Signalling (tunnel mode, to be mirrored) and data SAs as charon installs them."""
    return [
        State(
            destination=destination,
            source=source,
            spi=spi,
            mode=Mode.TUNNEL,
            reqid=reqid,
            aead=Algorithm("rfc4106(gcm(aes))", Key(bytes([spi & 0xFF] * 20)), 128),
            encap=Encap(4500, 4500) if encap else None,
            replay=Replay(window=64),
        )
        for spi, source, destination, reqid in (
            (0x1001, mobile, AGENT4, IDS.signalling),
            (0x1002, AGENT4, mobile, IDS.signalling),
            (0x2001, mobile, AGENT4, IDS.data),
            (0x2002, AGENT4, mobile, IDS.data),
        )
    ]


class Bench:
    def __init__(self) -> None:
        self.binding: Binding | None = BINDING
        self.contested = 0
        self.vanished: list[SecurityAssociation] = []
        self.xfrm = XfrmSocket()
        self.reconciler = self.new()

    def new(self) -> Reconciler:
        return Reconciler(
            self.wanted,
            (IDS,),
            on_contested=self.count_contested,
            on_vanished=self.vanished.extend,
        )

    def count_contested(self) -> None:
        self.contested += 1

    def wanted(self, _: Reqids, negotiated: Sequence[SecurityAssociation]) -> DesiredState:
        signalling = any(sa.reqid == IDS.signalling for sa in negotiated)
        return desired(HA, active=signalling, binding=self.binding, negotiated=negotiated)

    def install(self, states: Sequence[State]) -> None:
        for result in self.xfrm.request_all([verbs.add_state(state) for state in states]):
            result.unwrap()

    def delete(self, states: Sequence[State]) -> None:
        for result in self.xfrm.request_all([verbs.delete_state(state.id) for state in states]):
            result.unwrap()

    def mirrors(self) -> list[State]:
        ours = [state for state in self.xfrm.dump_states() if state.reqid == IDS.mirror]
        return [state for state in ours if state.protocol is Protocol.ESP]

    def ours(self) -> list[str]:
        """Our policies, as iproute2 has them."""
        return [text for text in _objects("policy") if "priority 5555" in text]


def _objects(what: str) -> list[str]:
    return [t for t in re.split(r"\n(?=src )", ip(f"xfrm {what}").strip()) if t]


async def until(true: Callable[[], object], what: str, timeout_s: float = 2.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not true():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.reconciler.close()
    bench.xfrm.close()


async def test_sas_of_charon_are_adopted_when_the_kernel_tells_of_them(bench: Bench) -> None:
    await bench.reconciler.open()
    bench.install(charon_states(NAT))
    await until(lambda: len(bench.mirrors()) == 2, "mirrors")
    origins = {s.spi: s for s in bench.xfrm.dump_states() if s.reqid == IDS.signalling}
    for mirror in bench.mirrors():
        assert mirror.mode is Mode.TRANSPORT
        assert mirror.encap is None
        assert mirror.aead == origins[mirror.spi].aead
        assert {mirror.source, mirror.destination} == {HOME, AGENT}
    outward = [text for text in bench.ours() if "dir out" in text and "mode tunnel" in text]
    assert len(outward) == 2
    assert all(f"tmpl src {AGENT4} dst {NAT}" in text for text in outward)


async def test_running_again_changes_nothing(bench: Bench) -> None:
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    before = bench.ours()
    assert len(before) == 14
    assert await bench.reconciler.reconcile() == ()
    assert bench.ours() == before


async def test_outbound_templates_follow_a_moved_sa(bench: Bench) -> None:
    """charon moves an SA by deleting and adding it, here across the switch of encapsulation."""
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    bench.delete(charon_states(NAT))
    bench.install(charon_states(PUBLIC, encap=False))
    await until(
        lambda: sum(f"tmpl src {AGENT4} dst {PUBLIC}" in text for text in bench.ours()) == 2,
        "templates at the new address",
    )
    assert not any(f"dst {NAT}" in text for text in bench.ours())


async def test_a_mirror_keeps_its_sequence_numbers_while_its_origin_is_moved(bench: Bench) -> None:
    """Made anew it would start at 1 again: replays for the peer, and an IV used twice."""
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    outbound = next(s for s in bench.mirrors() if s.source == AGENT)
    worn = replace(outbound, replay=Replay(window=64, oseq=41, extended=True))
    bench.xfrm.delete_state(outbound.id)
    bench.xfrm.add_state(worn)
    bench.delete(charon_states(NAT))
    await bench.reconciler.reconcile()  # just in between
    bench.install(charon_states(PUBLIC, encap=False))
    await bench.reconciler.reconcile()
    await asyncio.sleep(2 * LINGER_S)  # time in which a mistaken removal would happen
    await bench.reconciler.reconcile()
    (now,) = [s for s in bench.mirrors() if s.source == AGENT]
    assert now.replay.oseq == 41


async def test_a_mirror_goes_soon_after_its_origin(bench: Bench) -> None:
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    bench.binding = None
    bench.delete(charon_states(NAT))
    await until(lambda: not bench.mirrors() and not bench.ours(), "all gone")


async def test_a_rekeyed_origin_gets_a_mirror_of_its_own(bench: Bench) -> None:
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    fresh = [
        replace(state, spi=state.spi + 0x100)
        for state in charon_states(NAT)
        if state.reqid == IDS.signalling
    ]
    bench.install(fresh)
    await until(lambda: len(bench.mirrors()) == 4, "both pairs during the overlap")
    bench.delete([s for s in charon_states(NAT) if s.reqid == IDS.signalling])
    await until(lambda: {s.spi for s in bench.mirrors()} == {0x1101, 0x1102}, "only the new pair")


@pytest.mark.parametrize("verb", ["delete", "flush"])
async def test_what_someone_else_removes_comes_back(bench: Bench, verb: str) -> None:
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    before = sorted(bench.ours())
    if verb == "flush":
        ip("xfrm policy flush")
    else:
        ip(f"xfrm policy delete dir out src ::/0 dst {HOME}")
    await until(lambda: sorted(bench.ours()) == before, "policies are back")


async def test_foreign_state_is_never_touched(bench: Bench) -> None:
    ip(FOREIGN)
    ip(
        "xfrm state add src 10.9.0.1 dst 10.8.0.1 proto esp spi 0x1001 reqid 9 mode tunnel "
        "aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128"
    )
    foreign = [t for what in ("policy", "state") for t in _objects(what) if "reqid 9 " in t]
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    assert len(bench.ours()) == 14
    await bench.reconciler.close()
    assert bench.ours() == []
    assert bench.mirrors() == []
    left = [t for what in ("policy", "state") for t in _objects(what) if "reqid 9 " in t]
    assert left == foreign
    assert len(bench.xfrm.dump_states()) == 1 + 4  # the foreign one and charon's


async def test_after_a_crash_between_any_two_operations_the_next_run_converges(
    bench: Bench,
) -> None:
    """Each prefix of the plan is applied by hand, as a process would that died there."""
    bench.install(charon_states(NAT))
    found = [translate.state_back(s) for s in bench.xfrm.dump_states()]
    negotiated = [sa for sa in found if sa is not None]
    operations = plan(DesiredState(), bench.wanted(IDS, negotiated))
    assert len(operations) == 17
    complete: list[str] | None = None
    for count in range(len(operations) + 1):
        for result in bench.xfrm.request_all([_request(o) for o in operations[:count]]):
            result.unwrap()
        survivor = bench.new()
        await survivor.open()
        complete = complete or sorted(bench.ours())
        assert sorted(bench.ours()) == complete
        assert len(bench.mirrors()) == 2
        await survivor.close()
        assert bench.ours() == []
        assert not any(state.reqid == IDS.mirror for state in bench.xfrm.dump_states())


async def test_two_reconcilers_at_once_agree(bench: Bench) -> None:
    other = bench.new()
    await bench.reconciler.open()
    await other.open()
    try:
        for _ in range(5):
            bench.install(charon_states(NAT))
            await until(lambda: len(bench.ours()) == 14 and len(bench.mirrors()) == 2, "adopted")
            bench.delete(charon_states(NAT))
            bench.install(charon_states(PUBLIC, encap=False))
            await until(lambda: sum(f"dst {PUBLIC}" in text for text in bench.ours()) == 2, "moved")
            bench.delete(charon_states(PUBLIC, encap=False))
            await until(lambda: not bench.mirrors(), "mirrors gone")
    finally:
        await other.close()


async def test_a_thousand_moves_leave_no_more_than_one(bench: Bench) -> None:
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    here, there = charon_states(NAT), charon_states(PUBLIC, encap=False)
    counts = (len(bench.xfrm.dump_states()), len(bench.ours()))
    for _ in range(500):
        for old, new in ((here, there), (there, here)):
            bench.delete(old)
            bench.install(new)
            await bench.reconciler.reconcile()
    assert (len(bench.xfrm.dump_states()), len(bench.ours())) == counts
    assert sum(f"tmpl src {AGENT4} dst {NAT}" in text for text in bench.ours()) == 2


# Without MOBIKE the data SAs are ours to move (RFC 5555 §5.1) ----------------------------------

PLACES: dict[str, tuple[Binding, OuterAddress | None]] = {
    "public": (replace(BINDING, care_of_address=PUBLIC, outer=OuterAddress(PUBLIC, 4191)), None),
    "nat": (
        replace(
            BINDING,
            care_of_address=IPv4Address("10.0.0.2"),
            outer=OuterAddress(NAT, 40191),
            nat_detected=True,
            udp_encapsulation=True,
        ),
        None,
    ),
}
PLACES["nat, ESP heard"] = (PLACES["nat"][0], OuterAddress(NAT, 41234))


class Moving(Bench):
    """A home agent that moves SAs itself."""

    esp_care_of: OuterAddress | None = None

    def go(self, place: str) -> None:
        self.binding, self.esp_care_of = PLACES[place]

    def wanted(self, _: Reqids, negotiated: Sequence[SecurityAssociation]) -> DesiredState:
        return desired(
            replace(HA, moves_associations=True),
            active=True,
            binding=self.binding,
            negotiated=negotiated,
            esp_care_of=self.esp_care_of,
        )

    def data(self) -> dict[int, State]:
        return {s.spi: s for s in self.xfrm.dump_states() if s.reqid == IDS.data}


@pytest.fixture
async def moving() -> AsyncIterator[Moving]:
    bench = Moving()
    yield bench
    await bench.reconciler.close()
    bench.xfrm.close()


@pytest.mark.parametrize("old", PLACES)
@pytest.mark.parametrize("new", PLACES)
async def test_data_sas_move_and_keep_keys_and_replay_state(
    moving: Moving, old: str, new: str
) -> None:
    moving.go(old)
    moving.install(charon_states(NAT))
    await moving.reconciler.open()
    inbound, outbound = 0x2001, 0x2002
    worn = moving.data()
    for spi, counters in (
        (inbound, Replay(window=64, seq=77, bitmap=(0xFFFF, 0), extended=True)),
        (outbound, Replay(window=64, oseq=99, extended=True)),
    ):
        moving.xfrm.delete_state(worn[spi].id)
        moving.xfrm.add_state(replace(worn[spi], replay=counters))
    await moving.reconciler.reconcile()

    moving.go(new)
    await moving.reconciler.reconcile()

    address = PLACES[new][0].outer
    assert address is not None
    now = moving.data()
    assert set(now) == {inbound, outbound}
    assert (now[inbound].source, now[inbound].destination) == (address.address, AGENT4)
    assert (now[outbound].source, now[outbound].destination) == (AGENT4, address.address)
    port = {"nat": 4500, "nat, ESP heard": 41234}.get(new)
    assert now[outbound].encap == (Encap(4500, port) if port else None)
    assert now[inbound].encap == (Encap(port, 4500) if port else None)
    for spi, state in now.items():
        assert state.aead == worn[spi].aead
    assert now[inbound].replay.seq == 77
    assert now[inbound].replay.bitmap[0] == 0xFFFF
    assert 99 <= now[outbound].replay.oseq <= 99 + 64
    templates = [t for t in moving.ours() if "dir out" in t and "mode tunnel" in t]
    assert len(templates) == 2
    assert all(f"tmpl src {AGENT4} dst {address.address}" in text for text in templates)
    assert await moving.reconciler.reconcile() == ()


async def test_what_charon_moves_back_is_moved_again(moving: Moving) -> None:
    """docs/strongswan-notes.md: charon puts an SA that it finds back to where it thinks it is."""
    moving.go("public")
    moving.install(charon_states(NAT))
    await moving.reconciler.open()
    assert {s.encap for s in moving.data().values()} == {None}
    state = moving.data()[0x2002]
    moving.delete([state])
    moving.install([replace(state, destination=NAT, encap=Encap(4500, 4500))])
    await until(lambda: moving.data()[0x2002].destination == PUBLIC, "moved again")
    assert moving.data()[0x2002].encap is None


async def test_what_is_gone_is_told_but_not_what_moves(moving: Moving) -> None:
    moving.go("nat")
    moving.install(charon_states(NAT))
    await moving.reconciler.open()
    moving.go("public")
    await moving.reconciler.reconcile()
    gone = moving.data()[0x2001]
    moving.delete([gone])
    await until(lambda: moving.vanished, "it is told")
    assert [(sa.spi, sa.reqid) for sa in moving.vanished] == [(gone.spi, gone.reqid)]


@pytest.mark.parametrize(
    ("old", "new", "theirs"),
    [
        ("public", "nat", NAT),
        ("nat", "nat, ESP heard", NAT),
        ("nat", "public", PUBLIC),
        ("public", "nat", IPv4Address("192.0.2.77")),  # where charon has it for another moment
    ],
)
async def test_what_charon_moves_at_the_same_moment_is_not_lost(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, old: str, new: str, theirs: IPv4Address
) -> None:
    """charon deletes an SA just before, and adds it just after, the reconciler has moved it."""
    moving.go(old)
    moving.install(charon_states(NAT))
    await moving.reconciler.open()
    xfrm = moving.reconciler._xfrm
    assert xfrm is not None
    send = xfrm.request_all
    refused: list[XfrmError | None] = []

    def at_the_same_moment(asked: Iterable[Request[Any]]) -> list[Result[Any]]:
        requests = list(asked)
        if refused or not any(request.message is Message.NEWSA for request in requests):
            return send(requests)
        states = list(moving.data().values())
        moving.delete(states)
        results = send(requests)
        encap = Encap(4500, 4500) if theirs != PUBLIC else None
        for state in states:
            outbound = state.destination != AGENT4
            place = (AGENT4, theirs) if outbound else (theirs, AGENT4)
            add = verbs.add_state(
                replace(state, source=place[0], destination=place[1], encap=encap)
            )
            refused.append(moving.xfrm.request_all([add])[0].error)
        return results

    monkeypatch.setattr(xfrm, "request_all", at_the_same_moment)
    moving.go(new)
    await moving.reconciler.reconcile()
    assert len(refused) == 2
    assert any(error is not None and error.code == errno.EEXIST for error in refused)
    assert moving.contested
    binding, heard = PLACES[new]
    assert binding.outer is not None
    now = [state for state in moving.xfrm.dump_states() if state.reqid == IDS.data]
    assert {(s.spi, s.source, s.destination) for s in now} == {
        (0x2001, binding.outer.address, AGENT4),
        (0x2002, AGENT4, binding.outer.address),
    }
    assert len(now) == 2
    port = heard.port if heard is not None else 4500
    encaps = {0x2001: Encap(port, 4500), 0x2002: Encap(4500, port)}
    assert {s.spi: s.encap for s in now} == (encaps if new != "public" else dict.fromkeys(encaps))
    assert await moving.reconciler.reconcile() == ()


async def test_what_it_wrote_is_known_by_its_octets(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of policies and moved SAs in the octets that it was given, so nothing of it
    need be decoded; anything else that is told of them is."""
    moving.go("nat")
    await moving.reconciler.open()
    moving.install(charon_states(NAT))
    await moving.reconciler.reconcile()
    decoded: list[Message] = []
    read = Unread.read

    def counting(unread: Unread) -> Notification:
        decoded.append(unread.message)
        return read(unread)

    monkeypatch.setattr(Unread, "read", counting)
    moving.go("public")
    assert await moving.reconciler.reconcile()
    assert decoded == []
    assert {sa.replay_window for sa in moving.reconciler.associations} == {64}
    state = moving.data()[0x2002]
    moving.delete([state])
    moving.install([replace(state, replay=Replay(window=128))])
    await until(lambda: decoded == [Message.NEWSA], "another window")
    windows = {sa.spi: sa.replay_window for sa in moving.reconciler.associations}
    assert windows == {0x1001: 64, 0x1002: 64, 0x2001: 64, 0x2002: 128}


async def test_ten_thousand_handovers_leave_what_was_there(moving: Moving) -> None:
    """The number of SAs, policies, file descriptors, and the memory."""
    places = ["public", "nat"]
    moving.go("nat")
    moving.install(charon_states(NAT))
    await moving.reconciler.open()

    async def hand_over(count: int) -> None:
        for number in range(count):
            moving.go(places[number % 2])
            await moving.reconciler.reconcile()

    await hand_over(200)  # what is allocated once, is
    before = _resources(moving)
    await hand_over(10_000)
    after = _resources(moving)
    assert after[:3] == before[:3]
    assert after[3] - before[3] < 2_000, "KiB of memory grown"


def _resources(bench: Bench) -> tuple[int, int, int, int]:
    """SAs, policies of ours, file descriptors, and KiB of resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return len(bench.xfrm.dump_states()), len(bench.ours()), descriptors, pages * 4
