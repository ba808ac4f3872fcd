"""Requests and their answers, without a socket: what goes into a datagram, and what the
datagrams that come back say about each request.

Many requests go out in one datagram. The kernel works through them in order, before the call
that sends them returns, and while it holds the lock of XFRM's configuration. Only the last one
asks for an acknowledgement: a failed request answers in any case, so once the last has been
answered, those that were silent before it have succeeded. One datagram in place of dozens.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    NLMSGERR_ATTR_MSG,
    Message,
)
from dsmip_ipsec.xfrm.errors import (
    XfrmDecodeError,
    XfrmDumpInterrupted,
    XfrmError,
    XfrmOverrun,
    kernel_error,
)
from dsmip_ipsec.xfrm.types import Policy, PolicyId, State, StateId

T = TypeVar("T")

#: Requests and octets in one datagram at most: all their answers fit a default receive buffer.
BATCH_MESSAGES = 64
BATCH_OCTETS = 32768
#: Larger receive buffers make some kernels (User-Mode Linux) ten times slower.
RECEIVE_OCTETS = 65536
#: First and last sequence number; pyroute2's own requests use those below.
SEQUENCES = (0x10000, 0xFFFF0000)

_INTRO = {
    Message.NEWSA: "adding",
    Message.UPDSA: "updating",
    Message.DELSA: "deleting",
    Message.GETSA: "reading",
    Message.ALLOCSPI: "allocating an SPI for",
    Message.NEWPOLICY: "adding",
    Message.UPDPOLICY: "updating",
    Message.DELPOLICY: "deleting",
    Message.GETPOLICY: "reading",
    Message.NEWAE: "setting the counters of",
    Message.GETAE: "reading the counters of",
    Message.MIGRATE: "migrating",
}


# Not frozen, because that triples the time to make one, and many are made.
@dataclass(slots=True)
class Request(Generic[T]):
    """One request: a message type and the octets behind its header.

    ``answer`` and ``decode`` say what comes back besides the acknowledgement (None: nothing);
    with NLM_F_DUMP in ``flags`` it is a list. ``subject`` is what an error message is about.
    """

    message: Message
    payload: bytes = field(repr=False)
    flags: int = 0
    answer: Message | None = None
    decode: Callable[[bytes], Any] | None = field(default=None, repr=False)
    subject: State | StateId | Policy | PolicyId | None = None

    @property
    def is_dump(self) -> bool:
        return self.flags & NLM_F_DUMP == NLM_F_DUMP and self.answer is not None

    def describe(self) -> str:
        """What is asked, in words and without secrets."""
        intro = _INTRO.get(self.message)
        subject = self.subject
        if intro is None or subject is None:
            return self.message.name
        if isinstance(subject, State | StateId):
            what = (
                f"SA {subject.protocol.name.lower()} {subject.spi:#010x} to {subject.destination}"
            )
        else:
            selector = subject.selector
            what = (
                f"policy {subject.direction.name.lower()} {selector.source} -> "
                f"{selector.destination}"
            )
            if selector.protocol:
                what += f" proto {selector.protocol}"
        return f"{intro} {what}"


@dataclass(slots=True)
class Result(Generic[T]):
    """What became of a request: a value (None for those that only succeed), or an error."""

    request: Request[T]
    value: T | None = None
    error: XfrmError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    def unwrap(self) -> T:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def split(requests: Sequence[Request[Any]]) -> Iterator[list[Request[Any]]]:
    """Requests in groups that fit one datagram. A dump goes alone: its answers follow later."""
    group: list[Request[Any]] = []
    octets = 0
    after_dump = False
    for request in requests:
        size = 16 + len(request.payload) + 3
        is_dump = request.is_dump
        if group and (
            is_dump or after_dump or len(group) >= BATCH_MESSAGES or octets + size > BATCH_OCTETS
        ):
            yield group
            group, octets = [], 0
        group.append(request)
        octets += size
        after_dump = is_dump
    if group:
        yield group


def messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and payload of each netlink message of a datagram."""
    offset, end = 0, len(datagram)
    while offset < end:
        if end - offset < 16:
            raise XfrmDecodeError("a netlink header is cut short", offset=offset)
        length, type_, flags, sequence, _ = c.NLMSGHDR.unpack_from(datagram, offset)
        if not 16 <= length <= end - offset:
            raise XfrmDecodeError(
                f"a netlink message says it has {length} octets, {end - offset} are left",
                offset=offset,
            )
        yield type_, flags, sequence, datagram[offset + 16 : offset + length]
        offset += (length + 3) & ~3


