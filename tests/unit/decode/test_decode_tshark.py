"""The sample, packet by packet: what ``decode`` says is what tshark says.

The sample's ESP comes from the kernel and its IKE from strongSwan, so this is also where we open
packets that others sealed.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import pytest
from decode_samples import KEYS, SAMPLE, Packet

from dsmip_ipsec.cli.main import main

PROTOCOLS = {
    "Ethernet": "eth:ethertype",
    "IPv4": "ip",
    "IPv6": "ipv6",
    "IPv6 Hop-by-Hop Options": "ipv6.hopopts",
    "UDP": "udp",
    "ESP": "esp",
    "Mobility Header": "mipv6",
    "IKEv2": "isakmp",
    "Non-ESP Marker": "",
    "ARP": "arp",
    "ICMP": "icmp",
    "ICMPv6": "icmpv6",
    "data": "data",
}

# (tshark's field, layer, our field): all occurrences, in order.
FIELDS = [
    ("ip.dsfield", "IPv4", "type_of_service"),
    ("ip.len", "IPv4", "total_length"),
    ("ip.id", "IPv4", "identification"),
    ("ip.flags.df", "IPv4", "dont_fragment"),
    ("ip.flags.mf", "IPv4", "more_fragments"),
    ("ip.frag_offset", "IPv4", "fragment_offset"),
    ("ip.ttl", "IPv4", "time_to_live"),
    ("ip.proto", "IPv4", "protocol"),
    ("ip.checksum", "IPv4", "header_checksum"),
    ("ip.src", "IPv4", "source_address"),
    ("ip.dst", "IPv4", "destination_address"),
    ("ipv6.tclass", "IPv6", "traffic_class"),
    ("ipv6.flow", "IPv6", "flow_label"),
    ("ipv6.plen", "IPv6", "payload_length"),
    ("ipv6.nxt", "IPv6", "next_header"),
    ("ipv6.hlim", "IPv6", "hop_limit"),
    ("ipv6.src", "IPv6", "source_address"),
    ("ipv6.dst", "IPv6", "destination_address"),
    ("udp.srcport", "UDP", "source_port"),
    ("udp.dstport", "UDP", "destination_port"),
    ("udp.length", "UDP", "length"),
    ("udp.checksum", "UDP", "checksum"),
    ("esp.spi", "ESP", "spi"),
    ("esp.sequence", "ESP", "sequence_number"),
    ("esp.pad_len", "ESP", "pad_length"),
    ("esp.protocol", "ESP", "next_header"),
    ("mip6.proto", "Mobility Header", "payload_proto"),
    ("mip6.hlen", "Mobility Header", "header_len"),
    ("mip6.mhtype", "Mobility Header", "mh_type"),
    ("mip6.csum", "Mobility Header", "checksum"),
    ("arp.opcode", "ARP", "opcode"),
    ("arp.src.proto_ipv4", "ARP", "sender_protocol_address"),
    ("arp.dst.proto_ipv4", "ARP", "target_protocol_address"),
    ("icmpv6.type", "ICMPv6", "type"),
    ("icmpv6.code", "ICMPv6", "code"),
    ("icmp.type", "ICMP", "type"),
    ("icmp.code", "ICMP", "code"),
    ("isakmp.ispi", "IKEv2", "initiator_spi"),
    ("isakmp.rspi", "IKEv2", "responder_spi"),
    ("isakmp.exchangetype", "IKEv2", "exchange_type"),
    ("isakmp.flag_i", "IKEv2", "initiator"),
    ("isakmp.flag_r", "IKEv2", "response"),
    ("isakmp.messageid", "IKEv2", "message_id"),
    ("isakmp.length", "IKEv2", "length"),
]

# tshark's field -> ours, of the one Mobility Header of a packet; those that depend on its type.
UPDATE = {
    "mip6.bu.seqnr": "sequence",
    "mip6.bu.lifetime": "lifetime",
    "mip6.bu.a_flag": "acknowledge",
    "mip6.bu.h_flag": "home_registration",
    "mip6.bu.l_flag": "link_local_address_compatibility",
    "mip6.bu.k_flag": "key_management_mobility_capability",
    "mip6.bu.m_flag": "map_registration",
    "mip6.nemo.bu.r_flag": "mobile_router",
    "mip6.bu.p_flag": "proxy_registration",
    "mip6.bu.f_flag": "force_udp_encapsulation",
}
ACKNOWLEDGEMENT = {
    "mip6.ba.status": "status",
    "mip6.ba.seqnr": "sequence",
    "mip6.ba.lifetime": "lifetime",
    "mip6.ba.k_flag": "key_management_mobility_capability",
    "mip6.nemo.ba.r_flag": "mobile_router",
    "mip6.ba.p_flag": "proxy_registration",
}
# tshark has the same fields for the acknowledgement's prefix length and address.
_BOTH = ("IPv4 Home Address", "IPv4 Address Acknowledgement")
OPTIONS = {
    "mip6.ipv4ha.preflen": (_BOTH, "prefix_length"),
    "mip6.ipv4ha.p_flag": (("IPv4 Home Address",), "prefix_request"),
    "mip6.ipv4ha.ha": (_BOTH, "address"),
    "mip6.ipv4coa.addr": (("IPv4 Care-of Address",), "address"),
    "mip6.ipv4aa.sts": (("IPv4 Address Acknowledgement",), "status"),
    "mip6.natd.f_flag": (("NAT Detection",), "force_udp_encapsulation"),
    "mip6.natd.refresh_t": (("NAT Detection",), "refresh_time"),
}
OTHERS = ["frame.protocols", "isakmp.typepayload", "isakmp.notify.msgtype", "isakmp.id.data.fqdn",
          "isakmp.ts.start_ipv6", "isakmp.ts.end_ipv4", "isakmp.ts.start_port"]  # fmt: skip


@functools.cache
def tsharks() -> list[dict[str, list[str]]]:
    fields = [name for name, _, _ in FIELDS] + [*UPDATE, *ACKNOWLEDGEMENT, *OPTIONS, *OTHERS]
    command = ["tshark", "-n", "-r", str(SAMPLE), "-T", "fields"]
    command += ["-d", "udp.port==4191,ip", "-o", "esp.enable_encryption_decode:TRUE"]
    command += ["-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=|"]
    for field in fields:
        command += ["-e", field]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "WIRESHARK_CONFIG_DIR": str(KEYS)}
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120, env=environment
        )
    return [
        {
            field: value.split("|") if value else []
            for field, value in zip(fields, line.split("\t"), strict=True)
        }
        for line in result.stdout.splitlines()
    ]


@pytest.fixture
def ours(capsys: pytest.CaptureFixture[str]) -> list[Packet]:
    assert main(["decode", str(SAMPLE), "--keys", str(KEYS), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def same(theirs: str, our: Any) -> bool:
    """Whether tshark's text means our value."""
    if isinstance(our, bool):
        return theirs in (("1", "True") if our else ("0", "False"))
    if isinstance(our, int):
        return int(theirs, 0) == our
    return theirs == our or (":" in theirs and IPv6Address(theirs) == IPv6Address(our))


