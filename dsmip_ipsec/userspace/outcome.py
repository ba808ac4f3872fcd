"""What becomes of a packet: it goes on, or it is dropped for a reason that can be counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DropReason(Enum):
    """Why a packet goes no further. In brackets: the counter of Linux (``/proc/net/xfrm_stat``)
    that says the same, where there is one."""

    MALFORMED = "malformed"  # XfrmInHdrError
    NO_POLICY = "no_policy"
    BLOCKED = "blocked"  # XfrmInPolBlock, XfrmOutPolBlock
    NO_ASSOCIATION = "no_association"  # XfrmInNoStates, XfrmOutNoStates
    SEQUENCE_EXHAUSTED = "sequence_exhausted"  # XfrmOutStateSeqError
    FRAGMENT = "fragment"
    TOO_BIG = "too_big"
    REPLAY = "replay"  # XfrmInStateSeqError
    INTEGRITY = "integrity"  # XfrmInStateProtoError
    DUMMY = "dummy"
    CONGESTION = "congestion"
    SELECTOR = "selector"  # XfrmInStateMismatch
    UNPROTECTED = "unprotected"  # XfrmInTmplMismatch
    WRONG_ASSOCIATION = "wrong_association"  # XfrmInTmplMismatch
    KEEPALIVE = "keepalive"
    IKE = "ike"


@dataclass(frozen=True, slots=True)
class Drop:
    """``detail`` is a sentence without keys and payload. KEEPALIVE and IKE are no failures: the
    packet is somebody else's."""

    reason: DropReason
    detail: str = ""
