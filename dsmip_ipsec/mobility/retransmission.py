"""When the next binding update leaves (RFC 6275 §11.8): back-off and rate limit."""

from __future__ import annotations

from collections import deque

from dsmip_ipsec.mobility.constants import (
    INITIAL_BINDACK_TIMEOUT,
    MAX_BINDACK_TIMEOUT,
    MAX_UPDATE_RATE,
)


class Retransmission:
    """The timer of one exchange at a time, and the memory of what was sent lately.

    ``due_at`` is None while nothing waits to be sent. ``attempts`` counts what was sent in this
    exchange. ``timeout`` is the wait for an answer, in seconds.
    """

    __slots__ = ("_recent", "attempts", "due_at", "held_back", "timeout")

    def __init__(self) -> None:
        self.attempts = 0
        self.timeout = INITIAL_BINDACK_TIMEOUT
        self.due_at: float | None = None
        self.held_back = False  # what is due was not sent at all yet
        self._recent: deque[float] = deque(maxlen=MAX_UPDATE_RATE)

    def start(self, timeout: float) -> None:
        """Begin a new exchange, whose first answer is waited for ``timeout``."""
        self.attempts = 0
        self.timeout = timeout
        self.stop()

    def stop(self) -> None:
        """Nothing waits to be sent."""
        self.due_at = None
        self.held_back = False

    def hold(self, now: float) -> bool:
        """True when a message must wait: MAX_UPDATE_RATE "MUST NOT" be exceeded. It is due then
        as soon as it may leave."""
        if len(self._recent) < MAX_UPDATE_RATE:
            return False
        # The very number that is compared is what becomes due: with a difference instead, the
        # rounding of floats could say "now" and "not yet" at once, for ever.
        allowed_at = self._recent[0] + 1.0
        if now >= allowed_at:
            return False
        self.held_back = True
        self.due_at = allowed_at
        return True

    def sent(self, now: float) -> None:
        """A message has left; it is due again when the answer hasn't come in time."""
        self._recent.append(now)
        self.attempts += 1
        self.held_back = False
        self.due_at = now + self.timeout

    def wait_until(self, due_at: float) -> None:
        """What has to be sent may leave then, and not before."""
        self.held_back = True
        self.due_at = due_at

    @property
    def exhausted(self) -> bool:
        """True when the back-off has reached MAX_BINDACK_TIMEOUT (RFC 6275 §11.7.1)."""
        return self.timeout >= MAX_BINDACK_TIMEOUT

    @property
    def last_sent_at(self) -> float | None:
        """When the last message left, None if none did yet."""
        return self._recent[-1] if self._recent else None

    def back_off(self) -> None:
        """The answer didn't come: wait twice as long for the next, up to MAX_BINDACK_TIMEOUT."""
        self.timeout = min(2 * self.timeout, MAX_BINDACK_TIMEOUT)

    def pause(self, now: float) -> None:
        """An answer came, to try later: as late as retransmissions get."""
        self.timeout = MAX_BINDACK_TIMEOUT
        self.held_back = False
        self.due_at = now + MAX_BINDACK_TIMEOUT

    def is_due(self, now: float) -> bool:
        """True when something has to be sent at ``now``."""
        return self.due_at is not None and self.due_at <= now
