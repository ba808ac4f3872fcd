"""Moving an SA to other outer addresses or encapsulation.

The kernel has no one message for it: UPDSA can't, and MIGRATE neither switches encapsulation off
nor moves more than one SA of a policy. So the state is read (with keys, counters and lifetimes),
added anew with the other outer header, and the old one deleted. The destination, SPI and protocol
are a state's identity: where they stay the same the old one must be deleted first.

Between reading and adding, packets still pass: an inbound state forgets those it saw meanwhile
(they could be replayed once), an outbound state would use their sequence numbers again (the peer
drops those). :attr:`Move.skip` leaves out numbers for the latter. AEAD nonces don't repeat: the
kernel draws a new random salt for the IVs of every state.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from dsmip_ipsec.xfrm import decode, encode
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import NLM_F_CREATE, NLM_F_EXCL, Attribute, Message, StateFlag
from dsmip_ipsec.xfrm.errors import XfrmDecodeError, XfrmEncodeError, XfrmError
from dsmip_ipsec.xfrm.exchange import Request, Result
from dsmip_ipsec.xfrm.types import (
    Address,
    Encap,
    Key,
    Replay,
    Selector,
    State,
    StateId,
    address_family,
)


class Keep(Enum):
    """Says that something stays as it is (None says that there is none)."""

    KEEP = "keep"


KEEP = Keep.KEEP


@dataclass(frozen=True, slots=True)
class Move:
    """What changes of the state ``id``. ``encap`` and ``selector`` stay unless given; an
    ``encap`` of None switches UDP encapsulation off."""

    id: StateId
    source: Address
    destination: Address
    encap: Encap | Keep | None = KEEP
    selector: Selector | Keep = KEEP
    skip: int = 0


def moved_state(state: State, move: Move) -> State:
    """The state with its new outer header. Raises XfrmEncodeError if its numbers run out."""
    return replace(
        state,
        source=move.source,
        destination=move.destination,
        encap=state.encap if isinstance(move.encap, Keep) else move.encap,
        selector=state.selector if isinstance(move.selector, Keep) else move.selector,
        replay=_skip(state.replay, move.skip) if move.skip else state.replay,
        sequence=0,  # that of an acquire, which is over
    )


def replace_state(current: State, new: State) -> tuple[Request[None], ...]:
    """Requests that put ``new`` in the place of ``current`` (as it was read just before), in
    order: make before break where the kernel allows it.

    The kernel does not stop at a failed request: send the last one only when the others have
    succeeded (as :meth:`XfrmSocket.move_states` does), or a refused addition loses the SA.
    """
    for algorithm in (current.aead, current.encryption, current.authentication):
        if algorithm is not None:
            _check_key(algorithm.key.reveal(), current.spi)
    add, delete = verbs.add_state(new), verbs.delete_state(current.id)
    return (delete, add) if current.id == new.id else (add, delete)


def moved_octets(state: bytes, move: Move) -> bytes:
    """What :func:`moved_state` does, on the payload that GETSA answers: the payload for NEWSA.

    Several times faster than through a :class:`State`; attributes that nobody here knows stay.
    Raises XfrmDecodeError, and XfrmError for what can't be moved.
    """
    destination, source, encap = move.destination, move.source, move.encap
    if len(state) < _END:
        raise XfrmDecodeError(f"an SA needs {_END} octets and has {len(state)}")
    if source.version != destination.version:
        raise XfrmEncodeError(f"{source} and {destination} are of two families")
    selector, flags = state[:_DESTINATION], state[_FLAGS]
    if not isinstance(move.selector, Keep):
        selector = encode.encode_selector(move.selector)
        if move.selector.source is None:
            flags |= StateFlag.AF_UNSPEC
    parts = [
        selector,
        c.pack_address(destination),
        state[_DESTINATION_END:_SOURCE],
        c.pack_address(source),
        state[_SOURCE_END:_SEQUENCE],
        bytes(4),  # the number of an acquire, which is over
        state[_SEQUENCE_END:_FAMILY],
        address_family(destination).to_bytes(2, sys.byteorder),
        state[_FAMILY_END:_FLAGS],
        bytes((flags,)),
        state[_FLAGS + 1 : _END],
        _LIFETIME_HEADER,
        state[_CURRENT:_CURRENT_END],
    ]
    for number, value in c.iterate_attributes(state, _END):
        if number in _OUTPUT_ONLY or (number == Attribute.ENCAP and encap is not KEEP):
            continue
        if (key_offset := _KEY_OFFSETS.get(number)) is not None:
            _check_key(value[key_offset:], move.id.spi)
            if number == Attribute.ALG_AUTH and _has_truncation(state):
                continue  # the same key again
        elif number == Attribute.COADDR and destination.version != move.id.destination.version:
            raise XfrmEncodeError("a state with a care-of address has no other family")
        elif move.skip and number in (Attribute.REPLAY_VAL, Attribute.REPLAY_ESN_VAL):
            value = _skip_octets(number, value, move.skip)
        parts.append(c.pack_attribute(number, value))
    if isinstance(encap, Encap):
        parts.append(c.pack_attribute(Attribute.ENCAP, encode.encode_encap(encap)))
    return b"".join(parts)


class MoveInProgress:
    """One move, in steps of requests: :attr:`read`, :meth:`make`, :meth:`settle`, :meth:`end`;
    each step is given the results of the one before.

    Whatever fails, one state stands at the end: the new one if everything went well, else the
    old one. If somebody else deleted the old one before we did, the new one stands, and the result
    is ESRCH: they may have been about to move it as well (charon deletes, then adds), and their
    addition fails where the new one is. Whether it is still wanted is for the caller to find out.
    """

    def __init__(self, move: Move) -> None:
        self.move = move
        self.error: XfrmError | None = None
        old = move.id
        source = None if old.source is None else move.source
        self.new_id = StateId(move.destination, old.spi, old.protocol, old.mark, source)
        self._break_first = move.destination == old.destination
        self._old = b""
        self._restores = False
        payload = encode.encode_state_id(old)
        # What is read holds keys, so its octets are wrapped as one.
        self.read: tuple[Request[Key], ...] = (
            Request(Message.GETSA, payload, answer=Message.NEWSA, decode=Key, subject=move.id),
        )
        self._delete: Request[None] = Request(Message.DELSA, payload, subject=move.id)

    def make(self, results: Sequence[Result[Key]]) -> tuple[Request[None], ...]:
        """First changes. With the same identity, deletion and addition must go together."""
        try:
            self._old = results[0].unwrap().reveal()
            add = self._add(moved_octets(self._old, self.move), self.new_id)
        except XfrmError as error:
            self.error = error
            return ()
        return (self._delete, add) if self._break_first else (add,)

    def settle(self, results: Sequence[Result[None]]) -> tuple[Request[None], ...]:
        """What to send after the first changes."""
        if self.error is not None:
            return ()
        self.error = next((result.error for result in results if result.error), None)
        if self.error is None:
            return () if self._break_first else (self._delete,)
        if self._break_first and results[0].ok:
            self._restores = True
            stay = Move(self.move.id, *self._old_addresses())
            return (self._add(moved_octets(self._old, stay), self.move.id),)
        return ()

    def end(self, results: Sequence[Result[None]]) -> None:
        """Take over the results of what :meth:`settle` wanted."""
        failed = next((result.error for result in results if result.error), None)
        if failed is None:
            return
        if self.error is None:
            self.error = failed
        elif self._restores:
            self.error = XfrmError(
                self.error.code,
                f"{self.error.message}; the old SA couldn't be put back: {failed.message}",
                hint=self.error.hint,
            )

    @property
    def result(self) -> Result[StateId]:
        """The new state's identity, or what went wrong."""
        about: Request[StateId] = Request(Message.GETSA, b"", subject=self.move.id)
        return Result(about, None if self.error else self.new_id, self.error)

    def _old_addresses(self) -> tuple[Address, Address]:
        family = self.move.id.family
        source = self._old[_SOURCE:_SOURCE_END]
        return c.unpack_address(source, family), self.move.id.destination

    @staticmethod
    def _add(payload: bytes, state_id: StateId) -> Request[None]:
        return Request(Message.NEWSA, payload, NLM_F_CREATE | NLM_F_EXCL, subject=state_id)