def quotes_a_packet(theirs: dict[str, list[str]]) -> bool:
    """ICMP errors: tshark shows the packet inside, too, which we leave alone."""
    return "icmp:ip" in theirs["frame.protocols"][0]


def compare(theirs: list[str], our: list[Any], what: object) -> int:
    assert len(theirs) == len(our), (what, theirs, our)
    for one, other in zip(theirs, our, strict=True):
        assert same(one, other), (what, theirs, our)
    return len(our)


def test_layers(ours: list[Packet]) -> None:
    assert len(ours) == len(tsharks()) <= 60
    for packet, theirs in zip(ours, tsharks(), strict=True):
        names = [PROTOCOLS[layer["layer"]] for layer in packet["layers"]]
        (wanted,) = theirs["frame.protocols"]
        # tshark counts the UDP encapsulation as a layer, the IP header in UDP 4191 as two (its
        # dissector for IPv4 hands IPv6 on), and the parts of certificates.
        wanted = wanted.replace(":udpencap", "").replace(":udp:ip:ipv6:", ":udp:ipv6:")
        wanted = wanted.split(":x509", maxsplit=1)[0].split("icmp:ip", maxsplit=1)[0]
        if quotes_a_packet(theirs):
            wanted += "icmp"
        assert ":".join(filter(None, names)) == wanted, packet["frame"]
        assert "error" not in packet


