"""scapy opens what we seal, and we open what scapy seals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from esp_samples import (
    INNER6,
    LOCAL4,
    LOCAL6,
    REMOTE4,
    REMOTE6,
    SUITES,
    CountingRandom,
    association,
    udp4,
    udp6,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP
from scapy.layers.ipsec import SecurityAssociation as ScapyAssociation

from dsmip_ipsec.ipsec.esp import EspReceiver, EspSender
from dsmip_ipsec.ipsec.esp_packet import (
    encapsulator,
    from_transport,
    from_tunnel,
    split_udp,
    to_transport,
    view,
)
from dsmip_ipsec.ipsec.model import Mode, SecurityAssociation

# Names that scapy has for the suites that it has; it knows AES-GCM with 16 octets of ICV only.
SCAPY: dict[str, tuple[str, str | None]] = {
    "gcm128": ("AES-GCM", None),
    "gcm192": ("AES-GCM", None),
    "gcm256": ("AES-GCM", None),
    "chacha20": ("CHACHA20-POLY1305", None),
    "cbc128-sha256": ("AES-CBC", "SHA2-256-128"),
    "cbc192-sha384": ("AES-CBC", "SHA2-384-192"),
    "cbc256-sha512": ("AES-CBC", "SHA2-512-256"),
    "null-sha256": ("NULL", "SHA2-256-128"),
    "null-sha512": ("NULL", "SHA2-512-256"),
}


def scapy_sa(suite: str, ours: SecurityAssociation, *, esn: bool, sequence: int) -> Any:
    crypto, auth = SCAPY[suite]
    algorithms = SUITES[suite]
    cipher = algorithms.get("aead") or algorithms["encryption"]
    arguments: dict[str, Any] = {}
    if auth is not None:
        arguments["auth_key"] = algorithms["authentication"].key.reveal()
    if ours.mode is Mode.TUNNEL:
        header = IP if ours.source.version == 4 else IPv6
        arguments["tunnel_header"] = header(src=str(ours.source), dst=str(ours.destination))
    if ours.encapsulation is not None:
        arguments["nat_t_header"] = UDP(
            sport=ours.encapsulation.source_port, dport=ours.encapsulation.destination_port
        )
    return ScapyAssociation(  # type: ignore[no-untyped-call]
        ESP,
        spi=ours.spi,
        seq_num=sequence,
        crypt_algo=crypto,
        crypt_key=cipher.key.reveal(),
        auth_algo=auth,
        esn_en=esn,
        esn=sequence >> 32,
        **arguments,
    )


def parsed(packet: bytes) -> Any:
    return (IP if packet[0] >> 4 == 4 else IPv6)(packet)


def unwrapped(receiver: EspReceiver, packet: bytes) -> bytes:
    """Our way in: an outer packet, its UDP header if it has one, ESP, the inner packet."""
    seen = view(packet)
    esp = packet[seen.offset : seen.length]
    if seen.protocol == 17:
        _, _, esp = split_udp(packet, seen)
    payload, next_header = receiver.open(esp)
    if receiver.association.mode is Mode.TUNNEL:
        return from_tunnel(payload, next_header, seen.traffic_class, receiver.association.spi)
    return from_transport(packet, seen, payload, next_header)


MODES = [
    pytest.param(Mode.TUNNEL, version, inner, udp, id=f"tunnel-{inner}in{version}-udp{int(udp)}")
    for version, inner, udp in itertools.product((4, 6), (4, 6), (False, True))
    # scapy's UDP encapsulation knows IPv4 only.
    if not (udp and version == 6)
] + [
    pytest.param(Mode.TRANSPORT, 4, 4, False, id="transport-4"),
    pytest.param(Mode.TRANSPORT, 6, 6, False, id="transport-6"),
    pytest.param(Mode.TRANSPORT, 4, 4, True, id="transport-4-udp"),
]


def inner_packet(mode: Mode, inner: int, length: int) -> bytes:
    payload = bytes(range(length))
    if mode is Mode.TRANSPORT:
        ends4, ends6 = (LOCAL4, REMOTE4), (LOCAL6, REMOTE6)
        return udp4(payload, *ends4) if inner == 4 else udp6(payload, *ends6)
    return udp4(payload) if inner == 4 else udp6(payload, *INNER6)


@pytest.mark.parametrize(("mode", "version", "inner", "udp"), MODES)
@pytest.mark.parametrize("suite", SCAPY)
def test_scapy_opens_ours(suite: str, mode: Mode, version: int, inner: int, udp: bool) -> None:
    ours = association(suite, mode, version=version, encapsulated=udp)
    sender = EspSender(ours, random=CountingRandom(3), sequence=40)
    theirs = scapy_sa(suite, ours, esn=False, sequence=41)
    for length in (0, 1, 2, 3, 37, 200):
        packet = inner_packet(mode, inner, length)
        if mode is Mode.TUNNEL:
            outer = encapsulator(sender)(packet)
        else:
            outer = to_transport(sender, packet, view(packet))
        again = parsed(outer)
        if version == 4:
            del again.chksum
        assert bytes(again) == outer  # header checksum and lengths are what scapy makes
        opened = theirs.decrypt(parsed(outer), verify=True)
        assert bytes(opened) == packet


@pytest.mark.parametrize(("mode", "version", "inner", "udp"), MODES)
@pytest.mark.parametrize("suite", SCAPY)
def test_we_open_scapys(suite: str, mode: Mode, version: int, inner: int, udp: bool) -> None:
    ours = association(suite, mode, version=version, encapsulated=udp)
    receiver = EspReceiver(ours)
    theirs = scapy_sa(suite, ours, esn=False, sequence=1)
    for length in (0, 1, 2, 3, 37, 200):
        packet = inner_packet(mode, inner, length)
        outer = bytes(theirs.encrypt(parsed(packet)))
        assert unwrapped(receiver, outer) == packet


@pytest.mark.parametrize("suite", SCAPY)
def test_extended_sequence_numbers(suite: str) -> None:
    ours = association(suite)
    start = (5 << 32) + 9
    packet = udp4(b"extended")
    outer = encapsulator(EspSender(ours, esn=True, random=CountingRandom(3), sequence=start))(
        packet
    )
    theirs = scapy_sa(suite, ours, esn=True, sequence=start + 1)
    opened = theirs.decrypt(parsed(outer), verify=True, esn_en=True, esn=5)
    assert bytes(opened) == packet
    theirs.seq_num = 11
    sealed = bytes(theirs.encrypt(parsed(packet), esn_en=True, esn=5))
    receiver = EspReceiver(ours, esn=True, highest=start)
    assert unwrapped(receiver, sealed) == packet
    assert receiver.window.highest == (5 << 32) + 11
