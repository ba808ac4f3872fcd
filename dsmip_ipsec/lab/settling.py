"""Waiting for the state of all ends to become what somebody waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from .pace import scaled
from .record import NodeState

States = dict[str, NodeState]
Agrees = Callable[[Sequence[tuple[str, Mapping[str, NodeState]]]], bool]
"""Whether the state after the last of these steps is what is waited for."""

# charon lets go of a rekeyed CHILD_SA after 5 s (delete_rekeyed_delay).
AGREE_S = 8.0
_POLL_S = 0.1


async def agreed(
    earlier: Sequence[tuple[str, States]],
    step: str,
    states: States,
    look: Callable[[], Awaitable[States]],
    agrees: Agrees | None,
) -> States:
    """``states`` after ``step``, or those that ``look`` finds later, once they agree or time is
    up. Raises what ``look`` raises."""
    deadline = time.monotonic() + scaled(AGREE_S)
    while agrees is not None and not agrees([*earlier, (step, states)]):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_S)
        states = await look()
    return states
