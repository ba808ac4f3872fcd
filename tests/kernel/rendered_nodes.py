"""A rendered deployment in namespaces: a home agent and mobile nodes on a backbone each of their
own, everything started with the commands of the rendered READMEs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import vici

T = TypeVar("T")

HOME_AGENT = "203.0.113.2"
HOME_AGENT6 = "2001:db8:100::1"


def care_of(index: int) -> str:
    return f"198.51.{index}.2"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _no_dad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


def until(true: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    deadline = time.monotonic() + timeout_s
    while True:
        if result := true():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)


class Nodes:
    """``with Nodes(inventory) as nodes: nodes.start("ha")``; ``inventory``: TOML without what
    every deployment here has in common."""

    def __init__(
        self,
        inventory: str,
        names: tuple[str, ...],
        head: str = "",
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.names = names
        self.run_id = uuid.uuid4().hex[:6]
        self.directory = Path(tempfile.mkdtemp(prefix="dsmip-", dir="/tmp"))
        self.out = self.directory / "out"
        self.inventory = self.directory / "inventory.toml"
        for name, content in (files or {}).items():
            (self.directory / name).write_text(content)
        self.inventory.write_text(
            f'''{head}
[home_agent]
identity = "ha.example.org"
ipv6 = "{HOME_AGENT6}"
ipv4 = "{HOME_AGENT}"
interfaces = ["wan0"]

[pools]
ipv6 = "2001:db8:100::100/120"
ipv4 = "203.0.113.128/26"

{inventory}'''
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # The commands of a README find ours where its reader would have installed it.
        (self.directory / "bin").mkdir()
        command = self.directory / "bin" / "dsmip-ipsec"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m dsmip_ipsec.cli.main "$@"\n')
        command.chmod(0o755)

    def netns(self, name: str) -> str:
        return f"{self.run_id}-{name}"

    def __enter__(self) -> Nodes:
        try:
            self._build()
            self.render()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        everyone = ("core", "ha", *self.names)
        for name in everyone:
            run("ip", "netns", "add", self.netns(name))
            run("ip", "-n", self.netns(name), "link", "set", "lo", "up")
        for name, address, router in (
            ("ha", f"{HOME_AGENT}/24", "203.0.113.1"),
            *((n, f"{care_of(i)}/24", f"198.51.{i}.1") for i, n in enumerate(self.names)),
        ):
            core = self.netns("core")
            prefix = ["ip", "-n", self.netns(name)]
            run(*prefix, *f"link add wan0 type veth peer name {name} netns {core}".split())
            run(*prefix, *f"addr add {address} dev wan0".split())
            run(*prefix, *["link", "set", "wan0", "up"])
            run("ip", "-n", core, *f"addr add {router}/24 dev {name}".split())
            run("ip", "-n", core, *f"link set {name} up".split())
            run(*prefix, *f"route add default via {router}".split())  # as DHCP leaves it
        run(*f"ip netns exec {core} sysctl -qw net.ipv4.ip_forward=1".split())
        prefix = ["ip", "-n", self.netns("ha")]
        run(*prefix, *["link", "add", "home", "type", "dummy"])
        run(*prefix, *["link", "set", "home", "up"])
        # What payload may reach behind the home agent, beside its home link.
        for address in (f"{HOME_AGENT6}/64", "2001:db8:100::99/128", "192.0.2.99/32"):
            run(*prefix, *["addr", "add", address, "dev", "home"], *_no_dad(address))

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        for name in ("core", "ha", *self.names):
            subprocess.run(
                ["ip", "netns", "del", self.netns(name)], check=False, capture_output=True
            )
        if "DSMIP_SHARE" in os.environ and sys.exc_info()[0] is not None:
            for log in self.directory.rglob("*.log"):
                shutil.copy(log, Path(os.environ["DSMIP_SHARE"]) / f"{log.parent.name}-{log.name}")
        shutil.rmtree(self.directory)

    def render(self, *, status: int = 0) -> str:
        done = subprocess.run(
            [self.directory / "bin" / "dsmip-ipsec", "render", self.inventory, "--out", self.out],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    # The README's commands ---------------------------------------------------------------------

    def commands(self, name: str) -> list[str]:
        text = (self.out / name / "README.md").read_text()
        return [line.strip() for line in text.splitlines() if line.startswith("    ")]

    def shell(self, name: str, command: str, *, check: bool = True) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.netns(name), "sh", "-c", command],
            capture_output=True, text=True, check=False, timeout=120, env=self._environment(),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}:/usr/sbin"}

    def _background(self, name: str, what: str, command: str) -> None:
        with (self.out / name / f"{what}.log").open("wb") as log:
            self.processes[f"{name}-{what}"] = subprocess.Popen(
                ["ip", "netns", "exec", self.netns(name), "sh", "-c",
                 f"exec env {command.removesuffix('&')}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=self._environment(),
            )  # fmt: skip

    def start_charon(self, name: str) -> str:
        """The first three commands; returns what swanctl said."""
        charon, wait, load, *_ = self.commands(name)
        assert charon.endswith("&")
        self._background(name, "charon", charon)
        self.shell(name, f"timeout 30 sh -c '{wait}'")
        return self.shell(name, load)

    def load(self, name: str) -> str:
        return self.shell(name, self.commands(name)[2])

    def start_daemon(self, name: str) -> None:
        """The fourth command, and the fifth, which waits for it."""
        self._background(name, "daemon", self.commands(name)[3])
        self.shell(name, f"timeout 30 sh -c '{self.commands(name)[4]}'")

    def attach(self, name: str) -> dict[str, Any]:
        index = self.names.index(name)
        command = self.commands(name)[5]
        for old, new in (
            ("interface=eth0", "interface=wan0"),
            ("192.0.2.10", care_of(index)),
            ("192.0.2.1", f"198.51.{index}.1"),
        ):
            assert old in command
            command = command.replace(old, new)
        answer: dict[str, Any] = json.loads(self.shell(name, command))
        return answer

    def status(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.shell(name, self.commands(name)[-1]))
        return answer

    # What charon has ---------------------------------------------------------------------------

    def vici(self, name: str) -> Any:
        import socket

        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.out / name / "charon.vici"))
        return vici.Session(connection)

    def connections(self, name: str) -> dict[str, Any]:
        return {key: value for each in self.vici(name).list_conns() for key, value in each.items()}

    def initiate(self, name: str, child: str, connection: str = "") -> str:
        """What charon logs while it tries; empty if it succeeded."""
        words: list[str] = []
        try:
            for message in self.vici(name).initiate(
                {"ike": connection or name, "child": child, "timeout": "15000", "loglevel": "1"}
            ):
                words.append(message["msg"].decode())
        except vici.exception.CommandException as error:
            return "\n".join([*words, str(error)])
        return ""

    def log(self, name: str) -> str:
        return (self.out / name / "charon.log").read_text(errors="replace")