def deal(
    moves: Sequence[MoveInProgress],
    asked: Sequence[Sequence[Request[Any]]],
    results: Sequence[Result[Any]],
) -> Iterator[tuple[MoveInProgress, Sequence[Result[Any]]]]:
    """Gives each move the results of its own requests, out of those of a batch of all."""
    at = 0
    for move, requests in zip(moves, asked, strict=True):
        yield move, results[at : at + len(requests)]
        at += len(requests)


# Places in struct xfrm_usersa_info.
_DESTINATION, _DESTINATION_END = 56, 72
_SOURCE, _SOURCE_END = 80, 96
_CURRENT, _CURRENT_END = 160, 192
_SEQUENCE, _SEQUENCE_END = 204, 208
_FAMILY, _FAMILY_END = 212, 214
_FLAGS = 216
_END = c.USERSA_INFO.size
_LIFETIME_HEADER = c.NLATTR.pack(36, Attribute.LTIME_VAL)
_OUTPUT_ONLY = frozenset(
    {Attribute.LTIME_VAL, Attribute.LASTUSED, Attribute.PAD, Attribute.SRCADDR}
)
_KEY_OFFSETS: dict[int, int] = {
    Attribute.ALG_AUTH: c.ALGORITHM.size,
    Attribute.ALG_CRYPT: c.ALGORITHM.size,
    Attribute.ALG_AEAD: c.ALGORITHM_ICV.size,
    Attribute.ALG_AUTH_TRUNC: c.ALGORITHM_ICV.size,
}


def _has_truncation(state: bytes) -> bool:
    return any(
        number == Attribute.ALG_AUTH_TRUNC for number, _ in c.iterate_attributes(state, _END)
    )


def _skip(replay: Replay, count: int) -> Replay:
    oseq = replay.oseq + count
    if not replay.extended or oseq < 1 << 32:
        if oseq >= 1 << 32:
            raise XfrmEncodeError("the SA's sequence numbers run out", hint="rekey it")
        return replace(replay, oseq=oseq)
    return replace(replay, oseq=oseq & 0xFFFFFFFF, oseq_hi=replay.oseq_hi + 1)


def _skip_octets(number: int, value: bytes, count: int) -> bytes:
    replay = decode.decode_replay({number: value})
    ((_, skipped),) = c.iterate_attributes(encode.encode_replay(_skip(replay, count)))
    return skipped


def _check_key(key: bytes, spi: int) -> None:
    if key and not any(key):
        raise XfrmError(
            errno.EACCES,
            f"the kernel hides the keys of SA {spi:#010x}, so it can't be moved",
            hint="kernel lockdown in confidentiality mode redacts keys",
        )
