"""What a charon refused to its peers, and why: the home agent's PAD at work (RFC 4301 §4.4.3).

VICI has no event for it up to 6.0.1, so charon's own words are read as they are logged; each is
tied to its connection, and, by the thread that said it, to the packet that it was about. A kernel
test has charon say each of them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from dsmip_ipsec.ike import vici_session
from dsmip_ipsec.ike.vici_types import Address

_LONGEST = 300  # characters of a message: some of it is the peer's to choose
_THREADS = 512  # more than charon can have (render.py)


class RefusedFor(enum.Enum):
    """Why. TRAFFIC_SELECTORS: for addresses that aren't this peer's; PEER: nobody of that identity
    is expected there."""

    TRAFFIC_SELECTORS = "traffic selectors"
    AUTHENTICATION = "authentication"
    PEER = "peer"
    PROPOSAL = "proposal"


# The words of strongSwan 5.9 and 6.0, as responder; each ends an attempt.
_WORDS: tuple[tuple[re.Pattern[str], RefusedFor], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"traffic selectors .* unacceptable", RefusedFor.TRAFFIC_SELECTORS),
        (r"no virtual IP found for ", RefusedFor.TRAFFIC_SELECTORS),
        (r"tried \d+ shared keys? for .* but MAC mismatched", RefusedFor.AUTHENTICATION),
        (r"no shared key found for ", RefusedFor.AUTHENTICATION),
        (r"no trusted .* public key found for ", RefusedFor.AUTHENTICATION),
        (r"signature validation failed", RefusedFor.AUTHENTICATION),
        (r"EAP method .* failed for peer ", RefusedFor.AUTHENTICATION),
        (r"no alternative config found", RefusedFor.AUTHENTICATION),
        (r"no matching peer config found", RefusedFor.PEER),
        (r"received proposals unacceptable", RefusedFor.PROPOSAL),
        (r"no acceptable proposal found", RefusedFor.PROPOSAL),
    )
)
_PACKET = re.compile(r"received packet: from (\S+)\[\d+\] to ")
_CLAIM = re.compile(r"looking for peer configs matching .*?\]\.\.\..*?\[(.*)\]$")
# Said of one configuration; there may be another that fits.
_DETAIL = re.compile(r"constraint (?:check failed|requires)")
_UNNAMED = "(unnamed)"


@dataclass(frozen=True, slots=True)
class Refusal:
    """``connection``: of the peer, as far as charon had found out, or "". ``identity``: who it said
    to be, if that was in the same message. ``source``: where the message came from. ``message``:
    charon's own words."""

    reason: RefusedFor
    connection: str
    identity: str
    source: Address | None
    message: str


@dataclass(slots=True)
class _Packet:
    """What a thread of charon is busy with."""

    source: Address | None = None
    identity: str = ""
    detail: str = ""


class RefusalReader:
    """Picks refusals out of charon's log, line by line."""

    def __init__(self) -> None:
        self._threads: dict[str, _Packet] = {}

    def read(self, line: Mapping[str, object]) -> Refusal | None:
        """What VICI's ``log`` event ``line`` says about a refusal; None: nothing."""
        message, thread = str(line.get("msg", "")), str(line.get("thread", ""))
        if (found := _PACKET.match(message)) is not None:
            self._begin(thread, found[1])
            return None
        packet = self._threads.get(thread, _Packet())
        if (found := _CLAIM.match(message)) is not None:
            packet.identity = _plain(found[1])
        elif _DETAIL.match(message):
            packet.detail = message
        for pattern, reason in _WORDS:
            if pattern.match(message):
                name = str(line.get("ikesa-name", ""))
                said = f"{message}: {packet.detail}" if packet.detail else message
                return Refusal(
                    reason,
                    "" if name == _UNNAMED else name,
                    packet.identity,
                    packet.source,
                    _plain(said),
                )
        return None

    def _begin(self, thread: str, source: str) -> None:
        if len(self._threads) >= _THREADS:
            self._threads.clear()
        try:
            self._threads[thread] = _Packet(ip_address(source))
        except ValueError:
            self._threads[thread] = _Packet()


def _plain(message: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in message)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@asynccontextmanager
async def refusals(socket: Path) -> AsyncIterator[AsyncIterator[Refusal]]:
    """Listen to the charon behind a VICI socket, on a connection of its own.

    :raises CharonDiedError: charon isn't there; from the iterator: it went away.
    """
    async with vici_session.connect(socket) as connection:
        await connection.register("log")
        yield _read(connection)


async def _read(connection: vici_session.ViciConnection) -> AsyncIterator[Refusal]:
    reader = RefusalReader()
    async for _, line in connection.events():
        refusal = reader.read(line)
        if refusal is not None:
            yield refusal
