"""Random and mutated buffers through every decoder: typed errors only, linear time, bounded
memory, and what decodes can be encoded again to the same meaning.

DSMIP_FUZZ_BUFFERS=1000000 DSMIP_FUZZ_SEED=7 pytest tests/unit/wire/test_wire_fuzz.py runs a
million per decoder instead of the few thousand of the suite.
"""

from __future__ import annotations

import os
import random
import time
import timeit
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import EVERY_MESSAGE, HOME_ADDRESS, HOME_AGENT, flagged, sealed

from dsmip_ipsec.errors import WireError
from dsmip_ipsec.wire import errors, exthdr, icmp6, ip
from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire import options as opt
from dsmip_ipsec.wire.checksum import complement, pseudo_header6, words

BUFFERS = int(os.environ.get("DSMIP_FUZZ_BUFFERS", "4000"))
SEED = int(os.environ.get("DSMIP_FUZZ_SEED", "5555"))
A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2")


def fuzz_mobility(data: bytes) -> None:
    reading = mh.AckOptionReading.EITHER
    if data[:1]:
        reading = tuple(mh.AckOptionReading)[data[-1] % 3]
    message = mh.decode(data, HOME_ADDRESS, HOME_AGENT, ack_option=reading)
    try:
        again = mh.encode(message, HOME_ADDRESS, HOME_AGENT, ack_option=reading)
    except errors.EncodeError:
        # Only alignment that a broken sender left out may make it too long.
        assert len(data) > 1000
        return
    assert mh.decode(again, HOME_ADDRESS, HOME_AGENT, ack_option=reading) == message
    canonical = mh.decode(again, HOME_ADDRESS, HOME_AGENT, ack_option=reading)
    assert mh.encode(canonical, HOME_ADDRESS, HOME_AGENT, ack_option=reading) == again


def fuzz_extension_headers(data: bytes) -> None:
    found, rest = exthdr.parse_extension_headers((0, 43, 60)[len(data) % 3], data)
    assert data[found.offset :] == rest


def fuzz_icmp6(data: bytes) -> None:
    message = icmp6.decode(data, HOME_ADDRESS, HOME_AGENT)
    again = icmp6.encode(message, HOME_ADDRESS, HOME_AGENT)
    assert icmp6.decode(again, HOME_ADDRESS, HOME_AGENT) == message or len(data) > 1240


def fuzz_ipv4(data: bytes) -> None:
    header, payload = ip.parse_ipv4(data)
    assert ip.parse_ipv4(ip.build_ipv4(header, payload)) == (header, payload)


def fuzz_ipv6(data: bytes) -> None:
    header, payload = ip.parse_ipv6(data)
    assert ip.build_ipv6(header, payload) == data[: 40 + len(payload)]


def fuzz_udp(data: bytes) -> None:
    header, payload = ip.parse_udp(data, A4, B4)
    assert ip.parse_udp(data) == (header, payload)
    ports = header.source_port, header.destination_port
    again = ip.build_udp(A4, ports[0], B4, ports[1], payload, checksum=header.checksum > 0)
    assert again == data[: len(again)]


def seal_icmp6(data: bytes) -> bytes:
    if len(data) < 4:
        return data
    blank = data[:2] + b"\0\0" + data[4:]
    total = pseudo_header6(HOME_ADDRESS, HOME_AGENT, len(blank), 58) + words(blank)
    return data[:2] + complement(total).to_bytes(2, "big") + data[4:]


def seal_ipv4(data: bytes) -> bytes:
    length = (data[0] & 15) * 4 if data else 0
    if length < 20 or len(data) < length:
        return data
    blank = data[:10] + b"\0\0" + data[12:length]
    return data[:10] + complement(words(blank)).to_bytes(2, "big") + data[12:]


def seal_udp(data: bytes) -> bytes:
    length = int.from_bytes(data[4:6], "big")
    if len(data) < 8 or not 8 <= length <= len(data):
        return data
    blank = data[:6] + b"\0\0" + data[8:length]
    total = int(A4) + int(B4) + 17 + length + words(blank)
    return data[:6] + (complement(total) or 0xFFFF).to_bytes(2, "big") + data[8:]


def seal_mobility(data: bytes) -> bytes:
    return sealed(data) if len(data) >= 8 else data


ICMP: tuple[icmp6.IcmpMessage, ...] = (
    icmp6.HomeAgentAddressDiscoveryReply(1, (HOME_AGENT, HOME_ADDRESS)),
    icmp6.MobilePrefixAdvertisement(
        1, True, True, (icmp6.PrefixInformation(64, HOME_AGENT, 1, 1),) * 2
    ),
    icmp6.IcmpParameterProblem(0, 1, bytes(50)),
    icmp6.MobilePrefixSolicitation(3, (icmp6.UnknownNeighborOption(9, bytes(14)),)),
)
CHAIN = exthdr.encode_type2_routing(HOME_ADDRESS, 60) + exthdr.encode_home_address(HOME_ADDRESS, 59)
SEEDS: dict[str, tuple[Callable[[bytes], None], Callable[[bytes], bytes], list[bytes]]] = {
    "mobility": (
        fuzz_mobility,
        seal_mobility,
        [mh.encode(m, HOME_ADDRESS, HOME_AGENT) for m in EVERY_MESSAGE],
    ),
    "extension headers": (fuzz_extension_headers, bytes, [CHAIN, CHAIN[24:], bytes(8) + CHAIN]),
    "icmp6": (fuzz_icmp6, seal_icmp6, [icmp6.encode(m, HOME_ADDRESS, HOME_AGENT) for m in ICMP]),
    "ipv4": (fuzz_ipv4, seal_ipv4, [ip.build_udp4(A4, 1, B4, 2, b"payload")]),
    "ipv6": (fuzz_ipv6, bytes, [ip.build_udp6(HOME_ADDRESS, 1, HOME_AGENT, 2, b"payload")]),
    "udp": (fuzz_udp, seal_udp, [ip.build_udp(A4, 1, B4, 2, b"payload")]),
}
INTERESTING = (0, 1, 2, 3, 5, 6, 16, 18, 29, 30, 31, 32, 59, 127, 128, 254, 255)


