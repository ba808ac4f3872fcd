"""What goes wrong around a reconciler: lost notifications, foreign SAs in the way, refusals. It
converges, or says what is in the way; policies that block stay either way."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from test_reconciler import AGENT, HA, HOME, IDS, NAT, Bench, charon_states, until
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.esp import EspSender
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.kernel.translate import state_back
from dsmip_ipsec.mobility.types import OuterAddress
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.constants import Mode, Protocol, StateFlag
from dsmip_ipsec.xfrm.types import Algorithm, Encap, Key, Replay, Selector, State


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_netns():
        yield


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.reconciler.close()
    bench.xfrm.close()


def foreign(number: int) -> State:
    return State(
        destination=IPv4Address("10.8.0.1"),
        source=IPv4Address("10.9.0.1"),
        spi=0x9000 + number,
        mode=Mode.TUNNEL,
        reqid=9,
        aead=Algorithm("rfc4106(gcm(aes))", Key(bytes(19) + b"1"), 128),
    )


async def test_lost_notifications_are_made_up_for_by_reading(bench: Bench) -> None:
    """ENOBUFS: more happens than the monitor's buffer holds, changes of ours among it."""
    await bench.reconciler.open()
    bench.install(charon_states(NAT))
    await until(lambda: len(bench.mirrors()) == 2, "mirrors")
    monitor = bench.reconciler._monitor
    assert monitor is not None
    with socket.socket(fileno=monitor.fileno()) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        shared.detach()
    reads = 0
    read = bench.reconciler._read

    def counted() -> None:
        nonlocal reads
        reads += 1
        read()

    bench.reconciler._read = counted  # type: ignore[method-assign]
    # All in one go, before the reconciler's turn: others' SAs, our policies gone, an SA rekeyed.
    states = charon_states(NAT)
    fresh = [replace(state, spi=state.spi + 0x10) for state in states]
    asked = [verbs.add_state(foreign(number)) for number in range(200)]
    asked += [verbs.delete_state(state.id) for state in states]
    asked += [verbs.add_state(state) for state in fresh]
    for result in bench.xfrm.request_all(asked):
        result.unwrap()
    bench.xfrm.flush_policies()
    await until(
        lambda: {mirror.spi for mirror in bench.mirrors()} == {0x1011, 0x1012}, "mirrors of the new"
    )
    await until(lambda: len(bench.ours()) >= 14, f"our policies: {bench.ours()}")
    assert reads > 0, "nothing was lost, so nothing is shown"
    assert sum(state.reqid == 9 for state in bench.xfrm.dump_states()) == 200


async def test_foreign_sa_in_a_mirrors_place_is_named_and_left_alone(bench: Bench) -> None:
    """Somebody else's SA has the mirror's destination and SPI."""
    theirs = replace(
        foreign(0), destination=AGENT, source=HOME, spi=0x1001, mode=Mode.TRANSPORT,
        selector=Selector(),
    )  # fmt: skip
    bench.install([theirs])
    bench.install(charon_states(NAT))
    with pytest.raises(KernelError) as caught:
        await bench.reconciler.open()
    assert "0x00001001" in caught.value.message
    assert "another program" in caught.value.hint
    (there,) = [state for state in bench.xfrm.dump_states() if state.spi == 0x1001 and
                state.destination == AGENT]  # fmt: skip
    assert there.reqid == 9, "it was touched"
    bench.xfrm.delete_state(theirs.id)
    await bench.reconciler.reconcile()
    assert len(bench.mirrors()) == 2


async def test_one_mobile_nodes_trouble_is_not_the_others(bench: Bench) -> None:
    """With a foreign SA in the place of one's mirror, the other one's are made; the first one's
    when that SA is gone."""
    others = Reqids(signalling=55511, mirror=55512, data=55513)
    home = HOME + 1
    peerings = {IDS: HA, others: replace(HA, home_address=home, reqids=others)}

    def wanted(ids: Reqids, negotiated: Sequence[SecurityAssociation]) -> DesiredState:
        return desired(peerings[ids], active=bool(negotiated), binding=None, negotiated=negotiated)

    reconciler = Reconciler(wanted, (IDS, others))
    await reconciler.open()
    theirs = replace(
        foreign(0), destination=AGENT, source=HOME, spi=0x1001, mode=Mode.TRANSPORT,
        selector=Selector(),
    )  # fmt: skip
    bench.install([theirs])
    signalling = [state for state in charon_states(NAT) if state.reqid == IDS.signalling]
    bench.install(signalling)
    bench.install(
        [replace(state, reqid=others.signalling, spi=state.spi + 0x100) for state in signalling]
    )

    def mirrors(ids: Reqids) -> int:
        ours = [state for state in bench.xfrm.dump_states() if state.reqid == ids.mirror]
        return sum(state.protocol is Protocol.ESP for state in ours)

    await until(lambda: mirrors(others) == 2, "the other node's mirrors")
    assert mirrors(IDS) < 2
    assert any(f"src {AGENT}/128 dst {HOME}/128" in text for text in bench.ours()), "in the clear"
    bench.xfrm.delete_state(theirs.id)
    await until(lambda: mirrors(IDS) == 2, "the first node's mirrors", timeout_s=5)
    await reconciler.close()


async def test_policies_deleted_one_by_one_by_someone_else_come_back(bench: Bench) -> None:
    bench.install(charon_states(NAT))
    await bench.reconciler.open()
    before = sorted(bench.ours())
    for policy in bench.xfrm.dump_policies():
        bench.xfrm.delete_policy(policy.id)
    await until(lambda: sorted(bench.ours()) == before, "all policies are back")


async def test_mirror_of_an_sa_with_extended_sequence_numbers(bench: Bench) -> None:
    """ESN goes on in the mirror, with a window of its own."""
    states = [
        replace(state, flags=StateFlag.ESN, replay=Replay(window=128))
        for state in charon_states(NAT)
    ]
    bench.install(states)
    await bench.reconciler.open()
    for mirror in bench.mirrors():
        assert StateFlag.ESN in mirror.flags
        assert mirror.replay.window == 128
    assert len(bench.mirrors()) == 2
    assert await bench.reconciler.reconcile(verify=True) == (), "the same again"


async def test_a_nats_new_port_is_told(bench: Bench) -> None:
    """XFRM_MSG_MAPPING, made by a real packet from another port (RFC 5555 §5.1)."""
    heard: list[tuple[Reqids, OuterAddress]] = []
    reconciler = Reconciler(bench.wanted, (IDS,), lambda *what: heard.append(what))
    agent, here = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.10")
    for address in (agent, here):
        ip(f"addr add {address}/32 dev lo")
    inbound = State(
        destination=agent, source=here, spi=0x3001, mode=Mode.TUNNEL, reqid=IDS.data,
        aead=Algorithm("rfc4106(gcm(aes))", Key(bytes(range(20))), 128),
        encap=Encap(40000, 4500), replay=Replay(window=64),
    )  # fmt: skip
    bench.install([inbound])
    await reconciler.open()
    model = state_back(inbound)
    assert model is not None
    packet = EspSender(model).seal(bytes(40), 59)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.setsockopt(socket.IPPROTO_UDP, 100, 2)  # UDP_ENCAP, UDP_ENCAP_ESPINUDP
        listener.bind((str(agent), 4500))
        sender.bind((str(here), 50000))
        sender.sendto(packet, (str(agent), 4500))
        await until(lambda: heard != [], "the mapping")
    assert heard[0] == (IDS, OuterAddress(here, 50000))
    await reconciler.close()
