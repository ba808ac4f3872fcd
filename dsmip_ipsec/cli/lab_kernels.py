"""``lab run`` on several kernels, one after the other, and a comparison of what came of it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from dsmip_ipsec.errors import ConfigError, DsmipError


def run_on_each(
    kernels: Sequence[str],
    arguments: argparse.Namespace,
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Run the lab on each kernel; 0 if it passed on all and the IPsec states agree.

    What each run leaves is in DIR/KERNEL. A kernel that can't be used doesn't keep the others from
    being tried: the first error is raised at the end. Raises DsmipError.
    """
    from rich.console import Console

    from dsmip_ipsec.lab import record
    from dsmip_ipsec.report import comparison

    if "auto" in kernels:
        raise ConfigError(
            "--kernel auto can't be combined with others", hint="name each kernel to run on"
        )
    with ExitStack() as stack:
        directory: Path | None = arguments.out
        if directory is None:
            if arguments.export_keys or arguments.html:
                raise ConfigError("--export-keys and --html need --out", hint="give a directory")
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="dsmip-lab-"))
            directory = Path(made)
        statuses: list[int] = []
        records: list[record.RunRecord] = []
        failed: DsmipError | None = None
        # The host's last: a run in place may leave us in a user namespace.
        for kernel in sorted(kernels, key=lambda kernel: kernel == "host"):
            one = argparse.Namespace(**vars(arguments))
            one.kernel, one.out = [kernel], directory / kernel
            if arguments.junit is not None:
                one.junit = arguments.junit.with_stem(f"{arguments.junit.stem}-{kernel}")
            print(f"--- on {kernel}", flush=True)
            try:
                statuses.append(run(one))
                records.append(record.load(one.out / "record.json"))
            except DsmipError as error:
                failed = failed or error
                print(f"no result on {kernel}: {error.message}", flush=True)
        print()
        agree = comparison.render(records, Console())
        if failed is not None:
            raise failed
        return 0 if agree and not any(statuses) else 1
