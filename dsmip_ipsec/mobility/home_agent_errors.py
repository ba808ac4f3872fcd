"""How a home agent answers what it can't use (RFC 6275 §9.2, §9.3.3)."""

from __future__ import annotations

from ipaddress import IPv6Address

from dsmip_ipsec.mobility.acknowledgement import binding_error
from dsmip_ipsec.mobility.constants import MAX_ERROR_RATE
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig
from dsmip_ipsec.mobility.registration import is_routable_unicast
from dsmip_ipsec.mobility.types import MobilityPacket, Output, SendParameterProblem
from dsmip_ipsec.wire.errors import DecodeError, ParameterProblem
from dsmip_ipsec.wire.mobility import UnknownMessage, refusal


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
        return SendParameterProblem(packet, answer.code, answer.pointer)
    return binding_error(config, answer, packet.source, packet.outer)