def test_the_sample_has_everything() -> None:
    """Guards the others: what isn't in the sample isn't compared."""
    seen = {protocols for row in tsharks() for protocols in row["frame.protocols"]}
    for needed in (
        "eth:ethertype:ip:udp:ip:ipv6:esp:mipv6",
        "eth:ethertype:ip:udp:udpencap:esp:ipv6:udp:data",
        "eth:ethertype:ip:udp:udpencap:esp:ip:udp:data",
        "eth:ethertype:ip:esp:ipv6:udp:data",
        "eth:ethertype:ip:esp:ip:udp:data",
        "eth:ethertype:ip:udp:udpencap:isakmp",
        "eth:ethertype:ipv6:ipv6.hopopts:icmpv6",
    ):
        assert needed in seen
    types = [value for row in tsharks() for value in row["mip6.mhtype"]]
    assert types.count("5") >= 3
    assert types.count("6") >= 3


@pytest.mark.parametrize(("field", "layer", "name"), FIELDS, ids=[name for name, _, _ in FIELDS])
def test_fields(ours: list[Packet], field: str, layer: str, name: str) -> None:
    compared = 0
    for packet, theirs in zip(ours, tsharks(), strict=True):
        values = [each[name] for each in packet["layers"] if each["layer"] == layer]
        found = theirs[field]
        if quotes_a_packet(theirs):
            found = found[: len(values)]
        compared += compare(found, values, (packet["frame"], field))
    assert compared >= 2


def mobility_of(packet: Packet) -> dict[str, Any] | None:
    return next((x for x in packet["layers"] if x["layer"] == "Mobility Header"), None)


@pytest.mark.parametrize("field", [*UPDATE, *ACKNOWLEDGEMENT])
def test_mobility_fields(ours: list[Packet], field: str) -> None:
    table, mh_type = (UPDATE, 5) if field in UPDATE else (ACKNOWLEDGEMENT, 6)
    compared = 0
    for packet, theirs in zip(ours, tsharks(), strict=True):
        layer = mobility_of(packet)
        values = [layer[table[field]]] if layer is not None and layer["mh_type"] == mh_type else []
        compared += compare(theirs[field], values, (packet["frame"], field))
    assert compared >= 3


@pytest.mark.parametrize("field", OPTIONS)
def test_mobility_options(ours: list[Packet], field: str) -> None:
    wanted, name = OPTIONS[field]
    compared = 0
    for packet, theirs in zip(ours, tsharks(), strict=True):
        layer = mobility_of(packet) or {"mobility_options": []}
        values = [each[name] for each in layer["mobility_options"] if each["option"] in wanted]
        compared += compare(theirs[field], values, (packet["frame"], field))
    assert compared >= 3


def payloads_of(packet: Packet) -> list[dict[str, Any]]:
    return [
        payload
        for layer in packet["layers"]
        if layer["layer"] == "IKEv2"
        for payload in layer["payloads"]
    ]


def type_list(packet: Packet) -> list[Any]:
    """Types of the payloads, with those of proposals (2) and transforms (3) inside."""
    found: list[Any] = []
    for payload in payloads_of(packet):
        found.append(payload["payload_type"])
        for proposal in payload.get("proposals", []):
            found += [2] + [3] * len(proposal["transforms"])
    return found


def selectors(name: str, version: int) -> Callable[[Packet], list[Any]]:
    return lambda packet: [
        selector[name]
        for payload in payloads_of(packet)
        for selector in payload.get("traffic_selectors", [])
        if (":" in selector["starting_address"]) == (version == 6) or not version
    ]


def of_payloads(name: str) -> Callable[[Packet], list[Any]]:
    return lambda packet: [p[name] for p in payloads_of(packet) if name in p]


@pytest.mark.parametrize(
    ("field", "ours_of"),
    [
        ("isakmp.typepayload", type_list),
        ("isakmp.notify.msgtype", of_payloads("notify_message_type")),
        ("isakmp.id.data.fqdn", of_payloads("identification_data")),
        ("isakmp.ts.start_ipv6", selectors("starting_address", 6)),
        ("isakmp.ts.end_ipv4", selectors("ending_address", 4)),
        ("isakmp.ts.start_port", selectors("start_port", 0)),
    ],
)
def test_ike(ours: list[Packet], field: str, ours_of: Callable[[Packet], list[Any]]) -> None:
    compared = 0
    for packet, theirs in zip(ours, tsharks(), strict=True):
        compared += compare(theirs[field], ours_of(packet), (packet["frame"], field))
    assert compared >= 3
