"""Any inventory that `render` takes loads into a real charon, and charon has of it what was meant;
any other is refused with a typed error that names what is wrong.

charon is asked over VICI, and prints at log level 2 what its own parser made of each connection."""

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
import pytest
import tomli_w
import vici
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import proposals
from dsmip_ipsec.ike.charon import Charon
from dsmip_ipsec.ike.vici_driver import run_swanctl
from dsmip_ipsec.node import inventory_file
from dsmip_ipsec.node.render import render

pytestmark = pytest.mark.kernel

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
    """One charon, which is given one configuration after the other and tells how it reads them."""

    def __init__(self, directory: Path) -> None:
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
        process = Charon(self.files, ["ip", "netns", "exec", self.netns])

        async def start() -> int:
            await process.start()
            await process.wait_ready()
            assert process.pid is not None
            return process.pid

        try:
            with asyncio.Runner() as runner:
                runner.run(start())
                self.run = runner.run
                try:
                    yield self
                finally:
                    runner.run(process.stop())
        finally:
            subprocess.run(["ip", "netns", "del", self.netns], check=True)

    def load(self, directory: Path) -> None:
        """What swanctl makes of ``directory``. Raises IkeError with its words."""
        files = type(self.files)(directory, "node")
        self.run(
            run_swanctl(
                files, ["--load-all", "--noprompt", "--clear"], self.files.vici_socket, timeout=30
            )
        )

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
            assert _differences(self.read(), wanted) == []
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
        for line in self.log.read_text().splitlines():
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


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with (
        tempfile.TemporaryDirectory(prefix="dsmip-", dir="/tmp") as directory,
        Judge(Path(directory)).running() as found,
    ):
        yield found


EXAMPLES = int(os.environ.get("DSMIP_FUZZ_EXAMPLES", "14"))
FUZZ = settings(
    deadline=None,
    database=None,
    derandomize=True,
    # Each try asks a real charon: a smaller example isn't worth the minutes that it costs.
    phases=[Phase.explicit, Phase.generate],
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_what_render_takes_charon_has_as_it_was_meant(judge: Judge) -> None:
    judge.accepted = judge.refused = 0

    @FUZZ
    # The home agent, and a mobile node with each kind of credentials.
    @example(inventories.EVERYTHING, 0)
    @example(inventories.EVERYTHING, 1)
    @example(inventories.EVERYTHING, 2)
    @example(inventories.EVERYTHING, 3)
    @example(inventories.EVERYTHING, 4)
    @given(inventories.inventories(), st.integers(0, 11))
    def each(inventory: dict[str, Any], seed: int) -> None:
        judge.judge(inventory, seed)

    each()
    # Most are taken: else this would have shown nothing.
    assert judge.accepted > judge.refused


def test_hostile_values_are_refused_by_name_or_are_only_themselves(judge: Judge) -> None:
    judge.accepted = judge.refused = 0

    @settings(FUZZ, max_examples=2 * EXAMPLES)
    @given(inventories.with_something_hostile(), st.integers(0, 11))
    def each(inventory: dict[str, Any], seed: int) -> None:
        judge.judge(inventory, seed)

    each()
    assert judge.refused > judge.accepted


USES: tuple[proposals.Use, ...] = ("IKE", "ESP")
TABLES = {
    "cipher": sorted(proposals.CIPHERS),
    "null": sorted(proposals.NULL_CIPHER),
    "aead": sorted(proposals.AEAD_CIPHERS),
    "integrity": sorted(proposals.INTEGRITY),
    "prf": sorted(proposals.PRFS),
    "group": sorted(proposals.GROUPS),
    "esn": sorted(proposals.SEQUENCE_NUMBERS),
    "none": ["sha257", "aes512", "gcm", "prf", "modp", "x"],
}
# Stricter than charon, which would take something else than what is written, or, for ESP, nothing
# for integrity (RFC 8221 §4).
STRICTER = ("is there twice", "needs no integrity", "without integrity")


def test_proposals_are_refused_when_charon_refuses_them(judge: Judge) -> None:
    words = st.lists(
        st.sampled_from(sorted(TABLES)).flatmap(lambda kind: st.sampled_from(TABLES[kind])),
        min_size=1,
        max_size=4,
    ).map("-".join)
    verdicts = set()

    @settings(FUZZ, max_examples=15 * EXAMPLES)
    @given(st.sampled_from(USES), words)
    def each(use: proposals.Use, proposal: str) -> None:
        by_charon, refusal = judge.takes(use, proposal), ""
        try:
            proposals.check(proposal, use, "the proposal")
        except ConfigError as error:
            refusal = str(error)
        # A PRF for ESP, say, is left out by charon.
        elsewhere = "no algorithm of it" in refusal and not any(
            word in TABLES["none"] for word in proposal.split("-")
        )
        if not elsewhere and not any(why in refusal for why in STRICTER):
            assert bool(by_charon) == (not refusal), (proposal, by_charon, refusal)
            verdicts.add(bool(by_charon))

    each()
    assert verdicts == {True, False}


def test_charon_has_every_algorithm_that_a_proposal_may_name(judge: Judge) -> None:
    has = {
        name for kind in judge.session().get_algorithms().values() for name in map(str, kind)
    } | {"NO_EXT_SEQ"}
    for use, kind, template in (
        ("IKE", "cipher", "{}-sha256-modp2048"),
        ("IKE", "aead", "{}-prfsha256-modp2048"),
        ("IKE", "integrity", "aes256-{}-modp2048"),
        ("IKE", "prf", "aes128gcm-{}-modp2048"),
        ("IKE", "group", "aes128gcm-prfsha256-{}"),
        ("ESP", "null", "{}-sha256"),
    ):
        for word in TABLES[kind]:
            printed = judge.takes(use, template.format(word))  # type: ignore[arg-type]
            algorithms = printed.partition(":")[2].split("/")
            assert len(algorithms) >= 2, word
            for algorithm in algorithms:
                # With the size of its key, where it has one.
                assert algorithm in has or algorithm.rpartition("_")[0] in has, (word, algorithm)
