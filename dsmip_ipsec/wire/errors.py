"""What can be wrong with bytes, and what the standards want answered.

``offset`` counts octets from the start of the buffer that was decoded. ``answer`` is None where
the message must be (or had better be) discarded in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsmip_ipsec.errors import WireError

if TYPE_CHECKING:
    from dsmip_ipsec.wire.messages import Message


@dataclass(frozen=True, slots=True)
class ParameterProblem:
    """An ICMPv6 Parameter Problem (RFC 4443 §3.4) that the receiver should send.

    ``pointer`` counts from the start of the decoded header or chain of headers; whoever sends
    the ICMP message adds the offset of that header in the invoking packet.
    """

    code: int
    pointer: int


class EncodeError(WireError):
    """A value doesn't fit its field, or the RFC forbids the combination."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or "correct the value in the message to be sent")


class DecodeError(WireError):
    """Base of every refusal of received bytes."""

    default_hint = "the packet was dropped; capture it and compare it with its sender's RFC"

    def __init__(
        self,
        message: str,
        *,
        offset: int = -1,
        hint: str = "",
        answer: ParameterProblem | None = None,
    ) -> None:
        super().__init__(message, offset=offset, hint=hint or self.default_hint)
        self.answer = answer


class TruncatedError(DecodeError):
    """The buffer ends before the header does."""

    default_hint = "the packet was cut short: look for a broken sender, a small buffer or an MTU"


class ChecksumError(DecodeError):
    """The checksum is wrong: silently discarded (RFC 6275 §9.2)."""

    default_hint = (
        "changed on the way, or summed over other addresses than ours: the pseudo-header takes "
        "the home address in place of the care-of address (RFC 6275 §6.1.1)"
    )


class BadPayloadProtocol(DecodeError):
    """Payload Proto isn't 59: Parameter Problem, code 0, at that field (RFC 6275 §9.2)."""

    def __init__(self, value: int) -> None:
        super().__init__(
            f"Payload Proto of the Mobility Header is {value}, not 59 (IPPROTO_NONE)",
            offset=0,
            answer=ParameterProblem(0, 0),
        )


class BadHeaderLength(DecodeError):
    """Header Len is too small for the message type: Parameter Problem, code 0, at that field
    (RFC 6275 §9.2)."""

    def __init__(self, mh_type: int, length: int, minimum: int) -> None:
        super().__init__(
            f"Mobility Header of type {mh_type} is {length} octets long, at least {minimum} needed",
            offset=1,
            answer=ParameterProblem(0, 1),
        )


class OptionError(DecodeError):
    """An option overruns its header, or its content is forbidden.

    ``option_type`` is the option's number. ``partial`` is the mobility message with the options
    that could be read, or None: a home agent may refuse a Binding Update by it, where the RFC
    lets it answer.
    """

    def __init__(
        self,
        message: str,
        *,
        option_type: int,
        offset: int,
        answer: ParameterProblem | None = None,
    ) -> None:
        super().__init__(message, offset=offset, answer=answer)
        self.option_type = option_type
        self.partial: Message | None = None


class PrefixLengthError(OptionError):
    """A prefix length of zero, or longer than the address (RFC 5555 §3.1.1)."""


class ExtensionHeaderError(DecodeError):
    """An IPv6 extension header that makes the packet worthless."""


class VersionError(DecodeError):
    """Neither or the wrong one of IPv4 and IPv6."""
