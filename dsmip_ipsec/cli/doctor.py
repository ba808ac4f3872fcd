"""``dsmip-ipsec doctor``: what the kernel can do, which programs are there, where labs can run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.kernel.probes import Capabilities, Capability, Status, lab_obstacles, probe
from dsmip_ipsec.lab.guest import guest_user
from dsmip_ipsec.lab.guest_code import reaches
from dsmip_ipsec.lab.guest_kernel import KERNEL_CHOICES, probe_guest

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

GUESTS = {"uml": "UML", "qemu": "QEMU"}

SCHEMA = "dsmip-ipsec/doctor/1"
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Program:
    """A program and the Debian package that has it. ``needed`` by: labs, a kind of guest (two
    kinds: both), or nothing."""

    name: str
    package: str
    needed: str
    use: str


PROGRAMS = (
    Program("ip", "iproute2", "labs", "namespaces, links, XFRM"),
    Program("tc", "iproute2", "labs", "delay and loss"),
    Program("iptables-legacy", "iptables", "labs", "NAT"),
    Program("setpriv", "util-linux", "labs", "programs that end with their lab"),
    Program("charon-systemd", "charon-systemd", "labs", "IKEv2"),
    Program("swanctl", "strongswan-swanctl", "labs", "loading charon's configuration"),
    Program("tshark", "tshark", "", "reading captures"),
    Program("nft", "nftables", "", "NAT on kernels without iptables"),
    Program("linux.uml", "user-mode-linux", "uml", "the UML guest's kernel"),
    Program("modprobe", "kmod", "uml qemu", "a guest's modules"),
    Program("qemu-system-x86_64", "qemu-system-x86", "qemu", "guests with a stock kernel"),
    Program("busybox", "busybox-static", "qemu", "their initramfs"),
)


@dataclass(frozen=True)
class Found:
    """``path`` "" when missing. ``problem`` "" when usable."""

    program: Program
    path: str
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """``labs``: host, uml, qemu or none."""

    labs: str
    text: str
    reasons: list[str] = field(default_factory=list)


def find_programs() -> list[Found]:
    """Look for each program on PATH and in the sbin directories, which users' PATHs lack."""
    result = []
    for program in PROGRAMS:
        path = shutil.which(program.name, path=f"{os.environ.get('PATH', '/usr/bin')}:{SBIN}") or ""
        problem = "" if path else "missing"
        # Debian's dumpcap, for one, is for root and a group only where it was configured so.
        if path and guest_user() is not None and not _usable(path):
            problem = "may not be run by the guest's user"
        result.append(Found(program, path, problem))
    return result


def _usable(path: str) -> bool:
    from pathlib import Path

    return reaches(Path(path), guest_user())


def judge(
    *,
    root: bool,
    programs: Sequence[Found],
    host: Capabilities | None,
    guest: Capabilities | None,
    guest_error: str = "",
    kind: str = "uml",
) -> Verdict:
    """Where labs run, from what was found; a capability set that is None wasn't probed. ``kind``:
    of the guest."""
    # On the host we are root, so what only the guest's user may not run is no obstacle there.
    missing = [f for f in programs if f.program.needed == "labs" and not f.path]
    if missing:
        packages = sorted({found.program.package for found in missing})
        return Verdict(
            "none",
            f"install {' '.join(packages)}",
            [f"the program {found.program.name} is missing" for found in missing],
        )
    reasons: list[str] = []
    if host is not None:
        obstacles = [_sentence("this kernel", item) for item in lab_obstacles(host)]
        if root and not obstacles:
            return Verdict("host", "labs run in place")
        reasons += obstacles or ["labs on this kernel need root"]
    unusable = [f for f in programs if f.problem and _needed(f.program, kind)]
    absent = [found for found in unusable if not found.path]
    if absent:
        packages = sorted({found.program.package for found in absent})
        reasons += [f"the program {found.program.name} is missing" for found in absent]
        return Verdict("none", f"install {' '.join(packages)}", reasons)
    if unusable:
        reasons += [f"{found.path} {found.problem}" for found in unusable]
        paths = " ".join(found.path for found in unusable)
        return Verdict("none", f"let all users run these programs: chmod o+rx {paths}", reasons)
    if guest_error:
        return Verdict("none", f"the {GUESTS[kind]} guest doesn't start", [*reasons, guest_error])
    if guest is None:
        return Verdict("none", f"run it with --kernel {kind} to probe the guest", reasons)
    obstacles = [_sentence("the guest's kernel", item) for item in lab_obstacles(guest)]
    if obstacles:
        return Verdict("none", "no kernel here can run the labs", reasons + obstacles)
    return Verdict(kind, f"labs run in the {GUESTS[kind]} guest", reasons)


