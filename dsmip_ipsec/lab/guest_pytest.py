"""Run pytest on a kernel that can do it: ``python -m dsmip_ipsec.lab.guest_pytest [args]``.

Boots one guest (as an unprivileged user), runs ``pytest tests/kernel`` (or what is given) in it,
streams the output and ends with pytest's status; where the host's own kernel has everything and
we are root, the tests run in place. ``--out DIR`` keeps the console log, and whatever the tests
left in the directory that ``$DSMIP_SHARE`` names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dsmip_ipsec.errors import DsmipError, GuestError
from dsmip_ipsec.lab.guest import collect_share, run_in_guest_sync
from dsmip_ipsec.lab.guest_code import project_dir
from dsmip_ipsec.lab.guest_kernel import KERNEL_CHOICES, choose_kernel, guest_kind

# pytest itself uses 0 to 5.
EXIT_NO_RUN = 10


def pytest_command(arguments: Sequence[str]) -> list[str]:
    """``arguments`` are pytest's; without a path among them, the kernel tests."""
    project = project_dir()
    has_path = any(
        not word.startswith("-") and (project / word.split("::")[0]).exists() for word in arguments
    )
    where = [] if has_path else ["tests/kernel"]
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, *where]


def run_in_place(arguments: Sequence[str]) -> int:
    return subprocess.run(pytest_command(arguments), cwd=project_dir(), check=False).returncode


def run_guest(kernel: str, arguments: Sequence[str], *, out: Path | None, deadline_s: float) -> int:
    """Raises LabError and GuestError; the console log is kept then, or always with ``out``."""
    directory = Path(tempfile.mkdtemp(prefix="dsmip-kernel-tests-"))
    directory.chmod(0o711)  # the guest's user must reach the share below it
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    console_log = (out or directory) / "console.log"
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("DSMIP_", "PYTEST_")) and name != "PYTEST_CURRENT_TEST"
    }
    keep = False
    try:
        status = run_in_guest_sync(
            pytest_command(arguments),
            share=directory / "share",
            env={"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis", "COLUMNS": "100", **passed_on},  # noqa: S108
            cwd=project_dir(),
            deadline_s=deadline_s,
            on_line=lambda line: print(line, flush=True),
            console_log=console_log,
            kind=guest_kind(kernel),
        )
    except GuestError:
        keep = out is None
        raise
    finally:
        if out is not None and (directory / "share").is_dir():
            collect_share(directory / "share", out)
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dsmip_ipsec.lab.guest_pytest",
        description="Run the kernel tests on a kernel that has what they need.",
        epilog="Everything else is handed to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument("--kernel", choices=KERNEL_CHOICES, default="auto")
    parser.add_argument("--out", type=Path, help="keep the console log and $DSMIP_SHARE here")
    parser.add_argument(
        "--deadline", type=float, default=1800.0, metavar="S", help="for all of it (1800)"
    )
    options, arguments = parser.parse_known_args(argv)
    try:
        kernel = choose_kernel(options.kernel)
        if kernel == "host":
            return run_in_place(arguments)
        return run_guest(kernel, arguments, out=options.out, deadline_s=options.deadline)
    except DsmipError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return EXIT_NO_RUN


if __name__ == "__main__":
    sys.exit(main())
