"""What can go wrong between two charons, each as its own type.

charon answers a failed VICI command with "establishing CHILD_SA 'x' failed" and says why in its
log only. The driver reads that log along with the command; :func:`classify` turns it into the
type that a caller can act on.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsmip_ipsec.errors import IkeError

__all__ = [
    "AuthenticationFailedError",
    "CharonDiedError",
    "IkeError",
    "IkeTimeoutError",
    "NoProposalChosenError",
    "PeerUnreachableError",
    "TsUnacceptableError",
    "classify",
]


class AuthenticationFailedError(IkeError):
    """AUTHENTICATION_FAILED (RFC 7296 §3.10.1), sent or received: wrong key, certificate or
    identity."""


class NoProposalChosenError(IkeError):
    """NO_PROPOSAL_CHOSEN: no common algorithms, or the kernel refused the SA."""


class TsUnacceptableError(IkeError):
    """TS_UNACCEPTABLE: the peer doesn't grant these traffic selectors to this identity."""


class PeerUnreachableError(IkeError):
    """No answer to all retransmissions (UDP 4500 blocked, or the peer's charon isn't there)."""


class IkeTimeoutError(IkeError):
    """The time that the caller gave ran out."""


class CharonDiedError(IkeError):
    """The charon process ended, or its VICI socket closed, while it was needed."""


# The words of strongSwan 5.9 and 6.0, in the order in which they should win: a failed
# authentication also makes charon say that establishing failed.
_CAUSES: tuple[tuple[tuple[str, ...], type[IkeError], str], ...] = (
    (
        (
            "AUTHENTICATION_FAILED",
            "AUTH_FAILED",
            "MAC mismatched",
            "signature validation failed",
            "no trusted ",
            "no shared key found",
            "no private key found",
            "constraint check failed",
            "no issuer certificate found",
        ),
        AuthenticationFailedError,
        "compare the credentials of both ends: the pre-shared key, or the certificate with its CA "
        "and the identity in its subjectAltName; the peer's log says which check failed",
    ),
    (
        ("TS_UNACCEPTABLE", "FAILED_CP_REQUIRED"),
        TsUnacceptableError,
        "the home agent grants a mobile node its own home addresses only: compare the home "
        "addresses of both configurations; behind a NAT the transport mode child is refused so too",
    ),
    (
        ("NO_PROPOSAL_CHOSEN", "INVALID_KE_PAYLOAD, but", "no acceptable proposal found"),
        NoProposalChosenError,
        "compare ike_proposals and esp_proposals of both ends, and look in both logs for a "
        "refusal of the kernel",
    ),
    (
        ("giving up after", "peer not responding", "unable to resolve", "error sending packet"),
        PeerUnreachableError,
        "check that UDP port 4500 passes between the two ends and that the peer's charon runs",
    ),
)

# Lines that say something about the cause; the rest is progress.
_NOISE = ("generating ", "parsed ", "sending packet", "received packet", "selected proposal")


def classify(what: str, words: Sequence[str]) -> IkeError:
    """The error for an operation that failed.

    :param what: the operation and charon's short answer, e.g. "establishing IKE_SA 'mn' failed".
    :param words: charon's log lines of this operation, oldest first.
    """
    telling = [line.strip() for line in words if not line.strip().startswith(_NOISE)]
    for needles, error, hint in _CAUSES:
        for line in (*telling, *words):
            if any(needle in line for needle in needles):
                return error(f"{what}: {line.strip()}", hint=hint)
    return IkeError(
        f"{what}: {telling[-1]}" if telling else what,
        hint="read the charon logs of both ends",
    )
