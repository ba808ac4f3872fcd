"""Tunnel formats, as RFC 5555 draws them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from mobility_samples import AGENT, AGENT_IPV4, CARE_OF, HOME, HOME_IPV4, NAT, PRIVATE, PUBLIC

from dsmip_ipsec.mobility.tunnelling import Header, Role, TunnelFormat, tunnel_format
from dsmip_ipsec.mobility.types import Binding, IPAddress, OuterAddress

V4, V6, UDP, ESP = Header.IPV4, Header.IPV6, Header.UDP, Header.ESP
HA, MN = Role.HOME_AGENT, Role.MOBILE_NODE
AT_AGENT = OuterAddress(AGENT_IPV4, 4191)
Z = OuterAddress(PUBLIC, 5000)  # no NAT, but a port of its own


def binding(
    care_of: IPAddress, outer: OuterAddress | None, *, nat: bool = False, udp: bool = False
) -> Binding:
    return Binding(
        HOME,
        AGENT,
        care_of,
        1,
        600,
        0.0,
        600.0,
        home_agent_ipv4=AGENT_IPV4,
        ipv4_home_address=HOME_IPV4,
        outer=outer,
        nat_detected=nat,
        udp_encapsulation=udp,
    )


@pytest.mark.rfc(
    "5555-4.1-1", "5555-4.1-2", "5555-4.5-13", "5555-4.5-15", "5555-4.5.1-1", "5555-2.3.2.2-4"
)
@pytest.mark.parametrize("inner", [V4, V6])
@pytest.mark.parametrize(
    ("bound", "role", "esp", "outer", "ends", "ports"),
    [
        # §4.4.3, §4.5.1: IPv6 networks, IP in IPv6.
        (binding(CARE_OF, None), HA, False, (V6,), (AGENT, CARE_OF), (None, None)),
        (binding(CARE_OF, None), MN, False, (V6,), (CARE_OF, AGENT), (None, None)),
        (binding(CARE_OF, None), HA, True, (V6, ESP), (AGENT, CARE_OF), (None, None)),
        (binding(CARE_OF, None), MN, True, (V6, ESP), (CARE_OF, AGENT), (None, None)),
        # IPv4 networks without NAT, IP in IPv4. §5.2.2: then ESP right behind IPv4.
        (binding(PUBLIC, Z), HA, False, (V4,), (AGENT_IPV4, PUBLIC), (None, None)),
        (binding(PUBLIC, AT_AGENT), MN, False, (V4,), (PUBLIC, AGENT_IPV4), (None, None)),
        (binding(PUBLIC, Z), HA, True, (V4, ESP), (AGENT_IPV4, PUBLIC), (None, None)),
        (binding(PUBLIC, AT_AGENT), MN, True, (V4, ESP), (PUBLIC, AGENT_IPV4), (None, None)),
        # With NAT: to V4ADDR and Z; ESP on 4500, at a port that IKE sees.
        (
            binding(PRIVATE, NAT, nat=True, udp=True),
            HA,
            False,
            (V4, UDP),
            (AGENT_IPV4, NAT.address),
            (4191, NAT.port),
        ),
        (
            binding(PRIVATE, AT_AGENT, nat=True, udp=True),
            MN,
            False,
            (V4, UDP),
            (PRIVATE, AGENT_IPV4),
            (4191, 4191),
        ),
        (
            binding(PRIVATE, NAT, nat=True, udp=True),
            HA,
            True,
            (V4, UDP, ESP),
            (AGENT_IPV4, NAT.address),
            (4500, None),
        ),
        (
            binding(PRIVATE, AT_AGENT, nat=True, udp=True),
            MN,
            True,
            (V4, UDP, ESP),
            (PRIVATE, AGENT_IPV4),
            (4500, 4500),
        ),
        # UDP forced without NAT.
        (binding(PUBLIC, Z, udp=True), HA, False, (V4, UDP), (AGENT_IPV4, PUBLIC), (4191, 5000)),
        (
            binding(PUBLIC, Z, udp=True),
            HA,
            True,
            (V4, UDP, ESP),
            (AGENT_IPV4, PUBLIC),
            (4500, 4500),
        ),
        # §4.4.1, the last resort: UDP over IPv6.
        (
            binding(CARE_OF, OuterAddress(CARE_OF, 4191), udp=True),
            HA,
            False,
            (V6, UDP),
            (AGENT, CARE_OF),
            (4191, 4191),
        ),
    ],
)
def test_rfc5555_4_1_formats(
    bound: Binding,
    role: Role,
    esp: bool,
    outer: tuple[Header, ...],
    ends: tuple[IPAddress, IPAddress],
    ports: tuple[int | None, int | None],
    inner: Header,
) -> None:
    """The outer headers don't depend on the inner family (§4.2)."""
    version = 4 if inner is V4 else 6
    assert tunnel_format(bound, role, version, esp=esp) == TunnelFormat(
        (*outer, inner), *ends, *ports
    )


@pytest.mark.parametrize(
    ("care_of", "udp", "esp", "overhead", "text"),
    [
        (CARE_OF, False, False, 40, "IPv6 / IPv6"),
        (PUBLIC, False, False, 20, "IPv4 / IPv6"),
        (PUBLIC, True, False, 28, "IPv4 / UDP / IPv6"),
        (PUBLIC, True, True, 28, "IPv4 / UDP / ESP / IPv6"),
    ],
)
def test_rfc5555_4_1_1_overhead(
    care_of: IPAddress, udp: bool, esp: bool, overhead: int, text: str
) -> None:
    outer = OuterAddress(care_of, 4191) if isinstance(care_of, IPv4Address) else None
    made = tunnel_format(binding(care_of, outer, udp=udp), HA, 6, esp=esp)
    assert (made.overhead, str(made)) == (overhead, text)
    assert (made.udp, made.esp) == (udp, esp)
