"""Runs beside each other, and what is left of one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lab_support import LAB, built, namespaces, nat_handover, ping

from dsmip_ipsec.lab import netns
from dsmip_ipsec.lab.cleanup import down, runs

# A lab with a daemon that ignores SIGTERM and has shed the lab's hold on it: a child of a child,
# in a session of its own.
KILLED = """
import asyncio, os, sys
from pathlib import Path
from dsmip_ipsec.lab.cleanup import Run
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.spec import load
from dsmip_ipsec.lab.topology import Topology

DAEMON = '''
import os, signal, time
reader, writer = os.pipe()
if os.fork():
    os.read(reader, 1)
    os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
os.write(writer, b"x")
time.sleep(600)
'''

async def main():
    run = Run.claim()
    work = Path(sys.argv[2])
    work.mkdir()
    run.add_directory(work)
    topology = Topology(load(sys.argv[1]), run)
    topology.up()
    before = os.readlink("/proc/thread-self/ns/net")
    processes = Processes(run)
    for node in ("mn", "ha"):
        argv = [sys.executable, "-c", DAEMON]
        where = topology.namespace(node)
        daemon = processes.start(node, argv, log=work / node, namespace=where, may_end=True)
        assert await daemon.ended == 0
        assert daemon.last_lines() == "ready"
    assert os.readlink("/proc/thread-self/ns/net") == before, "the lab itself has moved"
    print(run.id, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_killed_lab_is_cleaned_up_and_another_is_left_alone(tmp_path: Path) -> None:
    before = namespaces()
    work = tmp_path / "work"
    with built(nat_handover()) as other:
        command = [sys.executable, "-c", KILLED, str(LAB), str(work)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as lab:
            assert lab.stdout is not None
            name = lab.stdout.readline().decode().strip()
            lab.send_signal(signal.SIGKILL)
        mine = {namespace for namespace in namespaces() if namespace.startswith(f"{name}-")}
        assert len(mine) == 6
        daemons = netns.pids(mine)
        assert len(daemons) == 2
        assert {journal.run: journal.alive for journal in runs()} == {
            name: False,
            other.run.id: True,
        }
        (cleaned,) = down(name)
        assert (cleaned.processes, cleaned.namespaces, cleaned.directories) == (2, 6, 1)
        assert not work.exists()
        assert netns.pids(mine) == set()
        assert not any(os.path.exists(f"/proc/{pid}/cmdline") and _alive(pid) for pid in daemons)
        assert ping(other, "cn", "203.0.113.2", count=1) != []
        assert [journal.run for journal in runs()] == [other.run.id]
        down(other.run.id)  # the owner is this very process, which goes on
        assert namespaces() == before
    assert namespaces() == before
    assert runs() == []


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
