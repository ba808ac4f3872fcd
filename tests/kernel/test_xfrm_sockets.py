"""Batches, moves and notifications on a real kernel, blocking and in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TypeVar

import pytest
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.xfrm import (
    Algorithm,
    AsyncXfrmSocket,
    CurrentLifetime,
    Direction,
    Encap,
    Group,
    Key,
    KmAddress,
    Lifetime,
    Migration,
    Mode,
    Move,
    Notification,
    Policy,
    PolicyType,
    Protocol,
    Replay,
    Selector,
    State,
    StateFlag,
    StateId,
    Template,
    XfrmError,
    XfrmMonitor,
    XfrmSocket,
    requests,
)
from dsmip_ipsec.xfrm import notifications as said
from dsmip_ipsec.xfrm.constants import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Message
from dsmip_ipsec.xfrm.messages import xfrm_dump, xfrm_usersa_id

N = TypeVar("N", bound=Notification)
V4 = ip_address("192.0.2.1"), ip_address("192.0.2.2")
V6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")
GCM = Algorithm("rfc4106(gcm(aes))", Key(bytes(range(20))), 128)
TUNNEL = State(
    source=V4[0],
    destination=V4[1],
    spi=0x1000,
    mode=Mode.TUNNEL,
    reqid=7,
    aead=GCM,
    encap=Encap(4500, 40001),
    flags=StateFlag.ESN,
    replay=Replay(window=128, oseq=9, seq=8, bitmap=(255, 0, 0, 0)),
    # The kernel counts from add_time, which lies in the past here: a shorter limit would be over.
    lifetime=Lifetime(hard_bytes=1 << 40, hard_add_seconds=1 << 31),
    current=CurrentLifetime(bytes=1000, packets=10, add_time=1_700_000_001, use_time=5),
)
# RFC 5555 data policies: IPv6 in whatever the outer family is
POLICY = Policy(
    Direction.OUT,
    Selector(ip_network("2001:db8:1::/64"), ip_network("2001:db8:2::/64")),
    (Template(*V4, mode=Mode.TUNNEL, reqid=7),),
    priority=3,
)


@pytest.fixture(autouse=True)
def _netns() -> Iterator[None]:
    with fresh_netns():
        yield


@pytest.fixture
def xfrm() -> Iterator[XfrmSocket]:
    with XfrmSocket() as sock:
        yield sock


def wait_for(monitor: XfrmMonitor, kind: type[N], seconds: float = 20) -> N:
    """The next notification of a kind; others are let pass."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        notification = monitor.receive(left)
        if isinstance(notification, kind):
            return notification
    pytest.fail(f"no {kind.__name__} within {seconds} s")


def many(count: int) -> list[State]:
    return [replace(TUNNEL, spi=0x10000 + number) for number in range(count)]


def test_each_request_of_a_batch_has_its_own_result(xfrm: XfrmSocket) -> None:
    states = many(300)
    xfrm.add_state(states[7])
    results = xfrm.request_all(requests.add_state(state) for state in states)
    failed = [index for index, result in enumerate(results) if not result.ok]
    assert failed == [7]
    assert results[7].error is not None
    assert results[7].error.code == errno.EEXIST
    assert len(xfrm.dump_states()) == 300
    mixed = xfrm.request_all(
        [
            requests.get_state(states[0].id),
            requests.delete_state(StateId(V4[1], 1)),
            requests.dump_states(),
            requests.delete_state(states[0].id),
            requests.get_state(states[0].id),
        ]
    )
    assert [result.ok for result in mixed] == [True, False, True, True, False]
    assert mixed[0].unwrap().configured() == states[0].configured()
    assert len(mixed[2].unwrap()) == 300
    assert len(xfrm.dump_states()) == 299


def test_the_kernels_words_reach_the_error(xfrm: XfrmSocket) -> None:
    optional = replace(POLICY.templates[0], optional=True)
    with pytest.raises(XfrmError, match="optional template") as caught:
        xfrm.add_policy(replace(POLICY, templates=(optional,)))
    assert "EINVAL" in str(caught.value)


