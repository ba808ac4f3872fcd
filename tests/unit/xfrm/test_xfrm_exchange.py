"""Batches and their answers, without a socket."""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address
from typing import Any

import pytest
from xfrm_samples import TUNNEL_STATE

from dsmip_ipsec.xfrm import (
    Request,
    StateId,
    XfrmDecodeError,
    XfrmDumpInterrupted,
    XfrmError,
    XfrmOverrun,
    requests,
)
from dsmip_ipsec.xfrm.constants import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
)
from dsmip_ipsec.xfrm.exchange import (
    BATCH_MESSAGES,
    BATCH_OCTETS,
    SEQUENCES,
    Exchange,
    Sequences,
    messages,
    split,
)

FIRST = 1000


def delete(spi: int) -> Request[None]:
    return requests.delete_state(StateId(ip_address("192.0.2.2"), spi))


def get(spi: int) -> Request[Any]:
    return requests.get_state(StateId(ip_address("192.0.2.2"), spi))


def message(type_: int, sequence: int, payload: bytes = b"", flags: int = 0) -> bytes:
    octets = struct.pack("=IHHII", 16 + len(payload), type_, flags, sequence, 99) + payload
    return octets + bytes(-len(octets) & 3)


def error(sequence: int, code: int, *, text: str = "", capped: bool = True) -> bytes:
    """As the kernel builds it: the error, the request's header (all of it if not capped), TLVs."""
    request = struct.pack("=IHHII", 16 if capped else 24, 17, 5, sequence, 99)
    payload = struct.pack("=i", -code) + request + (b"" if capped else b"SECRETS!")
    flags = NLM_F_CAPPED if capped else 0
    if text:
        words = text.encode() + b"\0"
        payload += struct.pack("=HH", 4 + len(words), 1) + words
        flags |= NLM_F_ACK_TLVS
    return message(NLMSG_ERROR, sequence, payload, flags)


def test_only_the_last_message_asks_for_an_acknowledgement() -> None:
    exchange = Exchange([delete(1), delete(2), delete(3)], FIRST)
    sent = list(messages(exchange.datagram))
    assert [bool(flags & NLM_F_ACK) for _, flags, _, _ in sent] == [False, False, True]
    assert [sequence for _, _, sequence, _ in sent] == [FIRST, FIRST + 1, FIRST + 2]


def test_silence_before_the_last_acknowledgement_is_success() -> None:
    exchange = Exchange([delete(1), delete(2), delete(3)], FIRST)
    assert not exchange.receive(error(FIRST + 1, errno.ESRCH))
    assert exchange.receive(error(FIRST + 2, 0))
    assert [result.ok for result in exchange.results] == [True, False, True]
    failed = exchange.results[1].error
    assert failed is not None
    assert (failed.code, failed.hint) == (errno.ESRCH, "no such SA")
    assert str(failed) == "deleting SA esp 0x00000002 to 192.0.2.2: No such process (ESRCH)"


def test_a_failure_of_the_last_one_ends_the_exchange_too() -> None:
    exchange = Exchange([delete(1), delete(2)], FIRST)
    assert exchange.receive(error(FIRST + 1, errno.EPERM))
    assert [result.ok for result in exchange.results] == [True, False]


def test_answers_are_told_apart_by_sequence_number() -> None:
    exchange = Exchange([get(1), delete(2), get(3)], FIRST)
    exchange.receive(message(Message.NEWSA, FIRST + 2, TUNNEL_STATE))
    exchange.receive(error(FIRST, errno.ESRCH))
    assert exchange.receive(error(FIRST + 2, 0))
    first, second, third = exchange.results
    assert (first.ok, second.ok, third.ok) == (False, True, True)
    assert third.unwrap().reqid == 4242
    with pytest.raises(XfrmError):
        first.unwrap()


def test_messages_of_other_exchanges_are_ignored() -> None:
    exchange = Exchange([delete(1)], FIRST)
    stray = error(FIRST - 1, errno.EPERM) + error(FIRST + 1, 0) + message(Message.NEWSA, 0, b"")
    assert not exchange.receive(stray)
    assert exchange.receive(error(FIRST, 0))
    assert exchange.results[0].ok


