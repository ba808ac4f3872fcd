"""The anti-replay window of an ESP receiver (RFC 4303 §3.4.3, Appendix A).

A window is asked first (:meth:`ReplayWindow.locate`), and moved (:meth:`ReplayWindow.accept`)
only when the ICV was right.
"""

from __future__ import annotations

from typing import Final

from dsmip_ipsec.ipsec.esp_errors import DuplicateError, EspError, OutsideWindowError

WINDOW_MAX: Final = 4096
_HALF: Final = 1 << 32


class ReplayWindow:
    """``size`` packets, 0 (no anti-replay) to 4096; ``esn``: 64-bit sequence numbers.

    ``highest`` is the highest sequence number accepted. Which of the last ``size`` numbers were
    received stands in a ring with an octet for each: a packet in order costs one store, with a
    window of any size.
    """

    __slots__ = ("_ring", "_size", "esn", "highest", "spi")

    def __init__(self, size: int, *, esn: bool = False, spi: int = 0, highest: int = 0) -> None:
        if not 0 <= size <= WINDOW_MAX:
            raise EspError(
                f"a replay window of {size} packets", spi=spi, hint=f"choose 0 to {WINDOW_MAX}"
            )
        if esn and not size:
            # Without a window there is no way to tell the high half (RFC 4303 §2.2.1).
            raise EspError(
                "extended sequence numbers without a replay window",
                spi=spi,
                hint="give the SA a replay window",
            )
        if not 0 <= highest < (_HALF * _HALF if esn else _HALF):
            raise EspError(
                f"a sequence number of {highest}", spi=spi, hint="it has 32 bits, with ESN 64"
            )
        self._size = size
        self.esn = esn
        self.spi = spi
        self.highest = highest
        # What lies behind a handed-in highest number counts as received: rather lose a packet
        # than accept one twice.
        self._ring = bytearray((b"\1" if highest else b"\0") * size)

    def locate(self, low: int) -> int:
        """The full sequence number of a packet with ``low`` on the wire.

        Raises :class:`DuplicateError` or :class:`OutsideWindowError`. Moves nothing.
        """
        highest = self.highest
        sequence = low
        if self.esn:
            # Appendix A2.2: in the subspace where the packet is in the window or right of it.
            # (The lowest number of the window may be negative; it was never sent.)
            bottom = highest - self._size + 1
            sequence = (bottom & -_HALF) | low
            if sequence < bottom:
                sequence += _HALF
            if not 0 <= sequence < _HALF * _HALF:
                raise OutsideWindowError("no such number", spi=self.spi, sequence=low)
        if sequence > highest:
            return sequence
        size = self._size
        if not size:
            return sequence
        if highest - sequence >= size or not sequence:
            raise OutsideWindowError("left of the window", spi=self.spi, sequence=sequence)
        if self._ring[sequence % size]:
            raise DuplicateError("received before", spi=self.spi, sequence=sequence)
        return sequence

    def accept(self, sequence: int) -> None:
        """Note an authentic packet: ``sequence`` is what :meth:`locate` gave."""
        size = self._size
        ahead = sequence - self.highest
        if ahead > 0:
            if ahead > 1 and size:
                self._skip(ahead - 1)
            self.highest = sequence
        if size:
            self._ring[sequence % size] = 1

    def _skip(self, count: int) -> None:
        """Mark the ``count`` numbers behind the highest one as not received yet."""
        size = self._size
        if count >= size:
            self._ring = bytearray(size)
            return
        start = (self.highest + 1) % size
        end = start + count
        if end <= size:
            self._ring[start:end] = bytes(count)
        else:
            self._ring[start:] = bytes(size - start)
            self._ring[: end - size] = bytes(end - size)