def test_moves_keep_keys_counters_and_lifetimes(xfrm: XfrmSocket) -> None:
    xfrm.add_state(TUNNEL)
    where: list[tuple[Move, State]] = []
    current = TUNNEL
    for source, destination, encap in (
        (*V6, None),
        (*V4, Encap(4500, 4500)),
        (*V4, Encap(4500, 5000)),
        (*V4, None),
        (ip_address("198.51.100.1"), V4[1], Encap(4500, 40001)),
    ):
        move = Move(current.id, source, destination, encap)
        current = replace(current, source=source, destination=destination, encap=encap)
        where.append((move, current))
    for move, expected in where:
        (result,) = xfrm.move_states([move])
        assert result.error is None
        (state,) = xfrm.dump_states()
        assert state.configured() == expected.configured()
        assert (state.replay, state.current) == (TUNNEL.replay, TUNNEL.current)
    shown = ip("-d -s xfrm state")
    assert "encap type espinudp sport 4500 dport 40001" in shown
    assert "seq-hi 0x0, seq 0x8, oseq-hi 0x0, oseq 0x9" in shown
    assert "1000(bytes), 10(packets)" in shown


def test_many_moves_in_one_go(xfrm: XfrmSocket) -> None:
    states = many(200)
    xfrm.request_all(requests.add_state(state) for state in states)
    moves = [Move(state.id, *V6, encap=None) for state in states]
    moves.insert(5, Move(StateId(V4[1], 1), *V6))
    results = xfrm.move_states(moves)
    assert [index for index, result in enumerate(results) if not result.ok] == [5]
    assert {(state.destination, state.spi) for state in xfrm.dump_states()} == {
        (V6[1], state.spi) for state in states
    }


def test_a_move_that_the_kernel_refuses_leaves_the_old_state(xfrm: XfrmSocket) -> None:
    xfrm.add_state(TUNNEL)
    taken = replace(TUNNEL, source=V6[0], destination=V6[1], encap=None)
    xfrm.add_state(taken)
    before = {state.id: state for state in xfrm.dump_states()}
    (result,) = xfrm.move_states([Move(TUNNEL.id, *V6, encap=None)])
    assert result.error is not None
    assert result.error.code == errno.EEXIST
    assert {state.id: state for state in xfrm.dump_states()} == before
    # with the same identity the old one is deleted first, and put back
    family = Selector(ip_network("10.0.0.0/8"), ip_network("10.0.0.0/8"))
    transport = replace(TUNNEL, spi=9, mode=Mode.TRANSPORT, selector=family)
    xfrm.add_state(transport)
    inner = Selector(ip_network("::/0"), ip_network("::/0"))
    (result,) = xfrm.move_states([Move(transport.id, *V4, selector=inner)])
    assert result.error is not None
    assert xfrm.get_state(transport.id).configured() == transport.configured()


def test_states_and_policies_are_told(xfrm: XfrmSocket) -> None:
    with XfrmMonitor([Group.SA, Group.POLICY]) as monitor:
        xfrm.add_state(TUNNEL)
        assert wait_for(monitor, said.StateAdded).state.configured() == TUNNEL.configured()
        xfrm.update_state(replace(TUNNEL, encap=Encap(4500, 9)))
        assert wait_for(monitor, said.StateUpdated).state.encap == Encap(4500, 9)
        ip("xfrm state delete src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000")
        gone = wait_for(monitor, said.StateDeleted)
        assert gone.id == TUNNEL.id
        assert gone.state is not None
        assert gone.state.aead == GCM
        xfrm.add_state(TUNNEL)
        xfrm.flush_states(Protocol.ESP)
        assert wait_for(monitor, said.StatesFlushed).protocol is Protocol.ESP
        xfrm.add_policy(POLICY)
        assert wait_for(monitor, said.PolicyAdded).policy.configured() == POLICY
        xfrm.update_policy(replace(POLICY, priority=4))
        assert wait_for(monitor, said.PolicyUpdated).policy.priority == 4
        xfrm.delete_policy(POLICY.id)
        deleted = wait_for(monitor, said.PolicyDeleted)
        assert (deleted.id.direction, deleted.id.selector) == (Direction.OUT, POLICY.selector)
        assert deleted.policy is not None
        assert deleted.policy.templates == POLICY.templates
        sub = replace(POLICY, type=PolicyType.SUB)
        xfrm.add_policy(sub)
        xfrm.flush_policies(PolicyType.SUB)
        assert wait_for(monitor, said.PoliciesFlushed).type is PolicyType.SUB