class Exchange:
    """The requests of one datagram and what is known of their answers.

    Send :attr:`datagram`, give everything that comes back to :meth:`receive` until it returns
    True, then read :attr:`results`. Messages of other exchanges are not touched.
    """

    def __init__(self, requests: Sequence[Request[Any]], first_sequence: int) -> None:
        self.requests = requests
        self.first_sequence = first_sequence
        self.done = not requests
        self._values: list[list[Any]] = [[] for _ in requests]
        self._errors: list[XfrmError | None] = [None] * len(requests)

    @property
    def datagram(self) -> bytes:
        """The octets to send."""
        parts = []
        sequence, last = self.first_sequence, self.requests[-1]
        for request in self.requests:
            payload = request.payload
            flags = request.flags | NLM_F_REQUEST
            if request is last and sequence == self.first_sequence + len(self.requests) - 1:
                flags |= 0 if request.is_dump else NLM_F_ACK
            length = len(payload)
            parts.append(c.NLMSGHDR.pack(16 + length, request.message, flags, sequence, 0))
            parts.append(payload)
            if length & 3:
                parts.append(bytes(-length & 3))
            sequence += 1
        return b"".join(parts)

    def receive(self, datagram: bytes) -> bool:
        """Takes a datagram; True once every request has its answer.

        A datagram that isn't netlink raises XfrmDecodeError; an answer that can't be decoded
        becomes its request's error.
        """
        for type_, flags, sequence, payload in messages(datagram):
            index = sequence - self.first_sequence
            if 0 <= index < len(self.requests):
                self._take(index, type_, flags, payload)
        return self.done

    def fail(self, error: XfrmError) -> None:
        """Every request without a final answer has failed so. (A request that only its silence
        says has succeeded has none before the last one is answered.)"""
        if not self.done:
            self._errors = [known or error for known in self._errors]
            self.done = True

    @property
    def results(self) -> list[Result[Any]]:
        """One result a request, in their order. Complete when :attr:`done`."""
        known = zip(self.requests, self._values, self._errors, strict=True)
        return [self._result(*each) for each in known]

    @staticmethod
    def _result(request: Request[Any], values: list[Any], error: XfrmError | None) -> Result[Any]:
        if error is not None:
            return Result(request, None, error)
        if request.is_dump:
            return Result(request, values, None)
        if request.answer is not None and len(values) != 1:
            text = f"{request.describe()}: {len(values)} answers in place of one"
            return Result(request, None, XfrmDecodeError(text))
        return Result(request, values[0] if values else None, None)

    def _take(self, index: int, type_: int, flags: int, payload: bytes) -> None:
        request = self.requests[index]
        final = index == len(self.requests) - 1
        if request.is_dump and flags & NLM_F_DUMP_INTR and self._errors[index] is None:
            self._errors[index] = XfrmDumpInterrupted(f"{request.describe()}: changed meanwhile")
        if type_ in (NLMSG_ERROR, NLMSG_DONE):
            if type_ == NLMSG_ERROR or payload:
                self._error(index, flags, payload)
            self.done = self.done or final
        elif type_ == NLMSG_OVERRUN:
            self._errors[index] = XfrmOverrun(f"{request.describe()}: answers were lost")
        elif type_ != NLMSG_NOOP:
            self._answer(index, type_, payload)

    def _answer(self, index: int, type_: int, payload: bytes) -> None:
        request = self.requests[index]
        try:
            if type_ != request.answer or request.decode is None:
                raise XfrmDecodeError(
                    f"{request.describe()}: unexpected answer {Message(type_).name}"
                )
            self._values[index].append(request.decode(payload))
        except XfrmDecodeError as error:
            self._errors[index] = self._errors[index] or error

    def _error(self, index: int, flags: int, payload: bytes) -> None:
        request = self.requests[index]
        if len(payload) < 4:
            self._errors[index] = XfrmDecodeError(f"{request.describe()}: an error without code")
            return
        code = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
        if not 0 <= code <= 4095:  # MAX_ERRNO
            self._errors[index] = XfrmDecodeError(f"{request.describe()}: absurd error {-code}")
        elif code:
            detail = _detail(flags, payload)
            self._errors[index] = kernel_error(
                request.message.name, code, request.describe(), detail
            )


def _detail(flags: int, payload: bytes) -> str:
    """The kernel's own words, from an extended acknowledgement. Never fails."""
    if not flags & NLM_F_ACK_TLVS or len(payload) < 20:
        return ""
    offset = 20
    if not flags & NLM_F_CAPPED:
        (length,) = c.U32.unpack_from(payload, 4)
        offset = 4 + max(16, min((length + 3) & ~3, len(payload)))
    try:
        text = dict(c.iterate_attributes(payload, offset)).get(NLMSGERR_ATTR_MSG, b"")
    except XfrmDecodeError:
        return ""
    return text.rstrip(b"\0").decode("utf-8", "replace")


class Sequences:
    """Hands out consecutive sequence numbers."""

    def __init__(self) -> None:
        self._next = SEQUENCES[0]

    def take(self, count: int) -> int:
        """The first of ``count`` consecutive numbers."""
        if self._next + count > SEQUENCES[1]:
            self._next = SEQUENCES[0]
        first = self._next
        self._next += count
        return first

    @staticmethod
    def owns(sequence: int) -> bool:
        """Whether a number is one of these."""
        return SEQUENCES[0] <= sequence < SEQUENCES[1]


def not_sent(requests: Sequence[Request[Any]]) -> list[Result[Any]]:
    """Results of requests that weren't sent because an exchange before them broke."""
    return [
        Result(
            request,
            None,
            XfrmError(
                errno.ECANCELED, f"{request.describe()}: not sent, the exchange before it broke"
            ),
        )
        for request in requests
    ]
