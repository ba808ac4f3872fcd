"""``dsmip-ipsec lab up|down|status|exec|shell|move|watch``: a lab that stands for a person."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmip_ipsec.errors import ConfigError, LabError

if TYPE_CHECKING:
    from dsmip_ipsec.lab.held import Held
    from dsmip_ipsec.lab.record import NodeState

KERNELS = ("auto", "host", "uml", "qemu")


def add_verbs(verbs: Any) -> None:
    """Add these verbs to those of ``lab``."""
    up = verbs.add_parser("up", help="stand a lab up and leave it standing")
    up.add_argument("lab", metavar="LAB", help="a lab's TOML file, or the name of one in labs/")
    up.add_argument("--kernel", choices=KERNELS, default="auto", help="as for run")
    up.add_argument(
        "--out", type=Path, metavar="DIR", help="on `down`, leave record, captures and logs in DIR"
    )
    up.add_argument(
        "--export-keys", action="store_true", help="and the keys of all SAs in DIR/wireshark"
    )
    add_ipsec(up)
    up.set_defaults(run=up_lab)

    down = verbs.add_parser(
        "down",
        help="take a lab down, or away what a killed one left behind",
        description="Without NAME: the lab that stands, and what killed ones have left.",
    )
    down.add_argument("name", nargs="?", metavar="NAME", help="a run, a standing lab, or all")
    down.set_defaults(run=take_down)

    status = verbs.add_parser("status", help="which labs stand; one's bindings, SAs and policies")
    status.add_argument("name", nargs="?", metavar="NAME", help="a run, or the lab's name")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=show_status)

    def of_a_node(verb: str, help_text: str, run: Callable[[argparse.Namespace], int]) -> Any:
        sub = verbs.add_parser(verb, help=help_text, description=f"{help_text}.")
        sub.add_argument("--lab", metavar="NAME", help="which one, where several stand")
        sub.add_argument("node", metavar="NODE", help="a node of the lab")
        sub.set_defaults(run=run)
        return sub

    execute = of_a_node(
        "exec", "run a command as root in a node; its output and status are passed on", run_command
    )
    execute.add_argument("-i", "--stdin", action="store_true", help="it reads our standard input")
    shell = of_a_node("shell", "a terminal in a node, with a shell or a command", open_shell)
    for sub in (execute, shell):
        sub.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    move = of_a_node("move", "move a mobile node to a network, or attach it there", move_node)
    move.add_argument("network", metavar="NETWORK", help="a network of the lab")

    watch = verbs.add_parser("watch", help="bindings, SAs and their traffic, live; Ctrl-C ends it")
    watch.add_argument("name", nargs="?", metavar="NAME", help="a run, or the lab's name")
    watch.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="(1)")
    watch.add_argument("--count", type=int, default=0, metavar="N", help="end after N looks")
    watch.set_defaults(run=watch_lab)


def add_ipsec(parser: argparse.ArgumentParser) -> None:
    """Add ``--ipsec``."""
    parser.add_argument(
        "--ipsec",
        choices=("kernel", "userspace"),
        default="kernel",
        help="who applies ESP: the kernel, keyed by charon (the default), or the daemons "
        "themselves with keys of this run, on a kernel that needs no ESP",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("between 0.1 and 3600 seconds")
    return value


def up_lab(arguments: argparse.Namespace) -> int:
    """Stand a lab up and leave it to a holder. Raises DsmipError."""
    from dsmip_ipsec.cli.lab_output import prepare_output
    from dsmip_ipsec.lab import holder, ipsec_kind, spec
    from dsmip_ipsec.lab.guest_kernel import choose_kernel
    from dsmip_ipsec.lab.library import find_lab

    path = find_lab(arguments.lab)
    declared = spec.load(path)  # its faults are told here, before anything starts
    ipsec_kind.check(declared, arguments.ipsec)
    kernel = choose_kernel(arguments.kernel, ipsec=arguments.ipsec)
    if arguments.export_keys and arguments.out is None:
        raise ConfigError("--export-keys needs --out", hint="say where the keys may be written")
    with ExitStack() as stack:
        if arguments.out is not None:
            prepare_output(arguments.out, stack)
        ready = holder.start(
            path,
            kernel=kernel,
            out=arguments.out,
            export_keys=arguments.export_keys,
            ipsec=arguments.ipsec,
            say=lambda line: print(line, flush=True),
        )
    name, node = ready["name"], next(iter(declared.mobile_nodes()), "NODE")
    print(f"{name} stands: {declared.lab.name}, kernel {kernel}")
    for example in (f"move {node} NETWORK", f"shell {node}", "watch", "down"):
        print(f"  dsmip-ipsec lab {example}")
    return 0


def take_down(arguments: argparse.Namespace) -> int:
    """Take labs down, or what killed ones left. Raises LabError."""
    from dsmip_ipsec.lab import held

    done = held.take_down(arguments.name)
    for downed in done:
        if downed.problem is not None:
            print(f"{downed.name}: {downed.problem.message}", file=sys.stderr)
        if downed.cleaned is None:
            where = f"; see {downed.out}" if downed.out and downed.problem is None else ""
            print(f"{downed.name} ({downed.lab}) is down{where}")
        else:
            print(
                f"{downed.name}: {downed.cleaned.processes} processes, "
                f"{downed.cleaned.namespaces} namespaces, "
                f"{downed.cleaned.directories} directories removed"
            )
    if not done:
        print("nothing to clean up")
    return 1 if any(downed.problem is not None for downed in done) else 0


def show_status(arguments: argparse.Namespace) -> int:
    """Print which labs stand, and what one's nodes know. Raises DsmipError."""
    from dsmip_ipsec.lab import held

    known = held.held_labs()
    alone = [lab for lab in known if lab.alive]
    if arguments.name is not None:
        return _details(held.find(arguments.name), as_json=arguments.json)
    if arguments.json:
        print(json.dumps([_row(lab) for lab in known], indent=2))
        return 0
    if not known:
        print("no lab stands; `dsmip-ipsec lab up LAB` stands one up")
        return 0
    for lab in known:
        row = _row(lab)
        print(f"{lab.name}  {row['lab']:20} {row['kernel']:5} {row['state']}")
    if len(alone) == 1 and alone[0].standing:
        print()
        return _details(alone[0], as_json=False)
    return 0


