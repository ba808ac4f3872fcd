"""How fast user-space ESP is: against scapy, and against the bare cipher calls underneath.

    python tests/bench/bench_esp.py [--json]

AES-128-GCM, 1400 octets. All rates come from one run, taken in turns and each the best of several,
so the ratios mean something on a busy machine too. Exit status 1: a ratio that issue 5 asks for
is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP
from scapy.layers.ipsec import SecurityAssociation as ScapyAssociation

from dsmip_ipsec.ipsec.esp import EspReceiver, EspSender
from dsmip_ipsec.ipsec.model import (
    Action,
    Algorithm,
    Direction,
    Encapsulation,
    Mode,
    Policy,
    SecretKey,
    SecurityAssociation,
    Selector,
    Template,
)
from dsmip_ipsec.userspace.engine import Engine
from dsmip_ipsec.wire.ip import IPPROTO_UDP, IPv4Header, IPv6Header, build_ipv4, build_ipv6

SIZE = 1400
ROUNDS = 7
OURS, SCAPY = 5000, 100  # packets a round

TIMES_SCAPY = 25.0
OF_BARE_CIPHER = 0.40

KEY = os.urandom(20)
HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")
SA = SecurityAssociation(
    0x1000,
    HERE,
    THERE,
    Mode.TUNNEL,
    1,
    aead=Algorithm("rfc4106(gcm(aes))", SecretKey(KEY), 128),
    encapsulation=Encapsulation(4500, 4500),
    replay_window=64,
)

Lap = Callable[[int], float]
"""So many packets -> the seconds that they took."""


def timed(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - start


def timed_each(work: Callable[[bytes], object], packets: list[bytes]) -> float:
    start = time.perf_counter()
    for packet in packets:
        work(packet)
    return time.perf_counter() - start


def laps() -> dict[str, tuple[Lap, int]]:
    """What is measured: a function for each, and how many packets a round."""
    payload = os.urandom(SIZE)
    cipher = AESGCM(KEY[:16])
    nonce, aad = os.urandom(12), os.urandom(8)
    plaintext = payload + b"\1\2\2\4"
    ciphertext = cipher.encrypt(nonce, plaintext, aad)
    sender, receiver = EspSender(SA), EspReceiver(SA)

    def open_ours(count: int) -> float:
        return timed_each(receiver.open, [sender.seal(payload, 4) for _ in range(count)])

    inner4 = build_ipv4(IPv4Header(HERE, THERE, IPPROTO_UDP), payload[: SIZE - 20])
    scapy_inner = IP(inner4)
    theirs: Any = ScapyAssociation(  # type: ignore[no-untyped-call]
        ESP,
        spi=SA.spi,
        crypt_algo="AES-GCM",
        crypt_key=KEY,
        tunnel_header=IP(src=str(HERE), dst=str(THERE)),
    )
    sealed = theirs.encrypt(scapy_inner)

    def open_scapy(count: int) -> float:
        packets = [IP(bytes(sealed)) for _ in range(count)]
        start = time.perf_counter()
        for packet in packets:
            theirs.decrypt(packet, verify=False)
        return time.perf_counter() - start

    node, peer = Engine(os.urandom), Engine(os.urandom)
    everything = Selector(ip_network("::/0"), ip_network("::/0"))
    template = Template(Mode.TUNNEL, HERE, THERE, SA.reqid)
    for engine, direction in ((node, Direction.OUT), (peer, Direction.IN)):
        engine.add_association(SA)
        engine.put_policy(Policy(direction, everything, 1, Action.PROTECT, template))
    ends = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
    inner6 = build_ipv6(IPv6Header(*ends, IPPROTO_UDP), payload[: SIZE - 40])

    def outer(_: int = 0) -> bytes:
        result = node.outbound(inner6)
        if not isinstance(result, tuple):
            raise SystemExit(f"the engine dropped a packet: {result}")
        return result[0]

    def engine_in(count: int) -> float:
        return timed_each(peer.inbound, [outer() for _ in range(count)])

    if peer.inbound(outer()) != inner6:
        raise SystemExit("the engines don't understand each other")
    return {
        "cipher seal": (lambda n: timed(lambda: cipher.encrypt(nonce, plaintext, aad), n), OURS),
        "cipher open": (lambda n: timed(lambda: cipher.decrypt(nonce, ciphertext, aad), n), OURS),
        "esp seal": (lambda n: timed(lambda: sender.seal(payload, 4), n), OURS),
        "esp open": (open_ours, OURS),
        "engine out": (lambda n: timed(lambda: node.outbound(inner6), n), OURS),
        "engine in": (engine_in, OURS),
        "scapy seal": (lambda n: timed(lambda: theirs.encrypt(scapy_inner), n), SCAPY),
        "scapy open": (open_scapy, SCAPY),
    }


def measure() -> dict[str, float]:
    """Packets a second, the best of all rounds."""
    rates: dict[str, float] = {}
    measured = laps()
    for _ in range(ROUNDS):
        for name, (lap, count) in measured.items():
            rates[name] = max(rates.get(name, 0.0), count / lap(count))
    return rates


def ratios(rates: dict[str, float]) -> dict[str, tuple[float, float]]:
    """(measured, wanted; 0: only told), for each comparison."""
    both = {
        what: 2 / (1 / rates[f"{what} {one}"] + 1 / rates[f"{what} {two}"])
        for what, one, two in (
            ("cipher", "seal", "open"),
            ("esp", "seal", "open"),
            ("engine", "out", "in"),
            ("scapy", "seal", "open"),
        )
    }
    return {
        "esp seal / cipher": (rates["esp seal"] / rates["cipher seal"], OF_BARE_CIPHER),
        "esp open / cipher": (rates["esp open"] / rates["cipher open"], OF_BARE_CIPHER),
        "esp seal / scapy": (rates["esp seal"] / rates["scapy seal"], TIMES_SCAPY),
        "esp open / scapy": (rates["esp open"] / rates["scapy open"], TIMES_SCAPY),
        "engine / scapy": (both["engine"] / both["scapy"], TIMES_SCAPY),
        "engine / cipher": (both["engine"] / both["cipher"], 0.0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rates = measure()
    results = ratios(rates)
    if arguments.json:
        print(json.dumps({"rates": rates, "ratios": {k: v for k, (v, _) in results.items()}}))
    else:
        for name, rate in rates.items():
            print(f"{name:20} {rate:12,.0f} packets/s")
        for name, (ratio, wanted) in results.items():
            verdict = "" if not wanted else "ok" if ratio >= wanted else f"MISSED ({wanted:g})"
            print(f"{name:20} {ratio:12.2f} {verdict}")
    return int(any(ratio < wanted for ratio, wanted in results.values()))


if __name__ == "__main__":
    sys.exit(main())
