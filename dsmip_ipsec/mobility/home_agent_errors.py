"""How a home agent answers what it can't use (RFC 6275 §9.2, §9.3.3)."""

from __future__ import annotations

from ipaddress import IPv6Address

from dsmip_ipsec.mobility.acknowledgement import binding_error
from dsmip_ipsec.mobility.constants import MAX_ERROR_RATE
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig
from dsmip_ipsec.mobility.registration import is_routable_unicast
from dsmip_ipsec.mobility.types import MobilityPacket, Output, SendIcmp
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.errors import DecodeError, ParameterProblem
from dsmip_ipsec.wire.exthdr import encode_home_address
from dsmip_ipsec.wire.ip import IPPROTO_DSTOPTS, IPPROTO_MH, IPv6Header, build_ipv6
from dsmip_ipsec.wire.mobility import UnknownMessage, refusal

# Octets of a Mobility Header in front of what its type gives a meaning (RFC 6275 §6.1.1).
_COMMON = 6


class ErrorRate:
    """At most :data:`MAX_ERROR_RATE` answers within a second."""

    __slots__ = ("_count", "_since")

    def __init__(self) -> None:
        self._since = 0.0
        self._count = 0

    def allows(self, source: IPv6Address, now: float) -> bool:
        """True when an answer to ``source`` may be sent (§9.3.3: never to what isn't unicast)."""
        if not is_routable_unicast(source):
            return False
        if now - self._since >= 1.0:
            self._since = now
            self._count = 0
        self._count += 1
        return self._count <= MAX_ERROR_RATE


def answer_to(
    config: HomeAgentConfig, packet: MobilityPacket, refused: DecodeError | UnknownMessage
) -> Output | None:
    """The Parameter Problem or Binding Error that ``packet`` deserves, None for silence."""
    answer = refusal(refused, packet.home_address_option)
    if answer is None:
        return None
    if isinstance(answer, ParameterProblem):
        return _parameter_problem(packet, answer)
    return binding_error(config, answer, packet.source, packet.outer)


def _parameter_problem(packet: MobilityPacket, answer: ParameterProblem) -> SendIcmp | None:
    """§9.2: "directly to the Source Address of the packet", in clear: there is no SA for it.

    In UDP and on the home link that address is the home address, and nothing passes between the
    two that isn't a protected binding message (RFC 5555 §5.2.2): silence then. What the message
    says was under ESP, so no more is quoted than what every Mobility Header begins with.
    """
    home_address = packet.home_address_option
    if packet.outer is not None or home_address is None:
        return None
    options = encode_home_address(home_address, IPPROTO_MH)
    header = IPv6Header(packet.source, packet.destination, IPPROTO_DSTOPTS)
    before = len(build_ipv6(header, options))
    quoted = build_ipv6(header, options + packet.message)[: before + _COMMON]
    problem = icmp6.IcmpParameterProblem(answer.code, before + answer.pointer, quoted)
    message = icmp6.encode(problem, packet.destination, packet.source)
    return SendIcmp(packet.destination, packet.source, message, packet.destination, protected=False)
