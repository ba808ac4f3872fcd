"""What tshark prints of our packets is what we meant: each message, option and flag.

Its traps are known: it verifies no MH checksum (the tests against scapy and RFC 1071 do), and
its words for the IPv4 acknowledgement's statuses are wrong (we compare numbers).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from wire_samples import (
    ACK4,
    ADVICE,
    ALTERNATE,
    AUTHENTICATOR,
    CARE_OF4,
    CARE_OF_ADDRESS,
    EVERY_MESSAGE,
    HOME4,
    HOME_ADDRESS,
    HOME_AGENT,
    NAT,
    NONCES,
    PREFIX,
    flagged,
)
from wire_tshark import dissect

from dsmip_ipsec.wire import exthdr, icmp6, ip
from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire import options as opt

Printed = dict[str, list[str]]

PRINTED_OPTIONS: dict[type[opt.MobilityOption], list[tuple[str, str]]] = {
    opt.AlternateCareOfAddress: [("mip6.acoa.acoa", "address")],
    opt.NonceIndices: [("mip6.ni.hni", "home_nonce_index"), ("mip6.ni.cni", "care_of_nonce_index")],
    opt.BindingAuthorizationData: [("mip6.bad.auth", "authenticator")],
    opt.MobileNetworkPrefix: [
        ("mip6.nemo.mnp.pfl", "prefix_len"),
        ("mip6.nemo.mnp.mnp", "prefix"),
    ],
    opt.IPv4HomeAddress: [
        ("mip6.ipv4ha.preflen", "prefix_len"),
        ("mip6.ipv4ha.p_flag", "prefix_request"),
        ("mip6.ipv4ha.ha", "address"),
    ],
    opt.IPv4CareOfAddress: [("mip6.ipv4coa.addr", "address")],
    opt.BindingRefreshAdvice: [("mip6.bra.interval", "interval")],
    opt.IPv4AddressAck: [
        ("mip6.ipv4aa.sts", "status"),
        ("mip6.ipv4ha.preflen", "prefix_len"),
        ("mip6.ipv4ha.ha", "address"),
    ],
    opt.NatDetection: [("mip6.natd.f_flag", "force_udp"), ("mip6.natd.refresh_t", "refresh_time")],
}
UPDATE_FLAGS = [
    ("mip6.bu.a_flag", "acknowledge"),
    ("mip6.bu.h_flag", "home_registration"),
    ("mip6.bu.l_flag", "link_local"),
    ("mip6.bu.k_flag", "key_mobility"),
    ("mip6.bu.m_flag", "map_registration"),
    ("mip6.nemo.bu.r_flag", "mobile_router"),
    ("mip6.bu.p_flag", "proxy"),
    ("mip6.bu.f_flag", "force_udp"),
]
ACK_FLAGS = [
    ("mip6.ba.k_flag", "key_mobility"),
    ("mip6.nemo.ba.r_flag", "mobile_router"),
    ("mip6.ba.p_flag", "proxy"),
]
RESERVED = ["mip6.reserved", "mip6.ipv4coa.reserved", "mip6.natd.reserved", "_ws.expert.message"]
FIELDS = [
    "ipv6.src",
    "ipv6.dst",
    "mip6.proto",
    "mip6.hlen",
    "mip6.mhtype",
    "mip6.bu.seqnr",
    "mip6.bu.lifetime",
    "mip6.ba.status",
    "mip6.ba.seqnr",
    "mip6.ba.lifetime",
    *(field for field, _ in UPDATE_FLAGS + ACK_FLAGS),
    *dict.fromkeys(field for fields in PRINTED_OPTIONS.values() for field, _ in fields),
    *RESERVED,
]


def printed(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return str(int(value)) if isinstance(value, int) else str(value)


def expected(message: mh.BindingUpdate | mh.BindingAck) -> Printed:
    """The message in tshark's words, from its attributes."""
    fields: Printed = {
        "ipv6.src": [str(HOME_ADDRESS)],
        "ipv6.dst": [str(HOME_AGENT)],
        "mip6.proto": ["59"],
        "mip6.mhtype": [str(message.mh_type)],
        "mip6.reserved": ["0x00"],
    }
    name = "bu" if isinstance(message, mh.BindingUpdate) else "ba"
    fields[f"mip6.{name}.seqnr"] = [str(message.sequence)]
    fields[f"mip6.{name}.lifetime"] = [str(message.lifetime)]
    if isinstance(message, mh.BindingAck):
        fields["mip6.ba.status"] = [str(int(message.status))]
    for field, attribute in UPDATE_FLAGS if name == "bu" else ACK_FLAGS:
        fields[field] = [printed(getattr(message, attribute))]
    for option in message.options:
        for field, attribute in PRINTED_OPTIONS[type(option)]:
            fields.setdefault(field, []).append(printed(getattr(option, attribute)))
        if isinstance(option, opt.IPv4CareOfAddress):
            fields.setdefault("mip6.ipv4coa.reserved", []).append("0")
        if isinstance(option, opt.NatDetection):
            fields.setdefault("mip6.natd.reserved", []).append("0")
    return fields


