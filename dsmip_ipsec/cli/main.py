"""The command ``dsmip-ipsec``: sub-commands named after what a person does."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from dsmip_ipsec import __version__
from dsmip_ipsec.errors import DsmipError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

# Sub-command -> the module that adds and runs it. In a guest kernel imports are slow, so only the
# module of the sub-command that was asked for is loaded.
COMMANDS = {
    "lab": "dsmip_ipsec.cli.lab",
    "plan": "dsmip_ipsec.cli.plan",
    "doctor": "dsmip_ipsec.cli.doctor",
    "decode": "dsmip_ipsec.cli.decode",
    "report": "dsmip_ipsec.cli.report",
    "ca": "dsmip_ipsec.cli.ca",
    "render": "dsmip_ipsec.cli.render",
    "control": "dsmip_ipsec.cli.control",
    "discover": "dsmip_ipsec.cli.discover",
    "mn": "dsmip_ipsec.cli.daemons",
    "ha": "dsmip_ipsec.cli.daemons",
}


def _parser(asked_for: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsmip-ipsec",
        description="Dual-Stack Mobile IPv6 (RFC 5555) with IPsec: labs, probes and daemons.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = [COMMANDS[asked_for]] if asked_for in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in modules:
        importlib.import_module(module).add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status. Errors are one sentence and a hint on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser(given[0] if given else "").parse_args(given)
    try:
        status: int = parsed.run(parsed)
        return status
    except DsmipError as error:
        print(f"dsmip-ipsec: error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("dsmip-ipsec: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; so is the reason to go on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
