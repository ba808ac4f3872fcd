"""Commands in a node's namespace, as a person or a program asks for them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import netns
from dsmip_ipsec.lab.processes import in_child


async def start_command(
    namespace: str,
    argv: Sequence[str],
    *,
    terminal: int | None,
    environment: Mapping[str, str] | None,
) -> asyncio.subprocess.Process:
    """Start a command in ``namespace``, with pipes, or on ``terminal``. It dies with us. Raises
    LabError."""
    pipe = asyncio.subprocess.PIPE if terminal is None else terminal
    with netns.descriptors([namespace]) as descriptors:
        inside = next(iter(descriptors.values()))
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=environment,
                start_new_session=True,
                preexec_fn=in_child(os.getpid(), inside, terminal=terminal is not None),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise LabError(
                f"'{argv[0]}' can't be started in {namespace}: {reason}",
                hint="is it installed? a word mustn't have a NUL in it",
            ) from None