def judge(messages: list[mh.BindingUpdate | mh.BindingAck], directory: Path) -> None:
    encoded = [mh.encode(message, HOME_ADDRESS, HOME_AGENT) for message in messages]
    header = ip.IPv6Header(HOME_ADDRESS, HOME_AGENT, ip.IPPROTO_MH)
    results = dissect((ip.build_ipv6(header, raw) for raw in encoded), FIELDS, directory)
    for message, raw, fields in zip(messages, encoded, results, strict=True):
        assert int(fields.pop("mip6.hlen")[0]) * 8 + 8 == len(raw)
        assert fields == expected(message), message


def subsets(options: tuple[opt.MobilityOption, ...]) -> Iterable[tuple[opt.MobilityOption, ...]]:
    for size in range(len(options) + 1):
        yield from itertools.combinations(options, size)


def test_binding_updates_of_all_flags_with_all_sets_of_options(tmp_path: Path) -> None:
    pool = (ALTERNATE, PREFIX, HOME4, CARE_OF4, NONCES, AUTHENTICATOR)
    messages: list[mh.BindingUpdate | mh.BindingAck] = [
        flagged(mh.BindingUpdate(0xFEDC, 0x1234, options=options), flags)
        for flags in itertools.product((False, True), repeat=8)
        for options in subsets(pool)
    ]
    assert len(messages) == 256 * 64
    judge(messages, tmp_path)


def test_binding_updates_of_all_orders_of_options(tmp_path: Path) -> None:
    pool = (ALTERNATE, PREFIX, HOME4, CARE_OF4, NONCES)
    second = (opt.IPv4HomeAddress(32, False, IPv4Address("0.0.0.0")),)
    prefix = (opt.MobileNetworkPrefix(128, IPv6Address("2001:db8:ffff::")),)
    judge(
        [
            mh.BindingUpdate(1, 2, options=(*order, *second, *prefix, AUTHENTICATOR))
            for order in itertools.permutations(pool)
        ],
        tmp_path,
    )


def test_binding_acknowledgements_of_all_statuses_flags_and_sets_of_options(
    tmp_path: Path,
) -> None:
    pool = (ADVICE, ACK4, NAT, AUTHENTICATOR)
    judge(
        [
            flagged(mh.BindingAck(status, 0xFEDC, 0x1234, options=options), flags)
            for status in mh.BindingStatus
            for flags in itertools.product((False, True), repeat=3)
            for options in subsets(pool)
        ],
        tmp_path,
    )


@pytest.mark.rfc("5555-3.1.1-1", "5555-3.2.1-1")
def test_values_of_the_options_of_rfc_5555(tmp_path: Path) -> None:
    home = IPv4Address("203.0.113.77")
    acks = [opt.IPv4AddressAck(0, prefix_len, home) for prefix_len in range(1, 33)]
    acks += [opt.IPv4AddressAck(s, 0, home) for s in opt.IPv4AckStatus if s]
    nats = [
        opt.NatDetection(force, time)
        for force in (False, True)
        for time in (0, 1, 110, opt.REFRESH_NOT_NEEDED)
    ]
    homes = [
        opt.IPv4HomeAddress(prefix_len, request, home)
        for prefix_len in range(1, 33)
        for request in (False, True)
    ]
    messages: list[mh.BindingUpdate | mh.BindingAck] = []
    messages += [mh.BindingAck(0, 1, 2, options=(ack,)) for ack in acks]
    messages += [mh.BindingAck(0, 1, 2, options=(nat,)) for nat in nats]
    messages += [mh.BindingUpdate(1, 2, options=(option,)) for option in homes]
    judge(messages, tmp_path)


