"""Correspondents are deregistered through the tunnel when the node moves to IPv4 (RFC 5555 §5.1).
The correspondent of these tests computes its keys itself, as RFC 6275 §5.2.5 and §6.2.7 say."""

from __future__ import annotations

import hashlib
import hmac
import random
from ipaddress import IPv6Address

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    HOME,
    PRIVATE,
    dropped_silently,
    events,
    none,
    only,
)
from scapy.layers.inet6 import MIP6MH_BU, IPv6

from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.types import (
    DropReason,
    EventKind,
    IPAddress,
    MobilityPacket,
    Output,
    SendMobility,
    SendTunnelled,
)
from dsmip_ipsec.wire.mobility import (
    BindingAck,
    BindingUpdate,
    HomeTest,
    HomeTestInit,
    decode,
    encode,
)

PEER = IPv6Address("2001:db8:9::5")
OTHER = IPv6Address("2001:db8:9::6")
TOKEN = bytes.fromhex("0102030405060708")


def node() -> MobileNode:
    config = MobileNodeConfig(HOME, AGENT, AGENT_IPV4, lifetime=1200)
    return MobileNode(config, random.Random(5).getrandbits)


def move(engine: MobileNode, care_of: IPAddress, now: float) -> list[Output]:
    """Attach, and the outputs of the acknowledgement 50 ms later."""
    outputs = engine.attach(care_of, now)
    assert none(outputs, SendTunnelled), "only after the home agent was updated"
    update = decode(only(outputs, SendMobility).message, HOME, AGENT)
    assert isinstance(update, BindingUpdate)
    raw = encode(BindingAck(0, update.sequence, update.lifetime), AGENT, HOME)
    outputs = engine.handle(MobilityPacket(AGENT, HOME, raw, None), now + 0.05)
    assert engine.state is State.REGISTERED
    return outputs


def home_test(test: SendTunnelled, *, cookie: bytes | None = None) -> MobilityPacket:
    init = decode(test.message, HOME, test.destination)
    assert isinstance(init, HomeTestInit)
    message = HomeTest(7, init.cookie if cookie is None else cookie, TOKEN)
    return MobilityPacket(test.destination, HOME, encode(message, test.destination, HOME), None)


@pytest.mark.rfc("5555-5.1-1", "6275-11.7.2-6")
def test_deregistered_after_the_home_agent_knows_the_ipv4_care_of_address() -> None:
    engine = node()
    move(engine, CARE_OF, 0.0)
    engine.correspondents.record(PEER, 41, 400.0)
    engine.correspondents.record(OTHER, 1, 400.0)
    outputs = move(engine, PRIVATE, 10.0)
    tests = [each for each in outputs if isinstance(each, SendTunnelled)]
    assert [(each.source, each.destination) for each in tests] == [(HOME, PEER), (HOME, OTHER)]
    outputs = engine.handle(home_test(tests[0]), 10.2)
    assert events(outputs) == [EventKind.CORRESPONDENT_DEREGISTERED]
    raw = only(outputs, SendTunnelled).message

    # scapy's reading, and a correspondent's arithmetic.
    seen = MIP6MH_BU(raw)
    assert (seen.seq, seen.mhtime) == (42, 0)
    indices, authorization = (each for each in seen.options if each.otype > 1)
    assert (indices.hni, indices.coni) == (7, 0)
    key = hashlib.sha1(TOKEN).digest()
    covered = raw[:4] + b"\0\0" + raw[6:-12]
    mac = hmac.new(key, HOME.packed + PEER.packed + covered, "sha1").digest()
    assert raw[-12:] == mac[:12]
    assert (authorization.otype, authorization.olen) == (5, 12)
    seen.cksum = None  # to be computed by scapy
    assert bytes(IPv6(src=str(HOME), dst=str(PEER), nh=135) / seen)[40:] == raw
    assert PEER not in engine.correspondents
    assert OTHER in engine.correspondents


def test_ipv6_networks_keep_correspondents() -> None:
    engine = node()
    engine.correspondents.record(PEER, 1, 400.0)
    assert none(move(engine, CARE_OF, 0.0), SendTunnelled)
    assert PEER in engine.correspondents


def test_back_in_ipv6_the_deregistration_ends() -> None:
    engine = node()
    engine.correspondents.record(PEER, 1, 400.0)
    test = only(move(engine, PRIVATE, 0.0), SendTunnelled)
    move(engine, CARE_OF, 0.5)
    assert none(engine.tick(60.0), SendTunnelled)
    assert PEER in engine.correspondents
    assert none(engine.handle(home_test(test), 61.0), SendTunnelled)


def test_forged_home_tests_are_ignored() -> None:
    engine = node()
    engine.correspondents.record(PEER, 1, 400.0)
    test = only(move(engine, PRIVATE, 0.0), SendTunnelled)
    wrong = engine.handle(home_test(test, cookie=bytes(8)), 0.1)
    assert dropped_silently(wrong, DropReason.UNEXPECTED_MESSAGE)
    good = home_test(test)
    untunnelled = MobilityPacket(PEER, HOME, good.message, None, protected=False)
    assert dropped_silently(engine.handle(untunnelled, 0.1), DropReason.UNPROTECTED)
    stranger = MobilityPacket(OTHER, HOME, good.message, None)
    assert dropped_silently(engine.handle(stranger, 0.1), DropReason.WRONG_SOURCE)
    elsewhere = MobilityPacket(PEER, CARE_OF, good.message, None)
    assert dropped_silently(engine.handle(elsewhere, 0.1), DropReason.WRONG_DESTINATION)
    assert not none(engine.handle(good, 0.2), SendTunnelled)
    again = engine.handle(good, 0.3)
    assert dropped_silently(again, DropReason.WRONG_SOURCE), "once"


@pytest.mark.rfc("6275-11.8-8")
def test_rfc6275_11_8_unanswered_home_tests() -> None:
    """Doubled waits, new cookies, three retransmissions; then the lifetime has to do."""
    engine = node()
    engine.correspondents.record(PEER, 1, 400.0)
    tests = [only(move(engine, PRIVATE, 0.0), SendTunnelled)]
    times = []
    for now in (1.0, 1.05, 3.05, 7.05, 15.05):
        outputs = engine.tick(now)
        more = [each for each in outputs if isinstance(each, SendTunnelled)]
        tests += more
        times += [now] * len(more)
    assert times == [1.05, 3.05, 7.05]
    assert events(outputs) == [EventKind.CORRESPONDENT_GIVEN_UP]
    assert len({home_test(each).message for each in tests}) == 4
    assert len(engine.correspondents) == 0


def test_expired_correspondents_are_forgotten_and_memory_is_bounded() -> None:
    engine = node()
    for number in range(3000):
        engine.correspondents.record(IPv6Address(int(PEER) + number), 1, 5.0)
    assert len(engine.correspondents) == 1024
    assert none(move(engine, PRIVATE, 10.0), SendTunnelled)
    assert len(engine.correspondents) == 0


def test_keys_stay_out_of_reprs() -> None:
    engine = node()
    engine.correspondents.record(PEER, 1, 400.0)
    outputs = engine.handle(home_test(only(move(engine, PRIVATE, 0.0), SendTunnelled)), 0.1)
    assert TOKEN.hex() not in repr(outputs)
    assert repr(TOKEN)[2:-1] not in repr(outputs)
