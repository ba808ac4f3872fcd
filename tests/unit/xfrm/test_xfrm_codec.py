"""Views against what the kernel said, and the direct codec against the nlmsg classes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from xfrm_samples import (
    MEANINGS,
    POLICIES,
    STATES,
    TUNNEL_STATE,
)

from dsmip_ipsec.xfrm import (
    AddressFilter,
    Algorithm,
    CurrentLifetime,
    Direction,
    Encap,
    Event,
    EventFlag,
    Key,
    KmAddress,
    Lifetime,
    Mark,
    Migration,
    Mode,
    Policy,
    PolicyId,
    PolicyType,
    Protocol,
    Replay,
    Request,
    Selector,
    State,
    StateFlag,
    StateId,
    Template,
    XfrmEncodeError,
    decode,
    encode,
    requests,
)
from dsmip_ipsec.xfrm.constants import Message
from dsmip_ipsec.xfrm.exchange import Exchange
from dsmip_ipsec.xfrm.messages import CLASSES, xfrm_dump

V4 = ip_address("192.0.2.1"), ip_address("192.0.2.2")
V6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")


@pytest.mark.parametrize("octets", STATES)
def test_states_of_the_kernel_mean_what_iproute2_made(octets: bytes) -> None:
    state = decode.decode_state(octets)
    assert state.configured() == MEANINGS[octets].configured()
    assert state.replay == MEANINGS[octets].replay  # type: ignore[union-attr]
    assert state.current.add_time > 1_700_000_000


@pytest.mark.parametrize("octets", POLICIES)
def test_policies_of_the_kernel_mean_what_iproute2_made(octets: bytes) -> None:
    policy = decode.decode_policy(octets)
    assert policy.configured() == MEANINGS[octets]
    assert policy.index > 0


FULL_STATE = State(
    destination=V6[1],
    source=V6[0],
    spi=0xFEDCBA98,
    mode=Mode.TUNNEL,
    reqid=0x01020304,
    selector=Selector(ip_network("10.0.0.0/8"), ip_network("10.9.0.0/16"), 17, 1, 2, 0xFF00, 0xF),
    encryption=Algorithm("cbc(aes)", Key(bytes(range(16)))),
    authentication=Algorithm("hmac(sha256)", Key(bytes(range(32))), 128),
    encap=Encap(4500, 40001, original_address=ip_address("198.51.100.7")),
    flags=StateFlag.ESN | StateFlag.DECAP_DSCP,
    replay=Replay(100, 1, 2, 3, 4, (5, 6, 7, 8)),
    lifetime=Lifetime(1, 2, 3, 4, 5, 6, 7, 8),
    current=CurrentLifetime(9, 10, 11, 12),
    mark=Mark(1, 2),
    output_mark=Mark(3, 4),
    if_id=5,
    care_of_address=ip_address("2001:db8::c0a"),
    tfc_pad=6,
    mapping_threshold=7,
    replay_threshold=8,
    timer_threshold=9,
    sequence=10,
    extra=((28, b"\1\0\0\0\2\0\0\0"), (60, b"abcde")),
)
COMPRESSED = State(
    V4[1],
    V4[0],
    0x1000,
    Protocol.COMP,
    compression=Algorithm("deflate", Key(b"")),
    replay=Replay(oseq=1),
)


@pytest.mark.parametrize(
    "state",
    [
        FULL_STATE,
        COMPRESSED,
        *(value for value in MEANINGS.values() if isinstance(value, State)),
    ],
)
def test_states_come_back_as_they_went(state: State) -> None:
    assert decode.decode_state(encode.encode_state(state)) == state


FULL_POLICY = Policy(
    Direction.FWD,
    Selector(ip_network("2001:db8::/32"), ip_network("::/0"), 135, 5, None, interface=3, user=4),
    tuple(Template(*V4, Protocol.AH, Mode.BEET, number, number) for number in range(6)),
    priority=5,
    index=6,
    lifetime=Lifetime(hard_packets=0),
    type=PolicyType.SUB,
    mark=Mark(7, 8),
    if_id=9,
    extra=((40, b"1"),),
)


def test_policies_come_back_as_they_went() -> None:
    assert decode.decode_policy(encode.encode_policy(FULL_POLICY)) == FULL_POLICY


MIGRATIONS = (
    Migration(*V4, *V6, reqid=1),
    Migration(*V6, *V4, Protocol.AH, Mode.TRANSPORT, 2),
)
POLICY_ID = PolicyId(Direction.OUT, FULL_POLICY.selector, PolicyType.SUB, 9, Mark(1, 1), 3)
REQUESTS: list[Request[Any]] = [
    requests.add_state(FULL_STATE),
    requests.update_state(replace(FULL_STATE, extra=())),
    requests.update_state(COMPRESSED),
    requests.delete_state(StateId(V4[1], 77, mark=Mark(4, 5))),
    requests.get_state(StateId(V6[1], 0, Protocol.ROUTING, source=V6[0])),
    requests.flush_states(Protocol.ESP),
    requests.allocate_spi(COMPRESSED, 0x100, 0xFFF),
    requests.add_policy(FULL_POLICY),
    requests.update_policy(FULL_POLICY),
    requests.delete_policy(POLICY_ID),
    requests.get_policy(POLICY_ID),
    requests.flush_policies(PolicyType.SUB),
    requests.migrate(
        FULL_POLICY.selector,
        Direction.IN,
        MIGRATIONS,
        type_=PolicyType.SUB,
        km_address=KmAddress(*V6),
        encap=Encap(1, 2),
        if_id=8,
    ),
    requests.get_event(StateId(V4[1], 5, source=V4[0])),
    requests.set_event(
        Event(StateId(V4[1], 5), 6, replay=Replay(32, 1, 2, bitmap=(3,)), replay_threshold=4)
    ),
    requests.get_sad_info(),
    requests.get_spd_info(),
    requests.get_default_policy(),
    *(
        requests.add_state(value) if isinstance(value, State) else requests.add_policy(value)
        for value in MEANINGS.values()
    ),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.message.name)
def test_nlmsg_classes_read_and_write_the_same_octets(request_: Request[Any]) -> None:
    kind, _ = CLASSES[request_.message]
    sent = Exchange([request_], 7).datagram
    message = kind(sent)
    message.decode()
    names = [name for name, _ in message["attrs"]] if "attrs" in message else []
    assert "UNKNOWN" not in [
        name for name, (number, _) in zip(names, _attributes(request_), strict=True) if number < 33
    ]
    if "UNKNOWN" in names:
        return  # octets without a class can't be written by name
    again = kind()
    again.load(message.dump() | {"attrs": _values(message)})
    again["header"].update(message["header"])
    again.encode()
    assert bytes(again.data[: len(sent)]) == sent


def _attributes(request: Request[Any]) -> list[tuple[int, bytes]]:
    from dsmip_ipsec.xfrm.structs import iterate_attributes

    size = CLASSES[request.message][1]
    return list(iterate_attributes(request.payload, (size + 3) & ~3))


def _values(message: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in message.get("attrs", ())]


def test_nlmsg_fields_have_the_names_of_the_header() -> None:
    message = CLASSES[Message.NEWSA][0](Exchange([requests.add_state(FULL_STATE)], 7).datagram)
    message.decode()
    assert message["id_spi"] == 0xFEDCBA98
    assert message["sel_sport"] == 1
    assert message.get_attr("XFRMA_ENCAP")["encap_dport"] == 40001
    assert message.get_attr("XFRMA_ALG_AUTH_TRUNC")["alg_trunc_len"] == 128
    assert message.get_attr("XFRMA_REPLAY_ESN_VAL")["bmp"] == (5, 6, 7, 8)
    assert message.get_attr("XFRMA_MTIMER_THRESH") == 7
    policy = CLASSES[Message.NEWPOLICY][0](Exchange([requests.add_policy(FULL_POLICY)], 7).datagram)
    policy.decode()
    assert [template["reqid"] for template in policy.get_attr("XFRMA_TMPL")] == list(range(6))
    assert policy.get_attr("XFRMA_POLICY_TYPE")["type"] == 1


def test_dumps_have_attributes_alone() -> None:
    networks = AddressFilter(ip_network("192.0.2.0/24"), ip_network("198.51.100.0/25"))
    dump = xfrm_dump(Exchange([requests.dump_states(Protocol.ESP, networks)], 7).datagram)
    dump.decode()
    assert dump.get_attr("XFRMA_PROTO") == 50
    wanted = dump.get_attr("XFRMA_ADDRESS_FILTER")
    assert (wanted["saddr"][:4], wanted["splen"]) == (bytes([192, 0, 2, 0]), 24)
    assert (wanted["daddr"][:4], wanted["dplen"]) == (bytes([198, 51, 100, 0]), 25)
    assert wanted["family"] == 2


def test_stale_octets_behind_an_ipv4_address_are_ignored() -> None:
    octets = bytearray(TUNNEL_STATE)
    octets[56 + 4 : 56 + 16] = bytes(range(1, 13))  # id.daddr, as charon leaves it
    assert decode.decode_state(bytes(octets)).destination == V4[1]


def test_unknown_numbers_of_newer_kernels_are_kept() -> None:
    octets = bytearray(TUNNEL_STATE)
    octets[214] = 9  # mode
    state = decode.decode_state(bytes(octets) + b"\x08\x00\x50\x00\x01\x02\x03\x04")
    assert (int(state.mode), state.mode.name) == (9, "UNKNOWN_9")
    assert state.extra == ((0x50, b"\1\2\3\4"),)
    assert encode.encode_state(state).endswith(b"\x08\x00\x50\x00\x01\x02\x03\x04")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Selector(ip_network("10.0.0.0/8")),
        lambda: Selector(ip_network("10.0.0.0/8"), ip_network("::/0")),
        lambda: State(V4[0], V6[0], 1),
        lambda: Template(V4[0], V6[0]),
        lambda: Replay(window=4097),
        lambda: encode.encode_state(State(*V4, spi=1 << 32)),
        lambda: encode.encode_state(State(*V4, spi=1, encap=Encap(65536, 1))),
        lambda: encode.encode_state(State(*V4, spi=1, reqid=-1)),
        lambda: encode.encode_state(State(*V4, spi=1, aead=Algorithm("x" * 64, Key(b"")))),
        lambda: encode.encode_state(State(*V4, spi=1, aead=Algorithm("", Key(b"")))),
        lambda: encode.encode_state(State(*V4, spi=1, aead=Algorithm("aé", Key(b"")))),
        lambda: encode.encode_state(State(*V4, spi=1, aead=Algorithm("a", Key(bytes(70000))))),
        lambda: encode.encode_state(State(*V4, spi=1, replay=Replay(seq_hi=1))),
        lambda: encode.encode_selector(
            Selector(ip_network("10.0.0.0/8"), ip_network("10.0.0.0/8"), source_host_bits=1 << 24)
        ),
        lambda: requests.migrate(FULL_POLICY.selector, Direction.IN, []),
        lambda: requests.migrate(
            FULL_POLICY.selector, Direction.IN, [Migration(*V4, V4[0], V6[0])]
        ),
        lambda: requests.allocate_spi(COMPRESSED, 5, 4),
        lambda: AddressFilter(ip_network("10.0.0.0/8"), ip_network("::/0")),
    ],
)
def test_values_that_do_not_fit_are_refused(make: Any) -> None:
    with pytest.raises(XfrmEncodeError):
        make()


def test_a_selector_without_networks_lets_both_families_pass() -> None:
    state = State(V4[1], V4[0], 1, mode=Mode.TUNNEL)
    assert state.flags == StateFlag.AF_UNSPEC
    assert encode.encode_selector(state.selector) == bytes(56)
    inner = Selector(ip_network("2001:db8::/64"), ip_network("::/0"))
    assert State(V4[1], V4[0], 1, mode=Mode.TUNNEL, selector=inner).flags == StateFlag(0)


def test_sa_events_come_back_as_they_went() -> None:
    event = Event(
        StateId(V6[1], 5, mark=Mark(1, 2)),
        6,
        EventFlag.CAUSE_REPLAY,
        Replay(64, 1, 2, 3, 4, (5, 6)),
        CurrentLifetime(7, 8, 9, 10),
        11,
        12,
        13,
    )
    assert decode.decode_event(encode.encode_event(event)) == event