def test_every_message_in_udp_and_ipv4(tmp_path: Path) -> None:
    """IPv4 / UDP 4191 / IPv6 / MH, as RFC 5555 §4.2 draws it without ESP, each checksum good."""
    source, agent = IPv4Address("10.0.0.9"), IPv4Address("198.51.100.1")
    header = ip.IPv6Header(HOME_ADDRESS, HOME_AGENT, ip.IPPROTO_MH)
    packets = [
        ip.build_udp4(
            source,
            40000,
            agent,
            ip.DSMIP_PORT,
            ip.build_ipv6(header, mh.encode(message, HOME_ADDRESS, HOME_AGENT)),
            ttl=63,
            tos=0xB9,
        )
        for message in EVERY_MESSAGE
    ]
    fields = [
        "ip.src", "ip.dst", "ip.ttl", "ip.dsfield", "ip.flags.df", "ip.checksum.status",
        "udp.srcport", "udp.dstport", "udp.checksum.status", "ipv6.src", "ipv6.dst",
        "mip6.mhtype", "mip6.hoti.cookie", "mip6.coti.cookie", "mip6.hot.nindex",
        "mip6.cot.nindex", "mip6.hot.cookie", "mip6.cot.cookie", "mip6.hot.token",
        "mip6.be.status", "mip6.be.haddr",
    ]  # fmt: skip
    results = dissect(packets, fields, tmp_path)
    common = {
        "ip.src": ["10.0.0.9"],
        "ip.dst": ["198.51.100.1"],
        "ip.ttl": ["63"],
        "ip.dsfield": ["0xb9"],
        "ip.flags.df": ["1"],
        "ip.checksum.status": ["1"],
        "udp.srcport": ["40000"],
        "udp.dstport": ["4191"],
        "udp.checksum.status": ["1"],
        "ipv6.src": [str(HOME_ADDRESS)],
        "ipv6.dst": [str(HOME_AGENT)],
    }
    ho, co = "0x" + b"cookieHo".hex(), "0x" + b"cookieCo".hex()
    bodies: dict[int, Printed] = {
        1: {"mip6.hoti.cookie": [ho]},
        2: {"mip6.coti.cookie": [co]},
        3: {
            "mip6.hot.nindex": [str(0x0A0B)],
            "mip6.hot.cookie": [ho],
            "mip6.hot.token": ["0x" + b"tokenHom".hex()],
        },
        4: {
            "mip6.cot.nindex": [str(0x0C0D)],
            "mip6.cot.cookie": [co],
            # tshark has one field for both tokens
            "mip6.hot.token": ["0x" + b"tokenCoA".hex()],
        },
        7: {"mip6.be.status": ["1"], "mip6.be.haddr": [str(HOME_ADDRESS)]},
    }
    for message, seen in zip(EVERY_MESSAGE, results, strict=True):
        kind = {"mip6.mhtype": [str(message.mh_type)]}
        assert seen == {**common, **kind, **bodies.get(message.mh_type, {})}