def userspace_labs(host: Capabilities | None, *, root: bool) -> list[str]:
    """What to say of labs that don't need the kernel's IPsec; nothing where they can't run here."""
    if host is None or lab_obstacles(host, ipsec_in_kernel=False):
        return []
    return ["with --ipsec userspace, labs run in place" + ("" if root else " without root")]


def _needed(program: Program, kind: str) -> bool:
    return program.needed == "labs" or kind in program.needed.split()


def _sentence(kernel: str, item: Capability) -> str:
    verb = "lacks" if item.status is Status.MISSING else "may lack"
    return f"{kernel} {verb} {item.title}: {item.reason}"


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can do, and what to install",
        description="Try what the kernel can do, look for the programs that labs need, and say "
        "where labs run. Exit status 0 if they can.",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, on stdout")
    parser.add_argument(
        "--kernel",
        choices=KERNEL_CHOICES,
        default="auto",
        help="which kernel to try: this one, the UML guest's, a stock one under QEMU, or (auto) "
        "the UML guest's too if labs can't run on this one",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The sub-command; 0 if labs can run somewhere, else 1."""
    root = os.geteuid() == 0
    programs = find_programs()
    kind = "qemu" if args.kernel == "qemu" else "uml"
    host = probe() if args.kernel in ("auto", "host") else None
    guest: Capabilities | None = None
    guest_error = ""
    wanted = args.kernel == kind or (
        args.kernel == "auto" and host is not None and bool(not root or lab_obstacles(host))
    )
    if wanted and not any(f.problem for f in programs if kind in f.program.needed.split()):
        try:
            guest = probe_guest(kind)
        except DsmipError as error:
            guest_error = f"{error.message} ({error.hint})" if error.hint else error.message
            if not isinstance(error, LabError):
                raise
    verdict = judge(
        root=root,
        programs=programs,
        host=host,
        guest=guest,
        guest_error=guest_error,
        kind=kind,
    )
    if verdict.labs != "host":
        verdict.reasons.extend(userspace_labs(host, root=root))
    if args.json:
        print(json.dumps(_document(programs, {"host": host, kind: guest}, verdict), indent=2))
    else:
        console = Console(highlight=False)
        for table in _tables(programs, {"this kernel": host, f"{GUESTS[kind]} guest": guest}):
            console.print(table)
        style = "bold green" if verdict.labs != "none" else "bold red"
        console.print(Text("Verdict: ", "bold") + Text(verdict.text, style))
        for reason in verdict.reasons:
            console.print(Text(f"  {reason}"))
    return 0 if verdict.labs != "none" else 1


def _document(
    programs: Sequence[Found],
    kernels: Mapping[str, Capabilities | None],
    verdict: Verdict,
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "kernels": {name: found.to_dict() for name, found in kernels.items() if found is not None},
        "programs": [
            {**asdict(found.program), "path": found.path, "problem": found.problem}
            for found in programs
        ],
        "verdict": asdict(verdict),
    }


_STYLES = {Status.OK: "green", Status.MISSING: "red", Status.UNTESTED: "yellow"}


def _cell(item: Capability) -> Text:
    text = Text(str(item.status), _STYLES[item.status])
    details = " ".join(part for part in (item.errno, item.reason) if part)
    return text + Text(f"  {details}" if details else "", "dim")


def _tables(programs: Sequence[Found], found_on: Mapping[str, Capabilities | None]) -> list[Table]:
    columns = [
        (f"{title} ({found.release}, as {found.by})", found)
        for title, found in found_on.items()
        if found is not None
    ]
    kernels = Table(title="Kernel", title_justify="left")
    kernels.add_column("capability")
    for heading, _ in columns:
        kernels.add_column(heading)
    for item in columns[0][1] if columns else ():
        kernels.add_row(item.title, *(_cell(found[item.name]) for _, found in columns))
    table = Table(title="Programs", title_justify="left")
    for heading in ("program", "Debian package"):
        table.add_column(heading, no_wrap=True)
    for heading in ("for", "found"):
        table.add_column(heading, overflow="fold")
    for found in programs:
        needed = found.program.needed or "optional"
        state = Text(found.path, "green") if not found.problem else Text("")
        if found.problem:
            state += Text(found.problem, "red" if found.program.needed else "yellow")
        table.add_row(found.program.name, found.program.package, f"{needed}: {found.program.use}",
                      state)  # fmt: skip
    return [kernels, table] if columns else [table]