def test_expiries_are_told(xfrm: XfrmSocket) -> None:
    with XfrmMonitor([Group.EXPIRE]) as monitor:
        xfrm.add_state(replace(TUNNEL, lifetime=Lifetime(hard_add_seconds=1), current=_NONE))
        xfrm.add_policy(replace(POLICY, lifetime=Lifetime(hard_add_seconds=1)))
        expired = wait_for(monitor, said.Expire)
        assert (expired.state.id, expired.hard) == (TUNNEL.id, True)
        assert wait_for(monitor, said.PolicyExpire).hard
    assert xfrm.dump_states() == []


_NONE = CurrentLifetime()


def test_migrations_are_told_with_the_addresses_for_ike(xfrm: XfrmSocket) -> None:
    xfrm.add_policy(POLICY)
    xfrm.add_state(replace(TUNNEL, encap=None))
    move = Migration(*V4, *V6, reqid=7)
    km_address = KmAddress(*V6)
    with XfrmMonitor([Group.MIGRATE]) as monitor:
        xfrm.request(
            requests.migrate(POLICY.selector, Direction.OUT, [move], km_address=km_address)
        )
        migrated = wait_for(monitor, said.Migrated)
    assert migrated.migrations == (move,)
    assert migrated.km_address == km_address
    assert (migrated.id.direction, migrated.id.selector) == (Direction.OUT, POLICY.selector)


def test_acquires_are_told(xfrm: XfrmSocket) -> None:
    ip("link add veth0 type veth peer name veth1")
    ip("address add 10.9.0.1/24 dev veth0")
    for name in ("veth0", "veth1"):
        ip(f"link set {name} up")
    selector = Selector(ip_network("10.9.0.0/24"), ip_network("10.9.0.0/24"))
    template = Template(*V6, mode=Mode.TUNNEL, reqid=9)  # IPv4 in an IPv6 tunnel
    xfrm.add_policy(Policy(Direction.OUT, selector, (template,)))
    with XfrmMonitor([Group.ACQUIRE]) as monitor:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # it would wait for the SA
                sock.sendto(b"x", ("10.9.0.2", 9))
        acquire = wait_for(monitor, said.Acquire)
    assert (acquire.source, acquire.destination) == V6
    assert acquire.selector.destination == ip_network("10.9.0.2/32")
    assert acquire.policy.templates == (template,)
    assert acquire.sequence > 0