def test_extension_headers(tmp_path: Path) -> None:
    update = mh.encode(mh.BindingUpdate(1, 2), HOME_ADDRESS, HOME_AGENT)
    ack = mh.encode(mh.BindingAck(0, 1, 2), HOME_AGENT, HOME_ADDRESS)
    fields = [
        "ipv6.src", "ipv6.dst", "ipv6.flow", "ipv6.tclass", "ipv6.hlim",
        "ipv6.opt.mipv6.home_address", "ipv6.routing.type", "ipv6.routing.segleft",
        "ipv6.routing.mipv6.home_address", "mip6.mhtype", "_ws.expert.message",
    ]  # fmt: skip
    results = dissect(
        [
            ip.build_ipv6(
                ip.IPv6Header(CARE_OF_ADDRESS, HOME_AGENT, ip.IPPROTO_DSTOPTS, 5, 0xB9, 0xABCDE),
                exthdr.encode_home_address(HOME_ADDRESS, ip.IPPROTO_MH) + update,
            ),
            ip.build_ipv6(
                ip.IPv6Header(HOME_AGENT, CARE_OF_ADDRESS, ip.IPPROTO_ROUTING),
                exthdr.encode_type2_routing(HOME_ADDRESS, ip.IPPROTO_MH) + ack,
            ),
        ],
        fields,
        tmp_path,
    )
    assert results == [
        {
            "ipv6.src": [str(CARE_OF_ADDRESS)],
            "ipv6.dst": [str(HOME_AGENT)],
            "ipv6.flow": ["0x0abcde"],
            "ipv6.tclass": ["0x000000b9"],
            "ipv6.hlim": ["5"],
            "ipv6.opt.mipv6.home_address": [str(HOME_ADDRESS)],
            "mip6.mhtype": ["5"],
        },
        {
            "ipv6.src": [str(HOME_AGENT)],
            "ipv6.dst": [str(CARE_OF_ADDRESS)],
            "ipv6.flow": ["0x000000"],
            "ipv6.tclass": ["0x00000000"],
            "ipv6.hlim": ["64"],
            "ipv6.routing.type": ["2"],
            "ipv6.routing.segleft": ["1"],
            "ipv6.routing.mipv6.home_address": [str(HOME_ADDRESS)],
            "mip6.mhtype": ["6"],
        },
    ]


def test_icmp(tmp_path: Path) -> None:
    prefix = icmp6.PrefixInformation(56, HOME_AGENT, 7200, 3600, True, False, True)
    messages: list[icmp6.IcmpMessage] = [
        icmp6.HomeAgentAddressDiscoveryRequest(0x1234),
        icmp6.HomeAgentAddressDiscoveryReply(0x1234, (HOME_AGENT,)),
        icmp6.MobilePrefixSolicitation(0x4321),
        icmp6.MobilePrefixAdvertisement(0x4321, True, False, (prefix,)),
        icmp6.IcmpParameterProblem(0, 40, b"\x60" + bytes(60)),
    ]
    fields = [
        "icmpv6.type", "icmpv6.code", "icmpv6.checksum.status", "icmpv6.mip6.identifier",
        "icmpv6.mip6.home_agent_address", "icmpv6.mip6.flag.m", "icmpv6.mip6.flag.o",
        "icmpv6.opt.prefix.length", "icmpv6.opt.prefix.flag", "icmpv6.opt.prefix",
        "icmpv6.opt.prefix.valid_lifetime", "icmpv6.opt.prefix.preferred_lifetime",
        "icmpv6.pointer",
    ]  # fmt: skip
    header = ip.IPv6Header(HOME_ADDRESS, HOME_AGENT, ip.IPPROTO_ICMPV6)
    results = dissect(
        [
            ip.build_ipv6(header, icmp6.encode(message, HOME_ADDRESS, HOME_AGENT))
            for message in messages
        ],
        fields,
        tmp_path,
    )
    good = {"icmpv6.code": ["0"], "icmpv6.checksum.status": ["1"]}
    first, second = ({"icmpv6.mip6.identifier": [str(n)]} for n in (0x1234, 0x4321))
    assert results == [
        {"icmpv6.type": ["144"], **good, **first},
        {
            "icmpv6.type": ["145"],
            **good,
            **first,
            "icmpv6.mip6.home_agent_address": [str(HOME_AGENT)],
        },
        {"icmpv6.type": ["146"], **good, **second},
        {
            "icmpv6.type": ["147"],
            **good,
            **second,
            "icmpv6.mip6.flag.m": ["1"],
            "icmpv6.mip6.flag.o": ["0"],
            "icmpv6.opt.prefix.length": ["56"],
            "icmpv6.opt.prefix.flag": ["0xa0"],
            "icmpv6.opt.prefix": [str(HOME_AGENT)],
            "icmpv6.opt.prefix.valid_lifetime": ["7200"],
            "icmpv6.opt.prefix.preferred_lifetime": ["3600"],
        },
        {"icmpv6.type": ["4"], **good, "icmpv6.pointer": ["40"]},
    ]
