"""A standing lab as a person uses it: one guest for its whole life, and one whose holder dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
from lab_runs import LABS, assert_nothing_left

from dsmip_ipsec.lab import cleanup, held

LIMIT_S = 150
COMMAND = (sys.executable, "-m", "dsmip_ipsec", "lab")


def lab(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *words], input=given, capture_output=True, timeout=LIMIT_S, check=False
    )


def said(*words: str) -> str:
    done = lab(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def up(*options: str) -> str:
    found = re.search(r"^(dsmip-[0-9a-f]{4}) stands: nat-handover, kernel uml$",
                      said("up", "nat-handover", "--kernel", "uml", *options), re.M)  # fmt: skip
    assert found is not None
    return found[1]


def test_a_whole_life(tmp_path: Path, own_tmp: Path) -> None:
    out = tmp_path / "out"
    name = up("--out", str(out))
    try:
        (standing,) = (found for found in held.held_labs() if found.name == name)
        assert standing.directory.stat().st_mode & 0o777 == 0o700
        # Others may stand as well: a user's labs are registered in one place.
        listed = re.search(r"(?m)^nat-handover .*\[stands: (.*)\]$", said("list"))
        assert listed is not None
        assert name in listed[1].split(", ")

        run(name)
        shell(name)
        move(name)

        assert f"{name} (nat-handover) is down; see {out}" in said("down", name)
    finally:
        lab("down", name)
    record = json.loads((out / "record.json").read_text())
    assert record["verdict"] == "passed", (record["failure"], record["expectations"])
    assert name not in [journal.run for journal in cleanup.runs()]
    assert_nothing_left(own_tmp, within_s=20)


def run(name: str) -> None:
    done = lab("exec", "--lab", name, "mn", "--", "sh", "-c", "echo out; echo bad >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"bad\n")
    # More than a window, which must be refilled.
    done = lab("exec", "--lab", name, "cn", "--", "head", "-c", "600000", "/dev/zero")
    assert done.stdout == bytes(600_000)
    octets = os.urandom(20_000)
    done = lab("exec", "--lab", name, "-i", "cn", "--", "cat", given=octets)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == octets
    assert lab("exec", "--lab", name, "mn", "--", "sh", "-c", "kill -9 $$").returncode == 137
    done = lab("exec", "--lab", name, "nobody", "--", "true")
    assert done.returncode == 1
    assert b"there is no node 'nobody'" in done.stderr

    # A command ends with whoever asked for it.
    sleeping = subprocess.Popen(
        [*COMMAND, "exec", "--lab", name, "mn", "--", "sh", "-c", "echo on; exec sleep 4711"],
        stdout=subprocess.PIPE,
    )
    assert sleeping.stdout is not None
    assert sleeping.stdout.readline() == b"on\n"
    sleeping.send_signal(signal.SIGINT)
    assert sleeping.wait(timeout=20) == 130
    sleeping.stdout.close()
    gone = "for i in $(seq 100); do pgrep -f '^sleep 4711' || exit 0; sleep 0.1; done; exit 1"
    assert lab("exec", "--lab", name, "mn", "--", "sh", "-c", gone).returncode == 0


def shell(name: str) -> None:
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "dsmip_ipsec", "lab", "shell", "--lab", name, "mn"],
        dimensions=(33, 101), timeout=30, encoding="utf-8",
    )  # fmt: skip
    terminal.expect_exact("mn# ")
    terminal.sendline("stty size; ip netns identify")
    terminal.expect_exact("33 101")
    terminal.expect(r"dsmip-[0-9a-f]{4}-mn")
    terminal.setwinsize(40, 120)
    deadline = time.monotonic() + 20
    while True:  # the new size travels beside what is typed
        terminal.sendline("stty size")
        terminal.expect(r"(\d+ \d+)\r")
        assert isinstance(terminal.match, re.Match)
        if terminal.match[1] == "40 120":
            break
        assert time.monotonic() < deadline, terminal.match[1]
    terminal.sendline("exit 7")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 7


def move(name: str) -> None:
    assert "attach to visited-a" in said("move", "--lab", name, "mn", "visited-a")
    found = json.loads(said("status", name, "--json"))
    assert found["networks"] == {"mn": "visited-a"}
    assert found["nodes"]["mn"]["bindings"][0]["nat_detected"]
    assert "seen as 192.0.2.2" in " ".join(said("status", name).split())

    lines = said("watch", name, "--count", "2", "--interval", "0.2").splitlines()
    carried = [re.search(r"signalling .* (\d+) packets", line) for line in lines]
    assert any(line and int(line[1]) > 0 for line in carried), lines
    # A pytest-xdist worker has LINES and COLUMNS, which would win over the terminal's size.
    size = {"LINES": "200", "COLUMNS": "120"}
    watching = pexpect.spawn(
        sys.executable, ["-m", "dsmip_ipsec", "lab", "watch", name], dimensions=(200, 120),
        timeout=60, encoding="utf-8", env={**os.environ, **size, "TERM": "xterm"},
    )  # fmt: skip
    watching.expect_exact("Ctrl-C ends")
    watching.expect_exact("visited-a")
    watching.sendintr()
    watching.expect(pexpect.EOF)
    watching.close()
    assert watching.exitstatus == 0

    done = lab("move", "--lab", name, "mn", "nowhere")
    assert done.returncode == 1
    assert b"nowhere" in done.stderr
    assert "move to visited-b" in said("move", "--lab", name, "mn", "visited-b")


def test_a_killed_holder_leaves_nothing_after_down(own_tmp: Path) -> None:
    name = up()
    (owner,) = (journal.owner for journal in cleanup.runs() if journal.run == name)
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    done = lab("exec", "--lab", name, "mn", "--", "true")
    assert done.returncode == 1
    assert b"has died" in done.stderr
    assert f"lab down {name}".encode() in done.stderr
    said("down", name)
    assert name not in [journal.run for journal in cleanup.runs()]
    assert_nothing_left(own_tmp, within_s=20)


def test_an_interrupted_up_and_a_terminated_holder(own_tmp: Path) -> None:
    """Ctrl-C while the guest boots; then SIGTERM to a holder whose lab stands."""
    assert LABS.is_dir()
    starting = subprocess.Popen(
        [*COMMAND, "up", "nat-handover", "--kernel", "uml"], stdout=subprocess.PIPE
    )
    assert starting.stdout is not None
    assert b"topology" in starting.stdout.readline()
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert_nothing_left(own_tmp, within_s=20)

    name = up()
    (owner,) = (journal.owner for journal in cleanup.runs() if journal.run == name)
    assert owner is not None
    os.kill(owner.pid, signal.SIGTERM)
    assert cleanup.wait(owner, wait_s=40)
    assert name not in [journal.run for journal in cleanup.runs()]
    assert_nothing_left(own_tmp, within_s=20)
