"""Packets that are cut short, malformed or hostile: an ``error`` in their layer, and no more."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from decode_samples import KEYS, dissected, names, raw, sample_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.userspace.capture_file import Frame
from dsmip_ipsec.userspace.dissect import LINK_TYPES
from dsmip_ipsec.userspace.key_ring import KeyRing
from dsmip_ipsec.wire import mobility
from dsmip_ipsec.wire.exthdr import encode_home_address, encode_type2_routing
from dsmip_ipsec.wire.ip import (
    IPPROTO_MH,
    IPPROTO_UDP,
    IPv4Header,
    IPv6Header,
    build_ipv4,
    build_ipv6,
    build_udp4,
)
from dsmip_ipsec.wire.options import IPv4CareOfAddress, IPv4HomeAddress

HOME, AGENT, CARE_OF = map(IPv6Address, ("2001:db8:100::100", "2001:db8:100::1", "2001:db8:77::7"))
A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("203.0.113.2")
RING = KeyRing.read(KEYS)
UPDATE = mobility.BindingUpdate(
    7,
    150,
    acknowledge=True,
    options=(IPv4HomeAddress(32, False, A4), IPv4CareOfAddress(B4)),
)


def of_mobility(packet: bytes) -> dict[str, object]:
    *_, last = dissected(raw(packet))
    assert last["layer"] == "Mobility Header"
    return last


def update(message: bytes | None = None) -> bytes:
    encoded = mobility.encode(UPDATE, HOME, AGENT) if message is None else message
    return build_ipv6(IPv6Header(HOME, AGENT, IPPROTO_MH), encoded)


def test_every_cut_of_every_packet_is_told() -> None:
    """With a snap length: what is there is shown, what is missing is told, nothing is made up."""
    for frame in sample_frames():
        whole = names(dissected(frame, RING))
        for length in range(0, len(frame.data), 3):
            cut = replace(frame, data=frame.data[:length])
            layers = dissected(cut, RING)
            assert names(layers) == whole[: len(layers)] or layers[-1]["layer"] == "IP"
            if whole[-1] in ("data", "Mobility Header", "IKEv2"):
                assert any("error" in layer for layer in layers), (frame.number, length)


def test_a_packet_shorter_than_it_says_is_told_without_snap_length() -> None:
    packet = update()
    layers = dissected(raw(packet[:-8]))
    assert "payload length" in layers[0]["error"]


def test_checksum_of_the_mobility_header() -> None:
    broken = bytearray(update())
    broken[44] ^= 1
    layer = of_mobility(bytes(broken))
    assert "checksum" in str(layer["error"])
    # What it says is shown all the same.
    assert layer["sequence"] == 7
    assert len(layer["mobility_options"]) == 2  # type: ignore[arg-type]


def test_the_checksum_is_over_home_addresses() -> None:
    """RFC 6275 §6.1.1, with the Home Address option and the type 2 routing header."""
    message = mobility.encode(UPDATE, HOME, AGENT)
    packet = build_ipv6(
        IPv6Header(CARE_OF, AGENT, 60), encode_home_address(HOME, IPPROTO_MH) + message
    )
    layers = dissected(raw(packet))
    assert names(layers) == ["IPv6", "IPv6 Destination Options", "Mobility Header"]
    assert layers[1]["options"] == [{"option_type": 201, "home_address": str(HOME)}]
    assert "error" not in layers[2]
    answer = mobility.encode(mobility.BindingAck(0, 7, 100), AGENT, HOME)
    packet = build_ipv6(
        IPv6Header(AGENT, CARE_OF, 43), encode_type2_routing(HOME, IPPROTO_MH) + answer
    )
    layers = dissected(raw(packet))
    assert layers[1]["home_address"] == str(HOME)
    assert "error" not in layers[2]
    assert layers[2]["status_name"] == "accepted"


@pytest.mark.parametrize("short", [0, 1, 5, 7, 15])
def test_mobility_headers_cut_short(short: int) -> None:
    layer = of_mobility(update(mobility.encode(UPDATE, HOME, AGENT)[:short]))
    assert layer["error"]


def test_option_errors_keep_the_other_options() -> None:
    message = bytearray(mobility.encode(UPDATE, HOME, AGENT))
    place = message.index(b"\x1d\x06")
    message[place + 2] = 0  # prefix length 0
    layer = of_mobility(update(bytes(message)))
    assert layer["error"]
    options = layer["mobility_options"]
    assert [option["option"] for option in options] == ["IPv4 Care-of Address"]  # type: ignore[attr-defined]


def test_unknown_messages_and_options() -> None:
    unknown = mobility.encode(mobility.UnknownMessage(77, bytes(10)), HOME, AGENT)
    layer = of_mobility(update(unknown))
    assert layer["mh_type_name"] == "unknown (77)"
    assert layer["message_data"] == "00" * 10


def test_without_keys_nothing_is_wrong() -> None:
    for frame in sample_frames():
        layers = dissected(frame)
        assert not any("error" in layer for layer in layers)
        if "ESP" in names(layers):
            assert layers[-1]["layer"] == "ESP"
            assert layers[-1]["decrypted"] is False
            assert "no key" in layers[-1]["note"]


def test_a_changed_esp_packet_is_told() -> None:
    frame = next(f for f in sample_frames() if "ESP" in names(dissected(f)))
    broken = replace(frame, data=frame.data[:-1] + bytes((frame.data[-1] ^ 1,)))
    layers = dissected(broken, RING)
    assert layers[-1]["layer"] == "ESP"
    assert "ICV" in layers[-1]["error"]


def test_a_changed_ike_message_is_told() -> None:
    frames = [f for f in sample_frames() if names(dissected(f))[-1] == "IKEv2"]
    frame = frames[-1]
    assert dissected(frame, RING)[-1]["payloads"][0]["decrypted"] is True
    broken = replace(frame, data=frame.data[:-1] + bytes((frame.data[-1] ^ 1,)))
    layer = dissected(broken, RING)[-1]
    assert "ICV" in layer["error"]
    assert layer["payloads"][0]["decrypted"] is False


def test_port_4500() -> None:
    def last(payload: bytes) -> dict[str, object]:
        return dissected(raw(build_udp4(A4, 4500, B4, 4500, payload)))[-1]

    assert last(b"\xff")["layer"] == "NAT-keepalive"
    assert last(b"\xfe")["error"]
    assert last(b"")["error"]
    assert "28 octets" in str(last(bytes(4) + b"short")["error"])
    assert last(b"\0\0\1\0short")["layer"] == "ESP"
    assert last(b"\0\0\1\0" + bytes(20))["sequence_number"] == 0


def test_port_4191() -> None:
    inner = build_ipv4(IPv4Header(A4, B4, 99), b"whatever")
    layers = dissected(raw(build_udp4(A4, 4191, B4, 4191, inner)))
    assert names(layers) == ["IPv4", "UDP", "IPv4", "data"]
    layers = dissected(raw(build_udp4(A4, 4191, B4, 4191, b"\x77" * 30)))
    assert layers[-1]["error"] == "IP version 7"
    assert dissected(raw(build_udp4(A4, 4191, B4, 4191, b"")))[-1]["note"] == "a keepalive"


def test_wrong_checksums_are_told_without_hiding_the_rest() -> None:
    packet = bytearray(build_udp4(A4, 1, B4, 2, b"data"))
    packet[10] ^= 1
    packet[26] ^= 1
    layers = dissected(raw(bytes(packet)))
    assert layers[0]["error"] == "wrong header checksum"
    assert layers[1]["checksum_status"] == "wrong"
    assert names(layers) == ["IPv4", "UDP", "data"]


def test_ip_in_ip_has_an_end() -> None:
    packet = build_ipv4(IPv4Header(A4, B4, 59), b"")
    for _ in range(200):
        packet = build_ipv4(IPv4Header(A4, B4, 4), packet)
    layers = dissected(raw(packet))
    assert len(layers) < 20
    assert layers[-1]["error"]


def test_fragments_are_noted() -> None:
    header = IPv4Header(A4, B4, IPPROTO_UDP, more_fragments=True, dont_fragment=False)
    assert "fragment" in dissected(raw(build_ipv4(header, bytes(8))))[-1]["note"]
    fragment = bytes((17, 0, 0, 1)) + bytes(4)
    packet = build_ipv6(IPv6Header(HOME, AGENT, 44), fragment + bytes(8))
    layers = dissected(raw(packet))
    assert names(layers) == ["IPv6", "IPv6 Fragment"]
    assert layers[1]["more_fragments"] is True


@pytest.mark.parametrize(
    ("link_type", "header"),
    [
        (101, b""),
        (12, b""),
        (229, b""),
        (0, b"\x1e\0\0\0"),
        (108, b"\0\0\0\x1e"),
        (1, bytes(12) + b"\x86\xdd"),
        (1, bytes(12) + b"\x81\0\0\x07\x86\xdd"),
        (1, bytes(12) + b"\x88\xa8\0\x07\x81\0\0\x08\x86\xdd"),
        (113, bytes(14) + b"\x86\xdd"),
        (276, b"\x86\xdd" + bytes(18)),
    ],
)
def test_link_types(link_type: int, header: bytes) -> None:
    packet = header + update()
    layers = dissected(Frame(1, 0, link_type, packet, len(packet)))
    assert names(layers)[-2:] == ["IPv6", "Mobility Header"]
    assert layers[-1]["sequence"] == 7
    for length in range(len(header)):
        layers = dissected(Frame(1, 0, link_type, packet[:length], length))
        assert any("error" in layer for layer in layers) or "note" in layers[0]


def test_unknown_link_type() -> None:
    (layer,) = dissected(Frame(1, 0, 147, b"abc", 3))
    assert layer["error"]


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_nothing_raises(data: st.DataObject) -> None:
    """Garbage of every kind: pure, behind good headers, and inside what was good."""
    link_type = data.draw(st.sampled_from([*sorted(LINK_TYPES), 999]))
    garbage = data.draw(st.binary(max_size=200))
    protocol = data.draw(st.sampled_from([0, 1, 4, 6, 17, 41, 43, 44, 50, 58, 60, 99, 135]))
    port = data.draw(st.sampled_from([500, 4191, 4500]))
    frame = data.draw(st.sampled_from(sample_frames()))
    broken = bytearray(frame.data)
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    marked = bytes(4) * data.draw(st.integers(0, 1)) + garbage
    for candidate in (
        Frame(1, 0, link_type, garbage, len(garbage)),
        raw(build_ipv6(IPv6Header(HOME, AGENT, protocol), garbage)),
        raw(build_ipv4(IPv4Header(A4, B4, protocol), garbage)),
        raw(build_udp4(A4, port, B4, port, marked)),
        replace(frame, data=bytes(broken)),
    ):
        assert dissected(candidate, RING)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=150), st.integers(0, 60), st.integers(28, 400))
def test_ike_garbage(garbage: bytes, next_payload: int, length: int) -> None:
    header = bytes(16) + bytes((next_payload, 0x20, 34, 8)) + bytes(4) + length.to_bytes(4, "big")
    layer = dissected(raw(build_udp4(A4, 500, B4, 500, header + garbage)))[-1]
    assert layer["layer"] == "IKEv2"
    if length > 28 + len(garbage):
        assert layer["error"]
