"""``dsmip-ipsec lab``: run labs, show and list them (:mod:`.lab_standing` has the other verbs)."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsmip_ipsec.cli import lab_standing
from dsmip_ipsec.cli.lab_output import check_file, prepare_output
from dsmip_ipsec.errors import ConfigError, GuestError, LabError

# In a guest: the directory's name on the host, for what is printed there.
SHOWN_AS_VARIABLE = "DSMIP_OUT_SHOWN_AS"


def add_parser(commands: Any) -> None:
    """Add the sub-command and its own sub-commands."""
    parser = commands.add_parser("lab", help="run labs in network namespaces")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    run = verbs.add_parser(
        "run",
        help="stand a lab up, run its scenario, report, take it down",
        description="Exit status 0: every expectation of the scenario held.",
    )
    run.add_argument("lab", metavar="LAB", help="a lab's TOML file, or the name of one in labs/")
    run.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep record.json, captures and logs in DIR (overwritten)",
    )
    run.add_argument(
        "--export-keys",
        action="store_true",
        help="write the keys of all SAs to DIR/wireshark, a ready WIRESHARK_CONFIG_DIR",
    )
    run.add_argument(
        "--html", action="store_true", help="write DIR/report.html, a page to read or send around"
    )
    run.add_argument(
        "--junit", type=Path, metavar="FILE", help="write the expectations as JUnit XML, for CI"
    )
    run.add_argument(
        "--snapshot",
        type=Path,
        metavar="FILE",
        help="the IPsec state of all ends after each step must be as stored in FILE",
    )
    run.add_argument("--update-snapshot", action="store_true", help="store it in FILE instead")
    run.add_argument(
        "--kernel",
        choices=("auto", "host", "uml", "qemu"),
        action="append",
        help="where to run: in place, in a User-Mode-Linux guest or on a stock kernel under QEMU "
        "(neither needs root), or, by default, in place where that works and else in a guest; "
        "given more than once, run on each, below DIR/KERNEL, and compare",
    )
    lab_standing.add_ipsec(run)
    run.set_defaults(run=run_lab)

    lab_standing.add_verbs(verbs)

    show = verbs.add_parser("show", help="what a lab consists of, does and expects")
    show.add_argument("lab", metavar="LAB", help="a lab's TOML file, or the name of one in labs/")
    show.set_defaults(run=show_lab)

    verbs.add_parser(
        "list", help="list the labs that come along, and which ones stand"
    ).set_defaults(run=list_labs)


def run_lab(arguments: argparse.Namespace) -> int:
    """Run a lab in place or in a guest; return the exit status. Raises DsmipError."""
    from dsmip_ipsec.cli import lab_snapshots
    from dsmip_ipsec.kernel import user_namespace
    from dsmip_ipsec.lab import ipsec_kind, spec
    from dsmip_ipsec.lab.guest_kernel import (
        KERNEL_KIND_VARIABLE,
        choose_kernel,
        in_user_namespace,
    )
    from dsmip_ipsec.lab.library import find_lab

    kernels = list(dict.fromkeys(arguments.kernel or ["auto"]))
    if len(kernels) > 1:
        from dsmip_ipsec.cli.lab_kernels import run_on_each

        return run_on_each(kernels, arguments, run_lab)
    path = find_lab(arguments.lab)
    # Its faults are told here, before anything starts.
    lab = spec.load(path)
    ipsec_kind.check(lab, arguments.ipsec)
    lab_snapshots.check_for(arguments.snapshot, lab, update=arguments.update_snapshot)
    if arguments.export_keys and arguments.out is None:
        raise ConfigError("--export-keys needs --out", hint="say where the keys may be written")
    if arguments.html and arguments.out is None:
        raise ConfigError("--html needs --out", hint="say where the page may be written")
    check_file(arguments.junit)
    if arguments.update_snapshot:
        check_file(arguments.snapshot)
    with ExitStack() as stack:
        out = prepare_output(arguments.out, stack)
        keep = arguments.out is not None or arguments.junit is not None
        inside = KERNEL_KIND_VARIABLE in os.environ
        kernel = "host" if inside else choose_kernel(kernels[0], ipsec=arguments.ipsec)
        if kernel == "host":
            if in_user_namespace(kernel):
                user_namespace.enter()
            status = _run_in_place(path, out, arguments, keep=keep)
        else:
            status = _run_in_guest(path, out, arguments, kernel)
        _views(out, arguments)
        return status


def _views(out: Path, arguments: argparse.Namespace) -> None:
    """What was asked for beyond the record. A run that left none has said why."""
    from dsmip_ipsec.cli.report import write_views

    if (arguments.html or arguments.junit) and (out / "record.json").is_file():
        html = out / "report.html" if arguments.html else None
        write_views(out, html=html, junit=arguments.junit)


def _run_in_place(path: Path, out: Path, arguments: argparse.Namespace, *, keep: bool) -> int:
    from dsmip_ipsec.cli.lab_server import complete
    from dsmip_ipsec.cli.lab_snapshots import check_for
    from dsmip_ipsec.cli.progress import say_with_time
    from dsmip_ipsec.lab import spec
    from dsmip_ipsec.lab.guest import run_until_signal
    from dsmip_ipsec.lab.nursery import Nursery
    from dsmip_ipsec.lab.scenario import Scenario
    from dsmip_ipsec.lab.startup import startup

    say = say_with_time()
    nursery = Nursery.start()
    lab = spec.load(path)
    check = check_for(arguments.snapshot, lab, update=arguments.update_snapshot)
    scenario = Scenario(
        lab,
        out,
        export_keys=arguments.export_keys,
        say=say,
        nursery=nursery,
        ipsec=arguments.ipsec,
        agrees=None if check is None else check.agrees,
    )
    scenario.standing.phases += startup()

    async def run() -> int:
        record, differing = await scenario.run(), list[str]()
        if check is not None:
            record, differing = check.conclude(record)
        record = complete(scenario, record, export_keys=arguments.export_keys, write=keep)
        # Not before the lab needs the processor no more: it takes a moment to import in a guest.
        from rich.console import Console

        from dsmip_ipsec.report import table

        print()
        shown = Path(os.environ.get(SHOWN_AS_VARIABLE, out))
        table.render(record, Console(), directory=shown if keep and shown.name else None)
        if differing:
            print("\nSnapshot (- stored, + seen)", *differing, sep="\n  ")
        return 0 if record.passed else 1

    try:
        return run_until_signal(run())
    finally:
        nursery.stop()


def _run_in_guest(path: Path, out: Path, arguments: argparse.Namespace, kernel: str) -> int:
    """Run the same command on a guest kernel, and bring home what it wrote."""
    from dsmip_ipsec.cli.lab_snapshots import Storing
    from dsmip_ipsec.cli.progress import say_with_time
    from dsmip_ipsec.lab import size, spec
    from dsmip_ipsec.lab.guest import collect_share, prepare_share, run_in_guest_sync
    from dsmip_ipsec.lab.guest_init import GUEST_SHARE
    from dsmip_ipsec.lab.guest_kernel import KERNEL_KIND_VARIABLE, KERNEL_TITLES, guest_kind
    from dsmip_ipsec.lab.record import load

    lab = spec.load(path)
    work = Path(tempfile.mkdtemp(prefix="dsmip-lab-"))
    try:
        work.chmod(0o711)  # the guest's user must reach its share below
        share = work / "share"
        prepare_share(share)
        lab = spec.load(path)
        (share / "lab.toml").write_text(spec.flat(path), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "dsmip_ipsec", "lab", "run", f"{GUEST_SHARE}/lab.toml"),
            *("--out", f"{GUEST_SHARE}/out"),
            *(["--export-keys"] if arguments.export_keys else []),
            *("--ipsec", arguments.ipsec),
        ]
        if arguments.snapshot is not None:
            command += ["--snapshot", f"{GUEST_SHARE}/snapshot.txt"]
            if arguments.update_snapshot:
                command += ["--update-snapshot"]
            else:
                shutil.copyfile(arguments.snapshot, share / "snapshot.txt")
        say = say_with_time()
        say(f"booting the guest kernel ({KERNEL_TITLES[kernel]})")
        heard = "booting"

        def show(line: str) -> None:
            nonlocal heard
            heard = line.strip() or heard
            print(line, flush=True)

        status = run_in_guest_sync(
            command,
            share=share,
            env={
                KERNEL_KIND_VARIABLE: kernel,
                SHOWN_AS_VARIABLE: str(arguments.out or ""),
                **_terminal(),
            },
            deadline_s=size.run_s(lab),
            mem_mb=size.memory_mb(lab),
            on_line=show,
            console_log=out / "guest-console.log",
            kind=guest_kind(kernel),
        )
        if (share / "out").is_dir():
            collect_share(share / "out", out)
        if arguments.update_snapshot and (out / "record.json").is_file():
            Storing(arguments.snapshot, lab).conclude(load(out / "record.json"))
        return status
    except GuestError as error:
        # The guest can't say any more what it was doing; its last line can.
        raise GuestError(
            f"{error.message}; last heard from it: {heard}",
            console_log=error.console_log,
            hint=error.hint,
        ) from error
    except OSError as error:
        raise LabError(
            f"can't prepare the guest's files: {error.strerror}", hint="is the disk full?"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _terminal() -> dict[str, str]:
    """The width and colours of our terminal, for what the guest prints to it."""
    columns = {"COLUMNS": str(shutil.get_terminal_size((100, 24)).columns)}
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return {**columns, "NO_COLOR": "1"}
    return {**columns, "FORCE_COLOR": "1", "TERM": os.environ.get("TERM", "xterm")}


def list_labs(arguments: argparse.Namespace) -> int:
    """Print name and description of every lab that comes along, and which ones stand."""
    from dsmip_ipsec.lab import spec
    from dsmip_ipsec.lab.held import held_labs
    from dsmip_ipsec.lab.library import lab_files

    shipped = {str(path.absolute()): path for path in lab_files()}
    standing: dict[str, list[str]] = {}
    for held in held_labs():
        if held.alive:
            standing.setdefault(held.file, []).append(held.name)
    for name, path in shipped.items():
        runs = f"  [stands: {', '.join(standing[name])}]" if name in standing else ""
        print(f"{path.stem:20} {spec.load(path).lab.description}{runs}")
    for file in standing.keys() - shipped.keys():
        print(f"{Path(file).stem:20} {file}  [stands: {', '.join(standing[file])}]")
    return 0


def show_lab(arguments: argparse.Namespace) -> int:
    """Print a lab's description, drawing, steps and expectations. Raises ConfigError."""
    from dsmip_ipsec.lab import spec
    from dsmip_ipsec.lab.drawing import draw
    from dsmip_ipsec.lab.library import find_lab

    lab = spec.load(find_lab(arguments.lab))
    print(f"{lab.lab.name}: {lab.lab.description}\n\n{draw(lab)}")
    for number, step in enumerate(lab.steps, start=1):
        what = step.model_dump(mode="json")[step.verb]
        fields = what if isinstance(what, dict) else {}
        shown = " ".join(f"{key}={value}" for key, value in fields.items() if value) or what
        who = f" ({step.node})" if step.node else ""
        print(
            f"\n{number}. {step.name}{who}: {step.verb} {'' if shown is True else shown}".rstrip()
        )
        for name, value in step.expect.model_dump(exclude_none=True).items():
            words = value if not isinstance(value, bool) else "yes" if value else "no"
            if isinstance(value, dict):
                words = " + ".join(f"{amount:g} {unit}" for unit, amount in value.items() if amount)
            if name == "captured":
                words = "; ".join(map(str, step.expect.captured or ()))
            print(f"     {name.replace('_', ' ')}: {words}")
    return 0
