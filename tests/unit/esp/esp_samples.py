"""SAs and packets that several ESP tests use."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.ipsec.model import (
    Algorithm,
    Encapsulation,
    Mode,
    SecretKey,
    SecurityAssociation,
)
from dsmip_ipsec.wire.ip import (
    IPPROTO_UDP,
    IPv4Header,
    IPv6Header,
    build_ipv4,
    build_ipv6,
    build_udp,
)

LOCAL4, REMOTE4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")
LOCAL6, REMOTE6 = IPv6Address("2001:db8:1::1"), IPv6Address("2001:db8:2::1")
INNER4 = IPv4Address("10.1.0.1"), IPv4Address("10.2.0.1")
INNER6 = IPv6Address("2001:db8:a::1"), IPv6Address("2001:db8:b::1")


def key(length: int, start: int = 1) -> SecretKey:
    return SecretKey(bytes((start + i) % 256 for i in range(length)))


def gcm(bits: int = 128, icv_bits: int = 128) -> dict[str, Algorithm]:
    return {"aead": Algorithm("rfc4106(gcm(aes))", key(bits // 8 + 4), icv_bits)}


def chacha() -> dict[str, Algorithm]:
    return {"aead": Algorithm("rfc7539esp(chacha20,poly1305)", key(36), 128)}


def hmac(bits: int) -> Algorithm:
    return Algorithm(f"hmac(sha{bits})", key(bits // 8, 77), bits // 2)


def cbc(bits: int, mac_bits: int) -> dict[str, Algorithm]:
    return {"encryption": Algorithm("cbc(aes)", key(bits // 8)), "authentication": hmac(mac_bits)}


def null(mac_bits: int) -> dict[str, Algorithm]:
    return {
        "encryption": Algorithm("ecb(cipher_null)", key(0)),
        "authentication": hmac(mac_bits),
    }


SUITES: dict[str, dict[str, Algorithm]] = {
    "gcm128": gcm(),
    "gcm192": gcm(192),
    "gcm256": gcm(256),
    "gcm128-icv12": gcm(128, 96),
    "gcm256-icv8": gcm(256, 64),
    "chacha20": chacha(),
    "cbc128-sha256": cbc(128, 256),
    "cbc192-sha384": cbc(192, 384),
    "cbc256-sha512": cbc(256, 512),
    "null-sha256": null(256),
    "null-sha512": null(512),
}


def association(
    suite: str = "gcm128",
    mode: Mode = Mode.TUNNEL,
    *,
    version: int = 4,
    encapsulated: bool = False,
    spi: int = 0x1000,
    window: int = 32,
) -> SecurityAssociation:
    """An SA from the local to the remote end of a family."""
    base = SecurityAssociation(
        spi,
        LOCAL4 if version == 4 else LOCAL6,
        REMOTE4 if version == 4 else REMOTE6,
        mode,
        reqid=7,
        encapsulation=Encapsulation(4500, 4501) if encapsulated else None,
        replay_window=window,
    )
    algorithms = SUITES[suite]
    return replace(
        base,
        aead=algorithms.get("aead"),
        encryption=algorithms.get("encryption"),
        authentication=algorithms.get("authentication"),
    )


def udp4(payload: bytes, source: IPv4Address = INNER4[0], destination: IPv4Address = INNER4[1],
         *, tos: int = 0, dont_fragment: bool = True) -> bytes:  # fmt: skip
    udp = build_udp(source, 5000, destination, 6000, payload)
    header = IPv4Header(
        source, destination, IPPROTO_UDP, tos=tos, dont_fragment=dont_fragment, identification=9
    )
    return build_ipv4(header, udp)


def udp6(payload: bytes, source: IPv6Address = INNER6[0], destination: IPv6Address = INNER6[1],
         *, traffic_class: int = 0) -> bytes:  # fmt: skip
    udp = build_udp(source, 5000, destination, 6000, payload)
    header = IPv6Header(source, destination, IPPROTO_UDP, traffic_class=traffic_class)
    return build_ipv6(header, udp)


class CountingRandom:
    """Octets that are as good as random for a test, and the same each time."""

    def __init__(self, start: int) -> None:
        self._next = start

    def __call__(self, length: int) -> bytes:
        self._next += 1
        return self._next.to_bytes(length, "big")
