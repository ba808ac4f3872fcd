"""Registrations that wait for Duplicate Address Detection (RFC 6275 §10.3.1)."""

from __future__ import annotations

from ipaddress import IPv6Address

from dsmip_ipsec.mobility.constants import DAD_ANSWER_TIMEOUT
from dsmip_ipsec.mobility.registration import Registration


class Tentative:
    """The newest valid binding update of each home address that is being looked at.

    One that gets no answer within DAD_ANSWER_TIMEOUT is forgotten: the mobile node will have
    sent another one, and that asks again.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # In the order of their deadlines: a later binding update doesn't move it.
        self._waiting: dict[int, tuple[float, Registration]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def sequence(self, home_address: IPv6Address) -> int | None:
        """The sequence number of the update that waits, None if none does."""
        waiting = self._waiting.get(int(home_address))
        return None if waiting is None else waiting[1].update.sequence

    def put(self, registration: Registration, now: float) -> bool:
        """Let ``registration`` wait, in place of an earlier one. True: detection must begin."""
        key = int(registration.home_address)
        waiting = self._waiting.get(key)
        deadline = now + DAD_ANSWER_TIMEOUT if waiting is None else waiting[0]
        self._waiting[key] = (deadline, registration)
        return waiting is None

    def pop(self, home_address: IPv6Address) -> Registration | None:
        """Take what waits for a home address, if anything does."""
        waiting = self._waiting.pop(int(home_address), None)
        return None if waiting is None else waiting[1]

    def expire(self, now: float) -> None:
        """Forget what has waited too long."""
        while self._waiting:
            key, (deadline, _) = next(iter(self._waiting.items()))
            if deadline > now:
                return
            del self._waiting[key]

    def next_deadline(self) -> float | None:
        """When to call :meth:`expire` next, None if never."""
        for deadline, _ in self._waiting.values():
            return deadline
        return None
