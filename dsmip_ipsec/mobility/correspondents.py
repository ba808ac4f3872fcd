"""Deregistering correspondent nodes when the mobile node moves to IPv4 (RFC 5555 §5.1).

Route optimisation itself is somebody else's: he tells of each correspondent that has a binding
(:meth:`Correspondents.record`). Once the home agent has acknowledged an IPv4 care-of address, none
of them can stay. Deleting needs the home half of the return routability procedure only (RFC 6275
§5.2.5, §11.7.2), and all of it goes through the tunnel to the home agent.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from dsmip_ipsec.mobility.binding_update_list import next_sequence
from dsmip_ipsec.mobility.constants import INITIAL_BINDACK_TIMEOUT, MAX_RO_FAILURE
from dsmip_ipsec.mobility.types import Event, EventKind, Output, SendTunnelled
from dsmip_ipsec.wire.mobility import BindingUpdate, HomeTest, HomeTestInit, encode
from dsmip_ipsec.wire.options import BindingAuthorizationData, NonceIndices

# Those that are known at once; more would be an attack on our memory.
MAX_CORRESPONDENTS: Final = 1024
_AUTHENTICATOR_LENGTH = 12


@dataclass(slots=True)
class _Entry:
    expires_at: float
    sequence: int
    cookie: bytes = b""  # of the home test that is out
    attempts: int = 0
    due_at: float | None = None


class Correspondents:
    """The binding update list entries of correspondent nodes, as far as removing them goes."""

    def __init__(self, home_address: IPv6Address, random_bits: Callable[[int], int]) -> None:
        self._home_address = home_address
        self._random_bits = random_bits
        self._entries: dict[IPv6Address, _Entry] = {}

    def __contains__(self, correspondent: object) -> bool:
        return correspondent in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, correspondent: IPv6Address, sequence: int, expires_at: float) -> None:
        """``correspondent`` has a binding of ours until ``expires_at``, made by a binding update
        with ``sequence``."""
        if correspondent in self._entries or len(self._entries) < MAX_CORRESPONDENTS:
            self._entries[correspondent] = _Entry(expires_at, sequence)

    def forget(self, correspondent: IPv6Address) -> None:
        """``correspondent`` has no binding of ours any more."""
        self._entries.pop(correspondent, None)

    def deregister_all(self, now: float) -> list[Output]:
        """Begin: a home test with each one that isn't being asked already."""
        outputs: list[Output] = []
        self._expire(now)
        for correspondent, entry in self._entries.items():
            if entry.due_at is None:
                outputs.append(self._test(correspondent, entry, now))
        return outputs

    def stop(self) -> None:
        """The tunnel is gone, or correspondents may be registered again (an IPv6 network)."""
        for entry in self._entries.values():
            entry.due_at, entry.attempts, entry.cookie = None, 0, b""

    def tick(self, now: float) -> list[Output]:
        """Repeat what went unanswered, three times at most; then the lifetime has to do it."""
        outputs: list[Output] = []
        self._expire(now)
        for correspondent, entry in list(self._entries.items()):
            if entry.due_at is None or entry.due_at > now:
                continue
            if entry.attempts > MAX_RO_FAILURE:
                del self._entries[correspondent]
                outputs.append(self._event(EventKind.CORRESPONDENT_GIVEN_UP, correspondent))
            else:
                outputs.append(self._test(correspondent, entry, now))
        return outputs

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`."""
        deadlines = [entry.expires_at for entry in self._entries.values()]
        deadlines += [e.due_at for e in self._entries.values() if e.due_at is not None]
        return min(deadlines, default=None)

    def home_test(self, correspondent: IPv6Address, message: HomeTest) -> list[Output]:
        """RFC 6275 §11.6.2; then the binding update that deletes. The caller has seen that it came
        out of the tunnel from the home agent. [] when it isn't what is waited for."""
        entry = self._entries.get(correspondent)
        if entry is None or not entry.cookie or not _equal(entry.cookie, message.cookie):
            return []
        del self._entries[correspondent]
        update = self._deregistration(correspondent, entry, message)
        return [update, self._event(EventKind.CORRESPONDENT_DEREGISTERED, correspondent)]

    def _deregistration(
        self, correspondent: IPv6Address, entry: _Entry, test: HomeTest
    ) -> SendTunnelled:
        home = self._home_address
        # RFC 6275 §11.7.2: "The care-of nonce index SHOULD be set to zero in this case."
        indices = NonceIndices(test.nonce_index, 0)
        sequence = next_sequence(entry.sequence)
        # §5.2.5: "Kbm = SHA-1(home keygen token)". The hash is the protocol's, not our choice.
        key = hashlib.sha1(test.keygen_token, usedforsecurity=False).digest()

        def update(authenticator: bytes) -> BindingUpdate:
            options = (indices, BindingAuthorizationData(authenticator))
            return BindingUpdate(sequence, 0, options=options)

        # §6.2.7: all of the Mobility Header but the authenticator, its checksum taken as zero, and
        # the home address as the care-of address.
        raw = encode(update(bytes(_AUTHENTICATOR_LENGTH)), home, correspondent)
        covered = raw[:4] + bytes(2) + raw[6:-_AUTHENTICATOR_LENGTH]
        data = home.packed + correspondent.packed + covered
        authenticator = hmac.digest(key, data, "sha1")[:_AUTHENTICATOR_LENGTH]
        return SendTunnelled(
            home, correspondent, encode(update(authenticator), home, correspondent)
        )

    def _test(self, correspondent: IPv6Address, entry: _Entry, now: float) -> SendTunnelled:
        # §11.8: "Retransmitted Home Test Init ... messages MUST use new cookie values."
        entry.cookie = self._random_bits(64).to_bytes(8, "big")
        entry.due_at = now + INITIAL_BINDACK_TIMEOUT * 2**entry.attempts
        entry.attempts += 1
        raw = encode(HomeTestInit(entry.cookie), self._home_address, correspondent)
        return SendTunnelled(self._home_address, correspondent, raw)

    def _expire(self, now: float) -> None:
        """RFC 6275 §11.1: an entry whose lifetime is over "MUST be deleted"."""
        for correspondent, entry in list(self._entries.items()):
            if entry.expires_at <= now:
                del self._entries[correspondent]

    def _event(self, kind: EventKind, correspondent: IPv6Address) -> Event:
        return Event(kind, self._home_address, {"correspondent": str(correspondent)})


def _equal(a: bytes, b: bytes) -> bool:
    return hmac.compare_digest(a, b)
