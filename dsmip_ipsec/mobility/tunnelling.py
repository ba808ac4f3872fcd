"""Which headers a data packet travels in (RFC 5555 §4.1, §4.4.3, §4.5.1, §5.2.2).

A pure function from binding to format, for both ends and both families. Signalling doesn't pass
here: it is ESP transport mode, in UDP whenever the care-of address is IPv4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from dsmip_ipsec.mobility.types import Binding, IPAddress
from dsmip_ipsec.wire.ip import DSMIP_PORT, IKE_NATT_PORT


class Role(StrEnum):
    """Which end of the binding a node is."""

    MOBILE_NODE = "mobile_node"
    HOME_AGENT = "home_agent"


class Header(Enum):
    """A header of the tunnel, with its length in octets (ESP: see :class:`TunnelFormat`)."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"
    UDP = "UDP"
    ESP = "ESP"


_FIXED_LENGTH = {Header.IPV4: 20, Header.IPV6: 40, Header.UDP: 8, Header.ESP: 0}


@dataclass(frozen=True, slots=True)
class TunnelFormat:
    """How one end sends the packets of one inner family through the tunnel.

    ``headers`` are the outer ones in order, the inner IP header last. ``source`` and
    ``destination`` are outer addresses. ``source_port`` and ``destination_port`` are those of the
    UDP header, None without one, and None where another protocol than DSMIPv6 knows them: behind
    a NAT, the port of ESP in UDP at the mobile node's side is what IKEv2 sees (RFC 5555 §5.1).

    What holds of MTU, TTL, DSCP and ECN (RFC 5555 §4.1.1): :mod:`.tunnel_rules`.
    """

    headers: tuple[Header, ...]
    source: IPAddress
    destination: IPAddress
    source_port: int | None = None
    destination_port: int | None = None

    @property
    def udp(self) -> bool:
        """True when a UDP header follows the outer IP header."""
        return Header.UDP in self.headers

    @property
    def esp(self) -> bool:
        """True for ESP tunnel mode."""
        return Header.ESP in self.headers

    @property
    def overhead(self) -> int:
        """Octets added in front of the inner packet, without what ESP adds (that depends on its
        algorithms and on the length of the packet)."""
        return sum(_FIXED_LENGTH[header] for header in self.headers[:-1])

    def __str__(self) -> str:
        return " / ".join(header.value for header in self.headers)


def tunnel_format(binding: Binding, role: Role, inner_version: int, *, esp: bool) -> TunnelFormat:
    """The format in which ``role`` sends packets of IP ``inner_version`` (4 or 6).

    * IPv6 care-of address: IPv6 in IPv6 and IPv4 in IPv6; UDP only as the forced last resort of
      RFC 5555 §4.4.1.
    * IPv4 care-of address: IPv6 in IPv4 and IPv4 in IPv4, with UDP between when a NAT was
      detected or UDP encapsulation was forced (§4.4.3, §4.5.1).
    * ``esp``: tunnel mode; UDP then has port 4500 (§5.2.2), otherwise port 4191 (§4.2).

    The home agent sends to V4ADDR, the address that the binding update came from, which is the
    care-of address when there is no NAT.
    """
    care_of = binding.care_of_address
    udp = binding.udp_encapsulation
    agent: IPAddress
    if care_of.version == 6:
        agent = binding.home_agent
        outer_header = Header.IPV6
    else:
        agent = _home_agent_ipv4(binding)
        outer_header = Header.IPV4
    headers = (
        outer_header,
        *((Header.UDP,) if udp else ()),
        *((Header.ESP,) if esp else ()),
        Header.IPV4 if inner_version == 4 else Header.IPV6,
    )
    at_agent = IKE_NATT_PORT if esp else DSMIP_PORT
    if role is Role.HOME_AGENT:
        mobile: IPAddress = care_of
        at_mobile: int | None = at_agent
        if binding.outer is not None:
            mobile = binding.outer.address
            if not esp:
                at_mobile = binding.outer.port
        if esp and binding.nat_detected:
            at_mobile = None
        return TunnelFormat(
            headers, agent, mobile, at_agent if udp else None, at_mobile if udp else None
        )
    return TunnelFormat(
        headers, care_of, agent, at_agent if udp else None, at_agent if udp else None
    )


def _home_agent_ipv4(binding: Binding) -> IPAddress:
    # Every engine sets it in a binding with an IPv4 care-of address.
    assert binding.home_agent_ipv4 is not None
    return binding.home_agent_ipv4
