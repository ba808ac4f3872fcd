"""A charon that is given one rendered configuration after the other, and tells how it reads each:
over VICI, and at log level 2, where it prints what its own parser made of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inventories
import tomli_w
import vici

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import proposals
from dsmip_ipsec.ike.charon import Charon
from dsmip_ipsec.node import inventory_file
from dsmip_ipsec.node.render import render

NOW = datetime.datetime.now(datetime.UTC)
EVERY_KIND = """
[home_agent]
identity = "ha.example.org"
ipv6 = "2001:db8::1"
ipv4 = "192.0.2.1"
[mobile_nodes.mn]
identity = "mn.example.org"
home_address = "2001:db8::2"
credentials = { kind = "eap-md5" }
[overrides.ha]
strongswan = "log.conf"
"""


class Judge:
    """One charon. ``root``: of another Debian, whose charon and swanctl are to be used."""

    def __init__(self, directory: Path, root: Path | None = None) -> None:
        self.root = root
        self.directory = directory
        self.log = directory / "parsed.log"
        (directory / "log.conf").write_text(
            "charon { filelog { parsed {\n"
            f"path = {self.log}\nflush_line = yes\ndefault = -1\ncfg = 2\n}} }} }}\n"
        )
        inventory = inventory_file.parse(EVERY_KIND, directory / "judge.toml")
        self.files = render(inventory, directory / "judge", now=NOW).nodes[0].files
        self.netns = f"{uuid.uuid4().hex[:6]}-judge"
        self.accepted = self.refused = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Judge]:
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        process = Charon(self.files, ["ip", "netns", "exec", self.netns, *self._inside()])

        async def start() -> int:
            await process.start()
            await process.wait_ready()
            assert process.pid is not None
            return process.pid

        try:
            with asyncio.Runner() as runner:
                try:
                    runner.run(start())
                    yield self
                finally:
                    runner.run(process.stop())
        finally:
            subprocess.run(["ip", "netns", "del", self.netns], check=True)

    def _inside(self) -> list[str]:
        """What a command is put behind, to run below ``root``. It sees the same /tmp."""
        if self.root is None:
            return []
        script = (
            "set -e; root=$1; shift; mount --bind /tmp $root/tmp; mount --rbind /dev $root/dev; "
            'mount -t proc proc $root/proc; exec chroot $root "$@"'
        )
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(self.root)]

    def load(self, directory: Path) -> None:
        """``swanctl --load-all`` of ``directory``."""
        environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "STRONGSWAN_CONF": str(directory / "strongswan.conf"),
            "SWANCTL_DIR": str(directory),
        }
        done = subprocess.run(
            [
                *self._inside(), "swanctl", "--load-all", "--noprompt", "--clear",
                "--uri", f"unix://{self.files.vici_socket}",
            ],
            capture_output=True, text=True, check=False, timeout=60, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def session(self) -> Any:
        import socket

        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.files.vici_socket))
        return vici.Session(connection)

    def judge(self, inventory: dict[str, Any], seed: int) -> None:
        """Refused by name, or rendered, loaded and read back."""
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            base = Path(name)
            (base / "below").mkdir()
            (base / "secret").write_bytes(b'correct " horse } battery # staple\n')
            (base / "below" / "secret with space").write_bytes(b"0x" + b"c0ffee" * 8)
            (base / "usim").write_bytes(b"0123456789abcdef" * 4)
            text, refusal = tomli_w.dumps(inventory), None
            try:
                parsed = inventory_file.parse(text, base / "inventory.toml")
                rendered = render(parsed, base / "out", now=NOW)
            except ConfigError as error:
                self.refused += 1
                refusal = error
            # Whatever was named, nothing lands elsewhere.
            own = {base / each for each in ("below", "secret", "usim", "out")}
            assert set(base.iterdir()) <= own
            if refusal is not None:
                # To be read, by people, on terminals.
                assert refusal.hint, refusal
                assert len(str(refusal)) < 600, len(str(refusal))
                assert str(refusal).isprintable(), repr(str(refusal))
                return
            self.accepted += 1
            known: list[str | None] = [None, *inventory["mobile_nodes"]]
            node = known[seed % len(known)]
            directory = next(e.directory for e in rendered.nodes if e.name == (node or "ha"))
            self.log.write_bytes(b"")
            self.load(directory)
            wanted = inventories.expected(inventory, node)
            differences = _differences(self.read(), wanted)
            assert not differences, differences
            self.check_lists(inventory, node)

    def takes(self, use: proposals.Use, proposal: str) -> str:
        """How charon reads a proposal; "" if it refuses it."""
        child = {"esp_proposals": [proposal]} if use == "ESP" else {}
        connection = {"proposals": [proposal]} if use == "IKE" else {}
        self.log.write_bytes(b"")
        try:
            self.session().load_conn({"x": {**connection, "children": {"c": child}}})
        except vici.exception.CommandException:
            return ""
        read = self.read()["x"]
        text: str = (read if use == "IKE" else read["children"]["c"])["proposals"]
        return text

    def read(self) -> dict[str, Any]:
        """What charon's own parser printed, without what nobody asks about."""
        connections: dict[str, Any] = {}
        level: dict[str, Any] = {}
        text = self.log.read_text()
        # By name where there is an /etc/protocols.
        for name, number in (("mobility-header", 135), ("ipv6-nonxt", 59), ("ipv6-icmp", 58)):
            text = text.replace(f"[{name}]", f"[{number}]")
        for line in text.splitlines():
            words = line.partition("[CFG] ")[2]
            depth = len(words) - len(words.lstrip())
            key, _, value = words.strip().partition(" = ")
            if depth == 1 and key.startswith("conn "):
                connection = connections[key[5:-1]] = {"children": {}, "vips": []}
            elif depth == 2 and key.startswith("child "):
                level = connection["children"][key[6:-1]] = {}
            elif depth == 2 and key in ("local:", "remote:"):
                level = connection[key[:-1]] = {}
            elif depth == 2 and key == "vips:":
                level = {}
            elif depth == 2 and " = " in words:
                connection[key] = value
            elif depth == 3 and " = " in words:
                level[key] = value
            elif depth == 3 and key:
                connection["vips"].append(key)
        return connections

    def check_lists(self, inventory: dict[str, Any], node: str | None) -> None:
        session = self.session()
        wanted = inventories.expected(inventory, node)
        listed = {k: v for each in session.list_conns() for k, v in each.items()}
        assert set(listed) == set(wanted)
        shown = inventories.shown_identities(inventory, node)
        for name, connection in listed.items():
            assert {c.decode() for c in connection["local-1"]["certs"]} == shown[name], name
            trusted = {c.decode() for c in connection["remote-1"]["cacerts"]}
            certified = wanted[name]["remote"]["class"] == "public key"
            assert len(trusted) == certified, name
        pools = {n: p["base"].decode() for n, p in session.get_pools({}).items()}
        assert pools == inventories.pools(inventory, node)
        assert list(session.list_authorities()) == []
        secrets = {key.decode() for key in session.get_shared()["keys"]}
        assert secrets == inventories.secrets(inventory, node)
        keys = session.get_keys().get("keys", [])
        assert len(keys) == any(shown.values())


def _differences(read: dict[str, Any], wanted: dict[str, Any], where: str = "") -> list[str]:
    """What charon has otherwise than ``wanted``, sections that it has beyond it included. Single
    settings that ``wanted`` says nothing of are charon's defaults."""
    found = []
    for key in dict.fromkeys((*read, *wanted)):
        has, wants = read.get(key), wanted.get(key)
        if isinstance(has, dict) and isinstance(wants, dict):
            found += _differences(has, wants, f"{where}{key}.")
        elif has != wants and (key in wanted or isinstance(has, dict)):
            found.append(f"{where}{key}: {has!r} instead of {wants!r}")
    return found
