"""Guests that are really booted (Debian's user-mode-linux): what they do, what they leave.

As root each is shown for ``nobody``, to whom root's guests are given, and for another user who
starts one; other users see the second kind only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from guest_driver import STRANGER, Driver, driver, wait_until

from dsmip_ipsec.lab import guest_code

AM_ROOT = os.geteuid() == 0
UNPRIVILEGED = STRANGER if AM_ROOT else None
both = pytest.mark.parametrize(
    "user",
    [
        pytest.param(None, id="root", marks=pytest.mark.as_root),
        pytest.param(UNPRIVILEGED, id="unprivileged"),
    ],
)

# A guest with a busy process and a waiting one: the traced ones that once survived.
BUSY = ["sh", "-c", "sh -c 'while :; do :; done' & echo up; sleep 1000"]


@both
def test_command_runs_and_its_output_comes_back(user: tuple[int, int] | None) -> None:
    script = """
    echo "$GREETING"; echo to stderr >&2
    id -u; modprobe esp4 && ip tuntap add dev t0 mode tun && ip -br link show lo
    grep -q ^esp4 /proc/modules && echo has esp4
    python3 -c 'import os; print(len(os.getrandom(16, os.GRND_NONBLOCK)), "random octets")'
    echo seen >$DSMIP_SHARE/seen
    # A file that is still open at the end, as a daemon's log is.
    (echo open; exec sleep 1000) >$DSMIP_SHARE/open & until [ -s $DSMIP_SHARE/open ]; do :; done
    cat /proc/sys/kernel/hostname
    printf unfinished; exit 7
    """
    greeting = 'it\'s "quoted" $HOME `id` \\ äöü'
    with driver(["sh", "-c", script], user=user, env={"GREETING": greeting}) as run:
        run.result()
        lines = run.lines()
        assert lines[:3] == [greeting, "to stderr", "0"]
        assert lines[3].split()[:2] == ["lo", "UNKNOWN"]  # up: iproute2 prints DOWN otherwise
        assert lines[4:] == ["has esp4", "16 random octets", "dsmip-guest", "unfinished"]
        assert run.value("status") == "7"
        assert (run.directory / "share" / "seen").read_text() == "seen\n"
        assert (run.directory / "share" / "open").read_text() == "open\n"
        console = (run.directory / "console.log").read_text(errors="replace")
        assert "Linux version" in console
        assert "to stderr" not in console
        assert float(run.value("ready")) < 15  # 2 s on an idle machine
        assert run.left_behind() == []


@both
def test_nothing_in_the_guest_can_write_to_the_host(user: tuple[int, int] | None) -> None:
    """Not even after the guest's root has made the root file system writable for itself."""
    package = guest_code.package_dir()
    script = """
    mount -o remount,rw / || exit 9
    umount -l /tmp && umount -l /var/tmp || exit 8
    for path in "$@"; do (: >"$path/$NAME") 2>/dev/null && echo "$path: BREACH"; done
    (echo more >>"$OWN/mine") 2>/dev/null && echo mine: BREACH
    echo tried
    """
    with driver(["true"]) as place:
        place.result()
        own = place.directory
        (own / "mine").write_text("mine\n")
        if user is not None:
            for path in (own, own / "mine"):
                os.chown(path, *user)
        name = f"breach-{own.name}"
        targets = ["/etc", "/tmp", "/var/tmp", "/usr/local", str(package), str(own)]
        command = ["sh", "-c", script, "sh", *targets]
        with driver(command, user=user, env={"OWN": str(own), "NAME": name}, visible=[own]) as run:
            run.result()
            console = (run.directory / "console.log").read_text(errors="replace")
            confined = "no Landlock" not in console
            breaches = [line for line in run.lines() if "BREACH" in line]
            if not confined:  # then the starter's own files are protected by the mount only
                breaches = [line for line in breaches if str(own) not in line]
            assert breaches == []
            assert run.lines()[-1:] == ["tried"], run.said
        found = [Path(target, name) for target in targets if Path(target, name).exists()]
        for path in found:
            path.unlink()
        assert found == []
        assert (own / "mine").read_text() == "mine\n"


@pytest.mark.as_root
def test_guest_of_root_runs_as_nobody_without_any_privilege() -> None:
    with driver(BUSY) as run:
        run.wait_for("line:up")
        pids = [pid for pid, words in run.guest_processes().items() if "linux.uml" in words[0]]
        seen = []
        for pid in pids:
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # one process of the guest's own has ended meanwhile
                continue
            seen.append(pid)
            status = dict(line.split(":\t", 1) for line in text.splitlines())
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].split() == []
            assert status["NoNewPrivs"] == "1"
            for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(status[kind], 16) == 0, kind
        assert run.uml() in seen
        assert len(seen) > 2


def _kill(run: Driver, victim: str) -> None:
    if victim == "guest":
        os.kill(run.uml(), signal.SIGKILL)
    elif victim == "starter":
        run.process.kill()
    else:
        os.kill(run.keepers()[{"keeper": 0, "warden": 1}[victim]], signal.SIGKILL)