def _row(lab: Held) -> dict[str, Any]:
    state = (
        f"stands for {max(0, round(time.time() - lab.started))} s"
        if lab.standing
        else "is coming or going"
        if lab.alive
        else f"was killed; `dsmip-ipsec lab down {lab.name}` takes it away"
    )
    return {"name": lab.name, "lab": lab.lab, "file": lab.file, "kernel": lab.kernel,
            "out": lab.out, "started": lab.started, "standing": lab.standing,
            "state": state}  # fmt: skip


def _details(lab: Held, *, as_json: bool) -> int:
    from dsmip_ipsec.lab import held

    async def ask() -> tuple[Any, Any, Any]:
        async with held.HeldLab(lab) as connection:
            return await _look(connection)

    status, states, traffic = held.with_loop(ask())
    if as_json:
        found = {**_row(lab), **status, "nodes": states, "traffic": traffic}
        print(json.dumps(found, indent=2))
        return 0
    from rich.console import Console

    from dsmip_ipsec.report import standing

    console, nodes = Console(soft_wrap=False), _states(states)
    console.print(standing.table(nodes, traffic, status["networks"]))
    console.print(standing.policies(nodes))
    return 0


async def _look(connection: Any) -> tuple[Any, Any, Any]:
    """Where mobile nodes are, what nodes know, what their SAs have carried."""
    return (
        await connection.request("status"),
        await connection.request("state"),
        await connection.request("traffic"),
    )


def _states(given: dict[str, Any]) -> dict[str, NodeState]:
    from pydantic import ValidationError

    from dsmip_ipsec.lab.record import NodeState

    try:
        return {name: NodeState.model_validate(state) for name, state in given.items()}
    except ValidationError:
        raise LabError(
            "the lab's holder speaks another version's language",
            hint="take the lab down and up again",
        ) from None


def run_command(arguments: argparse.Namespace) -> int:
    """Run a command in a node; its exit status is ours. Raises DsmipError."""
    from dsmip_ipsec.cli.lab_terminal import run_piped

    return run_piped(
        _lab(arguments.lab), arguments.node, _words(arguments, "exec"), stdin=arguments.stdin
    )


def open_shell(arguments: argparse.Namespace) -> int:
    """A terminal in a node. Raises DsmipError."""
    from dsmip_ipsec.cli.lab_terminal import run_on_terminal

    if not sys.stdin.isatty():
        raise ConfigError(
            "a shell needs a terminal",
            hint="`dsmip-ipsec lab exec NODE -- COMMAND` runs without, with -i it reads our input",
        )
    words = _words(arguments, "") if arguments.words else []
    return run_on_terminal(_lab(arguments.lab), arguments.node, words)


def _words(arguments: argparse.Namespace, verb: str) -> list[str]:
    words: list[str] = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if verb and not words:
        raise ConfigError(
            "no command to run", hint=f"`dsmip-ipsec lab {verb} {arguments.node} -- COMMAND`"
        )
    return words


def _lab(name: str | None) -> Held:
    from dsmip_ipsec.lab import held

    return held.find(name)


def move_node(arguments: argparse.Namespace) -> int:
    """Move a mobile node and say what changed. Raises DsmipError."""
    from rich.console import Console
    from rich.text import Text

    from dsmip_ipsec.lab import held, record
    from dsmip_ipsec.report import table

    given = held.call(_lab(arguments.lab), "move", node=arguments.node, network=arguments.network)
    try:
        step = record.StepRecord.model_validate(given)
    except ValueError:
        raise LabError("the lab's holder speaks another version's language") from None
    console = Console()
    table.step_details(step, console)
    worst = table.worst_interruption(step.flows)
    console.print(Text(f"took {step.ended_s - step.started_s:.1f} s, interruption {worst}"))
    return 0


def watch_lab(arguments: argparse.Namespace) -> int:
    """Show a lab's state again and again, until Ctrl-C. Raises DsmipError."""
    import asyncio

    from dsmip_ipsec.cli.lab_watch import Screen
    from dsmip_ipsec.lab import held

    lab = held.find(arguments.name)

    async def watch() -> None:
        looks = 0
        async with held.HeldLab(lab) as connection:
            with Screen(lab.title) as screen:
                while True:
                    status, states, traffic = await _look(connection)
                    screen.show(_states(states), traffic, status["networks"])
                    looks += 1
                    if looks == arguments.count:
                        return
                    await asyncio.sleep(arguments.interval)

    try:
        held.with_loop(watch())
    except KeyboardInterrupt:
        return 0  # this is how it is meant to end
    return 0