def test_a_nat_that_rebinds_is_told_as_mapping() -> None:
    """Two hosts; the sender's ESP comes from another UDP port than the receiver has noted."""
    here, there = f"xfrm{os.getpid()}a", f"xfrm{os.getpid()}b"
    with ExitStack() as cleanup:
        for name in (here, there):
            ip(f"netns add {name}")
            cleanup.callback(ip, f"netns delete {name}")
        ip(f"link add veth0 netns {here} type veth peer name veth0 netns {there}")
        ip(f"-n {here} address add 192.0.2.1/24 dev veth0")
        ip(f"-n {there} address add 192.0.2.2/24 dev veth0")
        for name in (here, there):
            ip(f"-n {name} link set veth0 up")
        plain = replace(TUNNEL, replay=Replay(window=32), flags=StateFlag(0), current=_NONE)
        inner = Selector(ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32"), 17)
        with XfrmSocket(netns=here) as sender, XfrmSocket(netns=f"/run/netns/{there}") as receiver:
            sender.add_state(replace(plain, encap=Encap(4500, 4500)))
            template = Template(*V4, mode=Mode.TUNNEL, reqid=7)
            sender.add_policy(Policy(Direction.OUT, inner, (template,)))
            receiver.add_state(replace(plain, encap=Encap(40001, 4500)))
        namespace = os.open(f"/run/netns/{there}", os.O_RDONLY)
        cleanup.callback(os.close, namespace)
        monitor = cleanup.enter_context(XfrmMonitor([Group.MAPPING], netns=namespace))
        encap = _udp(there, cleanup)
        encap.setsockopt(socket.IPPROTO_UDP, 100, 2)  # UDP_ENCAP, UDP_ENCAP_ESPINUDP
        encap.bind(("192.0.2.2", 4500))
        _udp(here, cleanup).sendto(b"x", ("192.0.2.2", 9))
        mapping = wait_for(monitor, said.Mapping)
    assert mapping.id == plain.id
    assert (mapping.old_source, mapping.new_source) == (V4[0], V4[0])
    assert (mapping.old_source_port, mapping.new_source_port) == (40001, 4500)


def _udp(namespace: str, cleanup: ExitStack) -> socket.socket:
    from pyroute2 import netns

    sock: socket.socket = netns.create_socket(namespace, socket.AF_INET, socket.SOCK_DGRAM)
    return cleanup.enter_context(sock)


def test_a_listener_that_falls_behind_is_told(xfrm: XfrmSocket) -> None:
    with XfrmMonitor([Group.SA]) as monitor:
        states = many(4000)
        for begin in range(0, len(states), 500):
            part = states[begin : begin + 500]
            assert all(r.ok for r in xfrm.request_all(requests.add_state(s) for s in part))
        assert wait_for(monitor, said.Overrun) == said.Overrun()
        heard = 0
        while monitor.receive_now() is not None:
            heard += 1
        assert 0 < heard < len(states)
        xfrm.flush_states()
        # and hears what comes after
        assert wait_for(monitor, said.StatesFlushed).protocol is Protocol.NONE


async def test_tasks_share_a_socket() -> None:
    states = many(120)
    async with AsyncXfrmSocket() as xfrm:
        await asyncio.gather(*(xfrm.add_state(state) for state in states))
        dump = asyncio.create_task(xfrm.dump_states())
        found = await asyncio.gather(*(xfrm.get_state(state.id) for state in states))
        assert [state.spi for state in found] == [state.spi for state in states]
        assert len(await dump) == len(states)
        with pytest.raises(XfrmError) as caught:
            await xfrm.delete_state(StateId(V4[1], 1))
        assert caught.value.code == errno.ESRCH
        results = await xfrm.move_states([Move(state.id, *V6, None) for state in states])
        assert all(result.ok for result in results)
    assert ip("xfrm state").count("dst 2001:db8::2") == len(states)


async def test_pyroute2s_own_requests_work_beside_ours() -> None:
    async with AsyncXfrmSocket() as xfrm:
        for state in many(50):
            await xfrm.add_state(state)
        message = xfrm_usersa_id()
        message["daddr"] = V4[1].packed.ljust(16, b"\0")
        message["spi"], message["family"], message["proto"] = 0x10000, socket.AF_INET, 50
        answers = await xfrm.nlm_request(message, Message.GETSA, NLM_F_REQUEST | NLM_F_ACK)
        found = [answer async for answer in answers]
        assert found[0].get_attr("XFRMA_ENCAP")["encap_dport"] == 40001
        dump = await xfrm.nlm_request(xfrm_dump(), Message.GETSA, NLM_F_REQUEST | NLM_F_DUMP)
        assert len([answer async for answer in dump]) == 50
        assert len(await xfrm.dump_states()) == 50


async def test_a_dump_that_was_cancelled_does_not_block_the_next() -> None:
    async with AsyncXfrmSocket() as xfrm:
        added = await xfrm.request_all(requests.add_state(state) for state in many(1500))
        assert [result.error for result in added if not result.ok] == []
        dump = asyncio.create_task(xfrm.dump_states())
        await asyncio.sleep(0)
        assert not dump.done()
        dump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dump
        assert len(await xfrm.dump_states()) == 1500


async def test_notifications_in_asyncio() -> None:
    async with AsyncXfrmSocket() as xfrm, xfrm.monitor([Group.SA]) as monitor:

        async def first() -> Notification:
            async for notification in monitor:
                return notification
            raise AssertionError("it ended")

        listening = asyncio.create_task(first())
        await asyncio.sleep(0)
        assert not listening.done()
        await xfrm.add_state(TUNNEL)
        told = await asyncio.wait_for(listening, 10)
        assert isinstance(told, said.StateAdded)
        assert told.state.configured() == TUNNEL.configured()


def test_namespaces_that_do_not_exist_are_an_error() -> None:
    opens: list[Callable[[], object]] = [
        lambda: XfrmSocket(netns="no-such-namespace"),
        lambda: XfrmMonitor(netns=987654),
    ]
    for open_ in opens:
        with pytest.raises(XfrmError, match="can't open"):
            open_()


def test_sockets_are_closed() -> None:
    before = os.listdir("/proc/self/fd")
    with XfrmSocket() as xfrm, XfrmMonitor():
        xfrm.dump_states()
        assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    assert os.listdir("/proc/self/fd") == before


async def test_asyncio_sockets_are_closed() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        async with AsyncXfrmSocket() as xfrm, xfrm.monitor() as monitor:
            await xfrm.dump_states()
            assert monitor.receive_now() is None
        await asyncio.sleep(0)  # the transport closes in the loop
    assert len(os.listdir("/proc/self/fd")) == len(before)