def mutate(rng: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 5)):
        what = rng.randrange(6)
        at = rng.randrange(len(data)) if data else 0
        if what == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1 and data:
            data[at] = rng.choice(INTERESTING)
        elif what == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif what == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 4:
            data[at:at] = data[at : at + rng.randrange(1, 25)]
        elif len(data) > 2:
            # a header length that fits: the options are reached
            data += bytes(-len(data) % 8)
            data[1] = min(max(len(data) // 8 - 1, 0), 255)
    return bytes(data)


@pytest.mark.parametrize("name", SEEDS)
def test_typed_errors_only(name: str) -> None:
    decoder, seal, seeds = SEEDS[name]
    rng = random.Random(f"{SEED} {name}")
    refused = 0
    for i in range(BUFFERS):
        if i % 4 == 0:
            data = rng.randbytes(rng.randrange(rng.choice((9, 50, 300, 2200))))
        else:
            data = mutate(rng, rng.choice(seeds))
        if i % 8:
            data = seal(data)
        try:
            decoder(data)
        except WireError as error:
            refused += 1
            if not error.hint or not -1 <= error.offset <= max(len(data), 1):
                pytest.fail(f"{name}: {data.hex()} gave {error!r} with {error.offset}")
        except Exception as error:  # the point of the test
            pytest.fail(f"{name}: {data.hex()} gave {error!r}")
    # The mutants must reach both sides, or the test tests nothing.
    assert BUFFERS // 100 < refused < BUFFERS - BUFFERS // 100


def worst_messages(length: int) -> list[bytes]:
    """Buffers that make the option loop work hardest for their length."""
    head = bytes((59, length // 8 - 1, 6)) + bytes(9)
    room = length - 12
    bodies = [
        bytes(room),  # Pad1 only
        (b"\x02\x00" * room)[:room],  # a known option with a wrong length, again and again
        (b"\xc8\x00" * room)[:room],  # unknown options without data
        (b"\x1d\x00\x1e\x00" * room)[:room],  # 29 and 30: the second look at a BA
        b"\x1e\x06\x00\x60\x01\x02\x03\x04\x1d\x06\x00\x60\x01\x02\x03\x04" * (room // 16),
    ]
    return [sealed(head + body.ljust(room, b"\0")) for body in bodies]


def decode_quietly(data: bytes) -> None:
    try:
        mh.decode(data, HOME_ADDRESS, HOME_AGENT)
    except WireError:
        return


@pytest.mark.parametrize("which", range(5))
def test_time_is_linear(which: int) -> None:
    def cost(length: int) -> float:
        data = worst_messages(length)[which]
        return timeit.timeit(lambda: decode_quietly(data), number=20, timer=time.process_time)

    # Quadratic growth would give 16, linear at most 4. In turns: a busy machine hits both.
    costs = [(cost(512), cost(2048)) for _ in range(12)]
    assert min(long for _, long in costs) / min(short for short, _ in costs) < 8


def test_memory_is_bounded_by_the_message() -> None:
    """Octets behind the Header Len aren't copied, options cost a constant each."""
    for data in worst_messages(2048):
        long = data + bytes(10_000_000)
        tracemalloc.start()
        try:
            decode_quietly(long)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < len(data) * 300


octets6 = st.integers(0, 2**128 - 1).map(IPv6Address)
octets4 = st.integers(0, 2**32 - 1).map(IPv4Address)
short = st.integers(0, 0xFFFF)
known_options = st.one_of(
    st.builds(opt.BindingRefreshAdvice, short),
    st.builds(opt.AlternateCareOfAddress, octets6),
    st.builds(opt.NonceIndices, short, short),
    st.builds(opt.MobileNetworkPrefix, st.integers(0, 128), octets6),
    st.builds(opt.IPv4HomeAddress, st.integers(1, 32), st.booleans(), octets4),
    st.builds(opt.IPv4CareOfAddress, octets4),
    st.builds(opt.NatDetection, st.booleans(), st.integers(0, 2**32 - 1)),
    st.builds(opt.UnknownOption, st.integers(33, 255), st.binary(max_size=40)),
)
acks = st.one_of(
    st.builds(opt.IPv4AddressAck, st.integers(0, 127), st.integers(1, 32), octets4),
    st.builds(opt.IPv4AddressAck, st.integers(128, 255), st.just(0), octets4),
)
last = st.one_of(
    st.just(()), st.tuples(st.builds(opt.BindingAuthorizationData, st.binary(max_size=30)))
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(st.one_of(known_options, acks), max_size=12),
    last,
    short,
    short,
    st.lists(st.booleans(), min_size=8, max_size=8),
    octets6,
    octets6,
)
def test_any_binding_update_survives(
    options: list[opt.MobilityOption],
    end: tuple[opt.MobilityOption, ...],
    sequence: int,
    lifetime: int,
    flags: list[bool],
    src: IPv6Address,
    dst: IPv6Address,
) -> None:
    message = flagged(mh.BindingUpdate(sequence, lifetime, options=(*options, *end)), flags)
    raw = mh.encode(message, src, dst)
    assert mh.decode(raw, src, dst) == message
    assert mh.encode(mh.decode(raw, src, dst), src, dst) == raw
