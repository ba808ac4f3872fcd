"""What Linux 6.1 (x86-64) answered for objects that iproute2 6.1 had made, octet by octet, and
what they mean. Payloads behind the netlink header."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from dsmip_ipsec.xfrm import (
    Action,
    Algorithm,
    Direction,
    Encap,
    Key,
    Lifetime,
    Mark,
    Mode,
    Policy,
    PolicyType,
    Protocol,
    Replay,
    Selector,
    State,
    StateFlag,
    Template,
)

# ip xfrm state add src 2001:db8::1 dst 2001:db8::2 proto hao reqid 0 mode ro coa 2001:db8:f::1
# sel src 2001:db8::1/128 dst 2001:db8::2/128
HAO_STATE = bytes.fromhex(
    "20010db800000000000000000000000220010db800000000000000000000000100000000000000000a008080"
    "00000000000000000000000020010db8000000000000000000000002000000003c00000020010db800000000"
    "0000000000000001ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff00000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "6a2c056b00000000000000000000000000000000000000000000000000000000000000000a00020000000000"
    "0000000014000e0020010db8000f0000000000000000000110000a00000000000000000000000000"
)

# ip xfrm state add src 2001:db8::1 dst 2001:db8::2 proto esp spi 0xc0000002 reqid 4243 mode
# transport enc 'cbc(aes)' 0x00…0f auth-trunc 'hmac(sha256)' 0x00…1f 128 flag esn replay-window 64
# replay-oseq 9 replay-oseq-hi 1 sel src 2001:db8::1/128 dst 2001:db8::2/128 proto 135 type 5
TRANSPORT_STATE = bytes.fromhex(
    "20010db800000000000000000000000220010db8000000000000000000000001000000000005ffff0a008080"
    "87000000000000000000000020010db8000000000000000000000002c00000023200000020010db800000000"
    "0000000000000001ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff00000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "692c056b00000000000000000000000000000000000000000000000000000000931000000a00000080000000"
    "0000000068000100686d61632873686132353629000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000010000000102030405060708090a0b"
    "0c0d0e0f101112131415161718191a1b1c1d1e1f6c001400686d616328736861323536290000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0001000080000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f58000200"
    "6362632861657329000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000080000000000102030405060708090a0b0c0d0e0f24001700"
    "0200000009000000000000000100000000000000400000000000000000000000"
)

# ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0xc0000001 reqid 4242 mode tunnel
# flag af-unspec aead 'rfc4106(gcm(aes))' 0x00…13 128 encap espinudp 4500 40001 0.0.0.0 replay-
# window 32 mark 0x11 mask 0xff output-mark 0x22 mask 0xfff if_id 9 limit byte-hard 1000000 limit
# time-hard 3600 replay-oseq 7 replay-seq 40
TUNNEL_STATE = bytes.fromhex(
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000c0000202000000000000000000000000c000000132000000c000020100000000"
    "0000000000000000ffffffffffffffff40420f0000000000ffffffffffffffffffffffffffffffff00000000"
    "00000000100e0000000000000000000000000000000000000000000000000000000000000000000000000000"
    "672c056b00000000000000000000000000000000000000000000000000000000921000000200012020000000"
    "0000000060001200726663343130362867636d28616573292900000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000a0000000800000000001020304050607"
    "08090a0b0c0d0e0f101112131c000400020011949c410000000000000000000000000000000000000c001500"
    "11000000ff00000008001d002200000008001e00ff0f000010000a0007000000280000000000000008001f00"
    "09000000"
)

# ip xfrm policy add dir in src 10.1.2.3/8 dst 0.0.0.0/0 action block priority 5
BLOCK_POLICY = bytes.fromhex(
    "000000000000000000000000000000000a010203000000000000000000000000000000000000000002000008"
    "000000000000000000000000ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000006a2c056b000000000000000000000000050000001000000000010000000000000a00100000000000"
    "00000000"
)

# ip xfrm policy add dir in src 2001:db8::1/128 dst ::/0 proto 135 type 5 priority 77 ptype sub
# mark 5 mask 0xf if_id 3 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 4242 mode tunnel tmpl
# src :: dst :: proto esp reqid 4243 mode tunnel level use
SUB_POLICY = bytes.fromhex(
    "0000000000000000000000000000000020010db8000000000000000000000001000000000005ffff0a000080"
    "870000000000000000000000ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000006a2c056b0000000000000000000000004d00000008000000000000000000000084000500c0000202"
    "000000000000000000000000000000003200000002000000c000020100000000000000000000000092100000"
    "01000000ffffffffffffffffffffffff0000000000000000000000000000000000000000320000000a000000"
    "000000000000000000000000000000009310000001000100ffffffffffffffffffffffff0a00100001000000"
    "000000000c001500050000000f00000008001f0003000000"
)

KEY_OCTETS = bytes(range(64))

MEANINGS: dict[bytes, State | Policy] = {
    HAO_STATE: State(
        source=ip_address("2001:db8::1"),
        destination=ip_address("2001:db8::2"),
        spi=0,
        protocol=Protocol.DSTOPTS,
        mode=Mode.ROUTE_OPTIMIZATION,
        selector=Selector(ip_network("2001:db8::1/128"), ip_network("2001:db8::2/128")),
        care_of_address=ip_address("2001:db8:f::1"),
    ),
    TRANSPORT_STATE: State(
        source=ip_address("2001:db8::1"),
        destination=ip_address("2001:db8::2"),
        spi=0xC0000002,
        mode=Mode.TRANSPORT,
        reqid=4243,
        selector=Selector(
            ip_network("2001:db8::1/128"),
            ip_network("2001:db8::2/128"),
            protocol=135,
            source_port=5,
        ),
        encryption=Algorithm("cbc(aes)", Key(KEY_OCTETS[:16])),
        authentication=Algorithm("hmac(sha256)", Key(KEY_OCTETS[:32]), 128),
        flags=StateFlag.ESN,
        replay=Replay(window=64, oseq=9, oseq_hi=1, extended=True),
    ),
    TUNNEL_STATE: State(
        source=ip_address("192.0.2.1"),
        destination=ip_address("192.0.2.2"),
        spi=0xC0000001,
        mode=Mode.TUNNEL,
        reqid=4242,
        selector=Selector(),
        aead=Algorithm("rfc4106(gcm(aes))", Key(KEY_OCTETS[:20]), 128),
        encap=Encap(source_port=4500, destination_port=40001),
        flags=StateFlag.AF_UNSPEC,
        replay=Replay(window=32, oseq=7, seq=40),
        lifetime=Lifetime(hard_bytes=1_000_000, hard_add_seconds=3600),
        mark=Mark(0x11, 0xFF),
        output_mark=Mark(0x22, 0xFFF),
        if_id=9,
    ),
    BLOCK_POLICY: Policy(
        direction=Direction.IN,
        selector=Selector(
            ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0"), source_host_bits=0x010203
        ),
        action=Action.BLOCK,
        priority=5,
    ),
    SUB_POLICY: Policy(
        direction=Direction.IN,
        selector=Selector(
            ip_network("2001:db8::1/128"), ip_network("::/0"), protocol=135, source_port=5
        ),
        templates=(
            Template(
                ip_address("192.0.2.1"),
                ip_address("192.0.2.2"),
                mode=Mode.TUNNEL,
                reqid=4242,
            ),
            Template(
                ip_address("::"), ip_address("::"), mode=Mode.TUNNEL, reqid=4243, optional=True
            ),
        ),
        priority=77,
        type=PolicyType.SUB,
        mark=Mark(5, 0xF),
        if_id=3,
    ),
}
STATES = (HAO_STATE, TRANSPORT_STATE, TUNNEL_STATE)
POLICIES = (BLOCK_POLICY, SUB_POLICY)
