"""Which kernel a lab or test runs on: the host's, or a guest's."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dsmip_ipsec.errors import GuestError, KernelError, LabError
from dsmip_ipsec.kernel.probes import Capabilities, lab_obstacles, probe
from dsmip_ipsec.lab.guest import Guest, UmlGuest, find_uml, run_in_guest, run_until_signal
from dsmip_ipsec.lab.guest_init import GUEST_SHARE
from dsmip_ipsec.lab.guest_qemu import QemuGuest, find_qemu_parts
from dsmip_ipsec.node.config import IpsecKind

Kernel = Literal["host", "uml", "qemu"]
KERNEL_CHOICES = ("auto", "host", "uml", "qemu")
_GUESTS: dict[str, type[Guest]] = {"uml": UmlGuest, "qemu": QemuGuest}
# Tells a lab in a guest which kind that is.
KERNEL_KIND_VARIABLE = "DSMIP_KERNEL_KIND"
# For sentences that a user reads.
KERNEL_TITLES = {"host": "this kernel", "uml": "User-Mode Linux", "qemu": "QEMU, a stock kernel"}


def guest_kind(kernel: str) -> type[Guest]:
    """The kind of guest that has this kernel (uml or qemu)."""
    return _GUESTS[kernel]


def choose_kernel(
    requested: str = "auto",
    *,
    ipsec: IpsecKind = "kernel",
    probe_host: Callable[[], Capabilities] = probe,
) -> Kernel:
    """The kernel to use for ``requested`` (one of KERNEL_CHOICES).

    auto: the host's if we are root and it can do everything that labs need, else a guest. With
    ``ipsec`` "userspace" labs need less, and a user namespace makes us root enough (see
    :func:`in_user_namespace`).
    Raises LabError if the one that was asked for, or any, can't serve.
    """
    if requested not in KERNEL_CHOICES:
        raise LabError(
            f"unknown kernel '{requested}'", hint=f"choose one of {', '.join(KERNEL_CHOICES)}"
        )
    if requested == "uml":
        find_uml()
        return "uml"
    if requested == "qemu":
        find_qemu_parts()
        return "qemu"
    if os.geteuid() != 0 and ipsec == "kernel":
        if requested == "host":
            raise LabError(
                "labs on the host's kernel need root",
                hint="run as root, or with --kernel uml, which needs none",
            )
    else:
        obstacles = lab_obstacles(probe_host(), ipsec_in_kernel=ipsec == "kernel")
        if not obstacles:
            return "host"
        if requested == "host":
            lacks = ", ".join(f"{item.title} ({item.reason})" for item in obstacles)
            raise LabError(
                f"the host's kernel can't run labs, it lacks: {lacks}",
                hint="use --kernel uml; see dsmip-ipsec doctor",
            )
    find_uml()
    return "uml"


def in_user_namespace(kernel: Kernel) -> bool:
    """Whether a lab on ``kernel``, as :func:`choose_kernel` chose it for us, has to enter a user
    namespace first (:func:`dsmip_ipsec.kernel.user_namespace.enter`)."""
    return kernel == "host" and os.geteuid() != 0


def probe_guest(kernel: str = "uml", *, deadline_s: float = 90.0) -> Capabilities:
    """Boot a guest and probe its kernel; some five to ten seconds, without KVM a minute.

    From a program's main thread. Raises LabError, GuestError, KernelError.
    """
    directory = Path(tempfile.mkdtemp(prefix="dsmip-doctor-"))
    directory.chmod(0o711)  # the guest's user must reach the share below it
    console_log = directory / "console.log"
    result = directory / "share" / "probes.json"
    said: list[str] = []
    keep = False
    try:
        status = run_until_signal(
            run_in_guest(
                [sys.executable, "-m", "dsmip_ipsec.kernel.probes", f"{GUEST_SHARE}/probes.json"],
                share=directory / "share",
                deadline_s=deadline_s,
                on_line=said.append,
                console_log=console_log,
                kind=guest_kind(kernel),
            )
        )
        if status != 0:
            raise KernelError(
                f"the probes failed in the guest: {said[-1] if said else f'status {status}'}",
                hint="run dsmip-ipsec doctor again; if it stays, report it",
            )
        # The guest wrote it, so it may be anything; only a plain file of a sane size is read.
        with open(os.open(result, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return Capabilities.from_dict(json.loads(file.read(1 << 20)))
    except GuestError:
        keep = True  # the error names the log
        raise
    except (OSError, ValueError) as error:
        raise KernelError(f"the guest's results can't be read: {error}") from error
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
