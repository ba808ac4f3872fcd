"""A mobile node and its home agent as two engines, with the policies that the real ones have."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from dsmip_ipsec.ipsec.model import (
    Action,
    Address,
    Algorithm,
    Direction,
    Encapsulation,
    MobilityHeaderType,
    Mode,
    Policy,
    SecretKey,
    SecurityAssociation,
    Selector,
    Template,
)
from dsmip_ipsec.userspace.engine import Engine
from dsmip_ipsec.userspace.outcome import Drop, DropReason
from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire.ip import (
    IPPROTO_MH,
    IPPROTO_UDP,
    IPv4Header,
    IPv6Header,
    build_ipv4,
    build_ipv6,
    build_udp,
)

HOME4, HOME6 = IPv4Address("203.0.113.200"), IPv6Address("2001:db8:100::100")
AGENT4, AGENT6 = IPv4Address("203.0.113.2"), IPv6Address("2001:db8:100::1")
PEER4, PEER6 = IPv4Address("192.0.2.200"), IPv6Address("2001:db8:2::200")
CARE_OF, NAT = IPv4Address("198.51.100.100"), IPv4Address("192.0.2.2")
ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")
WILD = IPv4Address(0)

REQID_SIGNALLING, REQID_DATA = 11, 13


class Random:
    """As good as random for a test, and the same each time."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, length: int) -> bytes:
        self._next += 1
        return self._next.to_bytes(length, "big")


def _sa(
    mode: Mode, source: Address, destination: Address, spi: int, reqid: int
) -> SecurityAssociation:
    key = bytes((spi + i) % 256 for i in range(20))
    return SecurityAssociation(
        spi,
        source,
        destination,
        mode,
        reqid,
        aead=Algorithm("rfc4106(gcm(aes))", SecretKey(key), 128),
        replay_window=64,
    )


def tunnel_sa(source: Address, destination: Address, spi: int) -> SecurityAssociation:
    return _sa(Mode.TUNNEL, source, destination, spi, REQID_DATA)


def transport_sa(source: Address, destination: Address, spi: int) -> SecurityAssociation:
    return _sa(Mode.TRANSPORT, source, destination, spi, REQID_SIGNALLING)


def policies(*, agent: bool) -> list[Policy]:
    """RFC 5555 §5.2's SPD of one end, as the kernel's reconciler brings it about: signalling in
    transport mode, payload in tunnels, and none to the home agent itself."""
    out, into = Direction.OUT, Direction.IN
    update, acknowledgement = (
        MobilityHeaderType.BINDING_UPDATE,
        MobilityHeaderType.BINDING_ACKNOWLEDGEMENT,
    )
    bu = Selector(ip_network(HOME6), ip_network(AGENT6), IPPROTO_MH, update)
    ba = Selector(ip_network(AGENT6), ip_network(HOME6), IPPROTO_MH, acknowledgement)
    bu_sa = Template(Mode.TRANSPORT, HOME6, AGENT6, REQID_SIGNALLING)
    ba_sa = Template(Mode.TRANSPORT, AGENT6, HOME6, REQID_SIGNALLING)
    found = [
        Policy(into if agent else out, bu, 10, Action.PROTECT, bu_sa),
        Policy(out if agent else into, ba, 10, Action.PROTECT, ba_sa),
    ]
    anywhere = Template(Mode.TUNNEL, IPv4Address(0), IPv4Address(0), REQID_DATA)
    ends: list[tuple[Address, Address, str]] = [
        (HOME6, AGENT6, "::/0"),
        (HOME4, AGENT4, "0.0.0.0/0"),
    ]
    for home, other, world in ends:
        from_home = Selector(ip_network(home), ip_network(world))
        to_home = Selector(ip_network(world), ip_network(home))
        if agent:
            sending = Template(Mode.TUNNEL, AGENT4, CARE_OF, REQID_DATA)
            found += [
                Policy(out, to_home, 12, Action.PROTECT, sending),
                Policy(into, from_home, 12, Action.PROTECT, anywhere),
                Policy(Direction.FWD, from_home, 12, Action.PROTECT, anywhere),
            ]
        else:
            sending = Template(Mode.TUNNEL, CARE_OF, AGENT4, REQID_DATA)
            found += [
                Policy(out, from_home, 12, Action.PROTECT, sending),
                Policy(into, to_home, 12, Action.PROTECT, anywhere),
            ]
        there = Selector(ip_network(home), ip_network(other))
        back = Selector(ip_network(other), ip_network(home))
        found += [
            Policy(into if agent else out, there, 11, Action.BLOCK),
            Policy(out if agent else into, back, 11, Action.BLOCK),
        ]
    return found


def pair(*, encapsulated: bool = False) -> tuple[Engine, Engine]:
    """(mobile node, home agent), bound to each other."""
    ports = Encapsulation(4500, 4500) if encapsulated else None
    associations = [
        replace(tunnel_sa(CARE_OF, AGENT4, 0x1001), encapsulation=ports),
        replace(tunnel_sa(AGENT4, CARE_OF, 0x1002), encapsulation=ports),
        transport_sa(HOME6, AGENT6, 0x2001),
        transport_sa(AGENT6, HOME6, 0x2002),
    ]
    node_addresses: set[Address] = {HOME4, HOME6, CARE_OF}
    agent_addresses: set[Address] = {AGENT4, AGENT6}
    engines = []
    for agent, local in ((False, node_addresses), (True, agent_addresses)):
        engine = Engine(Random(), local_addresses=local)
        for association in associations:
            engine.add_association(association)
        engine.replace_policies(policies(agent=agent))
        engines.append(engine)
    return engines[0], engines[1]


def packet4(
    source: IPv4Address,
    destination: IPv4Address,
    *,
    tos: int = 0,
    length: int = 60,
    dont_fragment: bool = True,
) -> bytes:
    udp = build_udp(source, 5000, destination, 6000, bytes(range(60)) + bytes(length - 60))
    header = IPv4Header(
        source, destination, IPPROTO_UDP, tos=tos, dont_fragment=dont_fragment, identification=7
    )
    return build_ipv4(header, udp)


def packet6(
    source: IPv6Address,
    destination: IPv6Address,
    *,
    traffic_class: int = 0,
    length: int = 60,
) -> bytes:
    udp = build_udp(source, 5000, destination, 6000, bytes(range(60)) + bytes(length - 60))
    return build_ipv6(IPv6Header(source, destination, IPPROTO_UDP, 64, traffic_class), udp)


def mobility(source: IPv6Address, destination: IPv6Address, mh_type: int) -> bytes:
    """A packet with a mobility message of type 5 (update), 6 (acknowledgement) or 7 (error)."""
    messages: dict[int, mh.Message] = {
        5: mh.BindingUpdate(1, 10, acknowledge=True, home_registration=True),
        6: mh.BindingAck(0, 1, 10),
        7: mh.BindingError(1, source),
    }
    message = messages[mh_type]
    return build_ipv6(
        IPv6Header(source, destination, IPPROTO_MH), mh.encode(message, source, destination)
    )


def sent(engine: Engine, packet: bytes) -> bytes:
    result = engine.outbound(packet)
    assert not isinstance(result, Drop), result
    (outer,) = result
    return outer


def reason(result: object) -> DropReason:
    assert isinstance(result, Drop), result
    return result.reason
