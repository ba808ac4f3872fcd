"""Guests within user namespaces, as unprivileged containers and sandboxes are made of them.

There root is root of the namespace only and mostly can't become anybody else, and the host's files
(set-uid programs among them) belong to somebody who has no number.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from guest_driver import STRANGER, Driver, driver

UNPRIVILEGED = STRANGER if os.geteuid() == 0 else None

SCRIPT = """
id -u
modprobe esp4 && ip netns add a && ip -n a link add v0 type veth peer name v1 && echo networks
mount -t tmpfs none /mnt && echo mounted
echo seen >$DSMIP_SHARE/seen
mount -o remount,rw / && (: >"/etc/$NAME") 2>/dev/null && echo BREACH
true
"""
EXPECTED = ["0", "networks", "mounted"]


def shows_a_lab(run: Driver) -> None:
    run.result(90)
    assert run.lines() == EXPECTED, run.said
    assert run.value("status") == "0"


@pytest.mark.parametrize("mapped", ["--map-root-user", "--map-current-user"])
@pytest.mark.parametrize(
    "user",
    [
        pytest.param(None, id="root", marks=pytest.mark.as_root),
        pytest.param(UNPRIVILEGED, id="user"),
    ],
)
def test_guest_in_a_user_namespace_of_one_user(user: tuple[int, int] | None, mapped: str) -> None:
    name = f"breach-{os.getpid()}"
    within = ["unshare", "--user", mapped]
    with driver(["sh", "-c", SCRIPT], user=user, env={"NAME": name}, within=within) as run:
        shows_a_lab(run)
        assert (run.directory / "share" / "seen").read_text() == "seen\n"
        assert run.left_behind() == []
    assert not Path("/etc", name).exists()


def test_guest_of_a_namespaces_root_has_no_capability() -> None:
    """Not even over the namespace."""
    within = ["unshare", "--user", "--map-root-user"]
    with driver(["sh", "-c", "echo up; sleep 1000"], user=UNPRIVILEGED, within=within) as run:
        run.wait_for("line:up")
        text = Path(f"/proc/{run.uml()}/status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        assert status["NoNewPrivs"] == "1"
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind


def test_guest_in_a_sandbox_with_file_systems_of_its_own() -> None:
    """bubblewrap: every namespace new, all of the host read-only, /dev, /proc and /dev/shm new."""
    within = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
    within += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/dev/shm"]
    # Where the driver's directory is.
    within += ["--bind", tempfile.gettempdir(), tempfile.gettempdir()]
    with driver(
        ["sh", "-c", SCRIPT],
        user=UNPRIVILEGED,
        env={"NAME": f"breach-{os.getpid()}"},
        within=within,
    ) as run:
        shows_a_lab(run)
        assert run.left_behind() == []


# seccomp(2) as containers use it: load the system call's number, ptrace (101) fails with EPERM.
NO_PTRACE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
rows = (0x20, 0, 0, 0), (0x15, 0, 1, 101), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows), 32)
program = ctypes.c_char_p(struct.pack("@HP", len(rows), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_container_without_ptrace_is_told_what_to_allow() -> None:
    within = [os.path.realpath(sys.executable), "-c", NO_PTRACE]
    with driver(["true"], user=UNPRIVILEGED, within=within) as run:
        run.result(60)
        assert run.process.returncode == 3
        assert "may not trace processes here" in run.value("error"), run.said
        assert run.left_behind() == []