@both
@pytest.mark.parametrize("victim", ["guest", "keeper", "warden", "starter"])
def test_kill_9_of_any_process_ends_everything(user: tuple[int, int] | None, victim: str) -> None:
    with driver(BUSY, user=user) as run:
        run.wait_for("line:up")
        assert len(run.left_behind()) > 3  # the look itself finds something
        _kill(run, victim)
        run.result(deadline_s=30)
        wait_until(lambda: run.left_behind() == [], f"all gone, left: {run.left_behind()}", 30)
        if victim != "starter":
            assert run.process.returncode == 3
            assert run.value("error").startswith("GuestError: the guest died")
            assert str(run.directory / "console.log") in run.value("hint")


def test_kill_9_of_all_that_watch_ends_the_guests_kernel() -> None:
    """With keeper, warden and starter dead at once, the parent-death signal is what is left."""
    with driver(BUSY, user=UNPRIVILEGED) as run:
        run.wait_for("line:up")
        kernel = os.pidfd_open(run.uml())
        for pid in (run.process.pid, *run.keepers()):
            os.kill(pid, signal.SIGKILL)
        try:
            assert select.select([kernel], [], [], 30)[0]
        finally:
            os.close(kernel)
            for pid in run.guest_processes():  # its helpers: nobody was left to bury them
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_guest_that_stands_still_is_noticed() -> None:
    with driver(BUSY, user=UNPRIVILEGED, silence_s=4) as run:
        run.wait_for("line:up")
        os.kill(run.uml(), signal.SIGSTOP)
        run.result(deadline_s=20)
        assert run.value("error") == "GuestError: the guest hangs: no sign of life for 4 s"
        assert run.left_behind() == []


def test_silent_command_is_not_a_hung_guest() -> None:
    with driver(["sleep", "6"], user=UNPRIVILEGED, silence_s=4) as run:
        run.result()
        assert run.value("status") == "0"


def test_kernel_panic_is_reported_with_the_console() -> None:
    crash = ["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"]
    with driver(crash, user=UNPRIVILEGED) as run:
        run.result()
        assert run.value("error") == "GuestError: the guest died: kernel panic"
        assert "sysrq triggered crash" in (run.directory / "console.log").read_text()
        assert run.left_behind() == []


def test_deadline_ends_the_guest() -> None:
    with driver(["sleep", "1000"], user=UNPRIVILEGED, deadline_s=6) as run:
        run.result(deadline_s=20)
        assert "didn't end within 6 s" in run.value("error")
        assert run.left_behind() == []


def test_guest_without_enough_memory_to_boot_is_an_error() -> None:
    with driver(["true"], user=UNPRIVILEGED, mem_mb=16) as run:
        run.result()
        assert run.value("error").startswith("GuestError: the guest didn't start")
        assert run.left_behind() == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_guest_and_the_program(number: int, status: int) -> None:
    with driver(BUSY, user=UNPRIVILEGED) as run:
        run.wait_for("line:up")
        run.process.send_signal(number)
        run.result(deadline_s=30)
        assert run.process.returncode == status
        assert run.left_behind() == []


def test_failing_listener_ends_the_guest() -> None:
    command = ["sh", "-c", "echo fail now; sleep 1000"]
    with driver(command, user=UNPRIVILEGED) as run:
        run.result()
        assert run.said[-1] == "RuntimeError: the listener failed"
        assert run.left_behind() == []


def test_several_guests_at_once_keep_apart() -> None:
    script = 'echo "$NAME" >$DSMIP_SHARE/name; cat $DSMIP_SHARE/name'
    with (
        driver(["sh", "-c", script], user=UNPRIVILEGED, env={"NAME": "one"}) as one,
        driver(["sh", "-c", script], user=UNPRIVILEGED, env={"NAME": "two"}) as two,
    ):
        one.result()
        two.result()
        assert (one.lines(), two.lines()) == (["one"], ["two"])
        assert (one.value("status"), two.value("status")) == ("0", "0")


@pytest.mark.as_root
def test_clone_that_only_root_can_read(tmp_path: Path) -> None:
    """A clone below mode 0700, made under umask 077, with its own virtual environment: the guest
    sees it at its own path. (pytest's tmp_path is below a 0700 directory, too.)"""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    clone = closed / "clone"
    guest_code.stage(guest_code.package_dir(), clone / "dsmip_ipsec")
    (clone / "pyproject.toml").write_text("")
    secret = clone / "dsmip_ipsec" / "only_here.py"
    secret.write_text("print('imported', __file__)\n")
    secret.chmod(0o600)
    closed.chmod(0o700)
    python = os.path.realpath(sys.executable)
    subprocess.run([python, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = sysconfig.get_paths()["purelib"]
    (clone / ".venv" / "lib" / version / "site-packages" / "real.pth").write_text(packages)
    interpreter = str(clone / ".venv" / "bin" / "python")
    command = [interpreter, "-c", "import dsmip_ipsec.only_here, pydantic, os; print(os.getcwd())"]
    with driver(
        command,
        cwd=str(clone),
        visible=[Path(sys.prefix)],
        python=(interpreter, {"PYTHONPATH": str(clone)}),
    ) as run:
        run.result()
        assert run.lines() == [f"imported {secret}", str(clone)], run.said
        assert run.value("status") == "0"
        assert run.left_behind() == []
