"""QEMU guests that are really booted, on Debian's own kernel: what they do, what they leave.

What they share with User-Mode Linux is tested in test_guest_boot.py. Without KVM a boot takes some
ten seconds, so each test asks for several things.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from guest_driver import STRANGER, driver, wait_until

from dsmip_ipsec.lab import qemu_kernel

LIMIT_S = 180.0
UNPRIVILEGED = STRANGER if os.geteuid() == 0 else None


def test_command_runs_confined_on_the_stock_kernel_and_leaves_nothing() -> None:
    """Root's guest is nobody on the host, and can write to its share alone."""
    script = """
    uname -r; id -u; modprobe -a esp4 esp6 sit fou && ip tuntap add dev t0 mode tun && echo modules
    ip netns add a && nft add table ip t && echo namespaces and nft
    echo seen >$DSMIP_SHARE/seen
    (echo open; exec sleep 1000) >$DSMIP_SHARE/open & until [ -s $DSMIP_SHARE/open ]; do :; done
    mount -o remount,rw / 2>/dev/null
    for path in /etc /usr/local /run/dsmip/host/tmp /run/dsmip/host/var/tmp; do
      (: >$path/$NAME) 2>/dev/null && echo $path: BREACH
    done
    printf unfinished; exit 7
    """
    name = f"breach-{os.getpid()}"
    command = ["sh", "-c", script]
    with driver(command, kind="qemu", env={"NAME": name}, deadline_s=LIMIT_S) as run:
        run.result(LIMIT_S)
        console = (run.directory / "console.log").read_text(errors="replace")
        release = qemu_kernel.find_kernel().release
        wanted = [release, "0", "modules", "namespaces and nft", "unfinished"]
        assert run.lines() == wanted, (run.said, console)
        assert run.value("status") == "7"
        assert (run.directory / "share" / "seen").read_text() == "seen\n"
        assert (run.directory / "share" / "open").read_text() == "open\n"
        assert run.left_behind() == []
    for place in ("/etc", "/usr/local", "/tmp", "/var/tmp"):
        assert not Path(place, name).exists()


def test_several_at_once_for_who_has_no_privilege_and_kill_9_leaves_nothing() -> None:
    """As in a container: no capability to be had, no set-uid program, somebody who owns nothing."""
    script = 'echo "$NAME" >$DSMIP_SHARE/name; cat $DSMIP_SHARE/name; sleep 1000'
    with (
        driver(["sh", "-c", script], kind="qemu", user=UNPRIVILEGED, env={"NAME": "one"},
               deadline_s=LIMIT_S) as one,
        driver(["sh", "-c", script], kind="qemu", user=UNPRIVILEGED, env={"NAME": "two"},
               deadline_s=LIMIT_S) as two,
    ):  # fmt: skip
        for run, name in ((one, "one"), (two, "two")):
            wait_until(lambda run=run: run.lines() != [], "a line", LIMIT_S)  # type: ignore[misc]
            assert run.lines() == [name], run.said
        if UNPRIVILEGED is not None:
            status = Path(f"/proc/{one.uml()}/status").read_text()
            assert f"Uid:\t{STRANGER[0]}" in status
            assert "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status
        os.kill(one.uml(), signal.SIGKILL)
        one.result(30)
        assert one.value("error").startswith("GuestError: the guest died")
        two.process.kill()
        for run in (one, two):
            wait_until(lambda run=run: run.left_behind() == [], "all gone", 30)  # type: ignore[misc]


def test_panic_is_reported() -> None:
    crash = ["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"]
    with driver(crash, kind="qemu", user=UNPRIVILEGED, deadline_s=LIMIT_S) as run:
        run.result(LIMIT_S)
        assert run.value("error") == "GuestError: the guest died: kernel panic", run.said
        assert run.left_behind() == []


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "busybox"])
def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    which = shutil.which
    monkeypatch.setattr(
        "shutil.which", lambda name, path=None: None if name == program else which(name, path=path)
    )
    from dsmip_ipsec.errors import LabError
    from dsmip_ipsec.lab.guest_qemu import find_qemu_parts

    with pytest.raises(LabError, match=program) as error:
        find_qemu_parts()
    assert "apt-get install" in error.value.hint
