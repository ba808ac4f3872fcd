"""Lines of progress: a module of its own, since whoever prints them imports little else."""

from __future__ import annotations

import time
from collections.abc import Callable


def say_with_time() -> Callable[[str], None]:
    """A printer of progress lines, with the seconds since now in front."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    return say