def test_the_kernels_own_words_are_in_the_error() -> None:
    exchange = Exchange([delete(1)], FIRST)
    exchange.receive(error(FIRST, errno.EINVAL, text="Invalid key"))
    assert str(exchange.results[0].error).endswith(": Invalid key (EINVAL)")


def test_the_kernels_words_are_found_behind_a_whole_request_too() -> None:
    exchange = Exchange([delete(1)], FIRST)
    exchange.receive(error(FIRST, errno.EINVAL, text="Invalid key", capped=False))
    assert str(exchange.results[0].error).endswith(": Invalid key (EINVAL)")
    assert "SECRETS" not in str(exchange.results[0].error)


def test_a_dump_ends_with_done() -> None:
    exchange = Exchange([requests.dump_states()], FIRST)
    part = message(Message.NEWSA, FIRST, TUNNEL_STATE, NLM_F_MULTI)
    assert not exchange.receive(part + part)
    assert not exchange.receive(part)
    assert exchange.receive(message(NLMSG_DONE, FIRST, bytes(4), NLM_F_MULTI))
    assert len(exchange.results[0].unwrap()) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (message(NLMSG_DONE, FIRST, struct.pack("=i", -errno.EIO)), XfrmError),
        (message(Message.NEWSA, FIRST, TUNNEL_STATE[:200]), XfrmDecodeError),
        (message(Message.NEWPOLICY, FIRST, TUNNEL_STATE), XfrmDecodeError),
        (message(Message.NEWSA, FIRST, TUNNEL_STATE, NLM_F_DUMP_INTR), XfrmDumpInterrupted),
        (message(4, FIRST), XfrmOverrun),
        (message(NLMSG_ERROR, FIRST, b"\1"), XfrmDecodeError),
    ],
)
def test_a_dump_that_goes_wrong_is_no_shorter_dump(answer: bytes, kind: type[XfrmError]) -> None:
    exchange = Exchange([requests.dump_states()], FIRST)
    exchange.receive(message(Message.NEWSA, FIRST, TUNNEL_STATE) + answer)
    exchange.receive(message(NLMSG_DONE, FIRST, bytes(4)))
    assert exchange.done
    assert isinstance(exchange.results[0].error, kind)


def test_a_missing_answer_is_an_error() -> None:
    exchange = Exchange([get(1)], FIRST)
    exchange.receive(error(FIRST, 0))
    assert isinstance(exchange.results[0].error, XfrmDecodeError)


def test_what_breaks_the_exchange_leaves_no_success_behind() -> None:
    exchange = Exchange([delete(1), delete(2), delete(3)], FIRST)
    exchange.receive(error(FIRST + 1, errno.ESRCH))
    exchange.fail(XfrmOverrun("lost"))
    codes = [result.error.code for result in exchange.results if result.error]
    assert codes == [errno.ENOBUFS, errno.ESRCH, errno.ENOBUFS]


@pytest.mark.parametrize(
    "datagram",
    [b"\0" * 15, b"\0" * 16, message(2, FIRST, b"1234")[:-1], message(2, FIRST) + b"\1"],
)
def test_what_is_not_netlink_is_a_typed_error(datagram: bytes) -> None:
    with pytest.raises(XfrmDecodeError):
        Exchange([delete(1)], FIRST).receive(datagram)


def test_batches_are_split_by_number_and_size_and_dumps_go_alone() -> None:
    many = [delete(number) for number in range(2 * BATCH_MESSAGES + 1)]
    sizes = [len(group) for group in split(many)]
    assert sizes == [BATCH_MESSAGES, BATCH_MESSAGES, 1]
    big: Request[None] = Request(Message.NEWSA, bytes(BATCH_OCTETS // 2))
    assert [len(group) for group in split([big, big, big])] == [1, 1, 1]
    dump = requests.dump_states()
    assert [len(group) for group in split([delete(1), dump, delete(2), delete(3)])] == [1, 1, 2]
    assert list(split([])) == []


def test_sequence_numbers_wrap_within_their_range() -> None:
    sequences = Sequences()
    sequences._next = SEQUENCES[1] - 1
    assert sequences.take(2) == SEQUENCES[0]
    assert sequences.take(1) == SEQUENCES[0] + 2
    assert Sequences.owns(SEQUENCES[0])
    assert not Sequences.owns(0xFFFF)  # pyroute2's own
