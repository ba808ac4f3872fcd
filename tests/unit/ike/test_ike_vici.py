"""The VICI conversation against a server that misbehaves; packets are made by hand here."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmip_ipsec.ike import errors, vici_session, vici_types
from dsmip_ipsec.ike.charon import Charon
from dsmip_ipsec.ike.errors import (
    AuthenticationFailedError,
    CharonDiedError,
    IkeError,
    IkeTimeoutError,
    NoProposalChosenError,
    PeerUnreachableError,
    TsUnacceptableError,
)
from dsmip_ipsec.ike.render import NodeFiles
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_session import decode_message

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(packet: bytes) -> bytes:
    return struct.pack("!I", len(packet)) + packet


def key_value(key: str, value: str) -> bytes:
    return bytes([3, len(key)]) + key.encode() + struct.pack("!H", len(value)) + value.encode()


def section(name: str, content: bytes) -> bytes:
    return bytes([1, len(name)]) + name.encode() + content + b"\x02"


def values(**pairs: str) -> bytes:
    return b"".join(key_value(k.replace("_", "-"), v) for k, v in pairs.items())


def event(name: str, content: bytes) -> bytes:
    return frame(bytes([7, len(name)]) + name.encode() + content)


IKE = values(
    uniqueid="3", version="2", state="ESTABLISHED", local_host="10.0.0.2", local_port="4500",
    local_id="mn", remote_host="203.0.113.2", remote_port="4500", remote_id="ha", initiator="yes",
    initiator_spi="00000000000000ff", responder_spi="0000000000000001", nat_local="yes",
)  # fmt: skip
CHILD = values(
    name="data", uniqueid="7", reqid="102", state="INSTALLED", mode="TUNNEL", encap="yes",
    spi_in="c0000001", spi_out="c0000002", encr_alg="AES_GCM_16", encr_keysize="128",
)  # fmt: skip


@asynccontextmanager
async def server(directory: Path, handler: Handler) -> AsyncIterator[ViciDriver]:
    path = directory / "v"
    running = await asyncio.start_unix_server(handler, path=str(path))
    try:
        yield ViciDriver(path)
    finally:
        running.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    return await reader.readexactly(length)


async def test_events_during_a_request_are_not_taken_for_its_answer(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await _read(reader))[0] == 3  # EVENT_REGISTER
        writer.write(frame(b"\x05"))
        assert await _read(reader) == b"\x00\x08list-sas"
        content = section("mn", IKE + section("child-sas", section("data-7", CHILD)))
        writer.write(event("list-sa", content) + event("list-sa", section("b", IKE)))
        writer.write(frame(b"\x01"))

    async with server(tmp_path, handler) as driver:
        first, second = await driver.list_sas()
    assert (first.name, first.uniqueid, first.nat, first.initiator_spi) == ("mn", 3, True, 255)
    child = first.child("data")
    assert child is not None
    assert (child.spi_in, child.spi_out, child.encap) == (0xC0000001, 0xC0000002, True)
    assert child.algorithm == "AES_GCM_16-128"
    assert second.children == ()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (struct.pack("!I", 0), IkeError),
        (struct.pack("!I", 2**31), IkeError),
        (frame(b"\x01\x03\x05ab"), IkeError),
        (frame(b"\x01\x03\x01a\x00\x09short"), IkeError),
        (frame(b"\x01\x02"), IkeError),
        (frame(b"\x02"), IkeError),
        (frame(b"\x63"), IkeError),
        (frame(b"\x07\x50"), IkeError),
        (b"\x00\x00", CharonDiedError),
        (b"", CharonDiedError),
    ],
)
async def test_broken_answers(tmp_path: Path, answer: bytes, error: type[IkeError]) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read(reader)
        writer.write(answer)
        writer.close()

    async with server(tmp_path, handler) as driver:
        with pytest.raises(error) as caught:
            await driver.version()
    assert type(caught.value) is error


async def test_a_silent_and_a_trickling_charon_are_given_up(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read(reader)
        writer.write(struct.pack("!I", 1000) + b"\x01")
        await reader.read()

    async with server(tmp_path, handler) as driver:
        with pytest.raises(IkeTimeoutError, match="didn't answer 'version'"):
            await vici_session.request(driver.socket, "version", timeout=0.05)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(CharonDiedError, match="no charon answers"):
        await ViciDriver(tmp_path / "nothing").version()


async def test_a_failed_initiation_carries_charons_words(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read(reader)
        writer.write(frame(b"\x05"))
        request = await _read(reader)
        assert request.startswith(b"\x00\x08initiate")
        assert key_value("timeout", "3000") in request
        for line in (
            "parsed IKE_AUTH response 1 [ N(AUTH_FAILED) ]",
            "received AUTHENTICATION_FAILED notify error",
        ):
            writer.write(event("control-log", values(msg=line)))
        writer.write(frame(b"\x01" + values(success="no", errmsg="establishing IKE_SA failed")))

    async with server(tmp_path, handler) as driver:
        with pytest.raises(AuthenticationFailedError, match="received AUTHENTICATION_FAILED"):
            await driver.initiate("mn", None, timeout=3)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["giving up after 5 retransmits", "peer not responding"], PeerUnreachableError),
        (["received TS_UNACCEPTABLE notify, no CHILD_SA built"], TsUnacceptableError),
        (["received NO_PROPOSAL_CHOSEN notify error"], NoProposalChosenError),
        (["no trusted ECDSA public key found for 'ha'", "sending AUTH_FAILED"],
         AuthenticationFailedError),
        (["tried 1 shared key for 'a' - 'b', but MAC mismatched"], AuthenticationFailedError),
        (["something new"], IkeError),
        ([], IkeError),
    ],
)  # fmt: skip
def test_causes(words: list[str], error: type[IkeError]) -> None:
    found = errors.classify("establishing failed", words)
    assert type(found) is error
    assert found.hint
    assert found.message.startswith("establishing failed")
    if words:
        assert words[0] in found.message


@given(st.binary(max_size=200))
def test_no_message_raises_anything_else(payload: bytes) -> None:
    try:
        message = decode_message(payload)
    except IkeError:
        return
    for name in vici_types.SA_EVENTS:
        with suppress(IkeError):
            vici_types.event_from(name, message)


leaf = st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=2)
messages = st.recursive(
    leaf,
    lambda inner: st.dictionaries(
        st.sampled_from(["mn", "old", "new", "child-sas", "uniqueid", "state", "local-host"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)


@given(st.sampled_from(vici_types.SA_EVENTS), st.dictionaries(st.text(max_size=4), messages))
def test_no_event_raises_anything_else(name: str, message: dict[str, object]) -> None:
    with suppress(IkeError):
        vici_types.event_from(name, message)


def test_typed_events() -> None:
    def event_of(name: str, content: bytes) -> vici_types.IkeEvent | None:
        return vici_types.event_from(name, decode_message(content))

    updown = event_of("ike-updown", values(up="yes") + section("mn", IKE))
    assert isinstance(updown, vici_types.IkeUpdown)
    assert updown.up
    down = event_of("ike-updown", section("mn", IKE))
    assert isinstance(down, vici_types.IkeUpdown)
    assert not down.up
    moved = event_of(
        "ike-update",
        values(local_host="198.51.100.2", local_port="4500", remote_host="203.0.113.2",
               remote_port="4500") + section("mn", IKE),
    )  # fmt: skip
    assert isinstance(moved, vici_types.IkeUpdate)
    assert str(moved.local_host) == "198.51.100.2"
    assert str(moved.ike.local_host) == "10.0.0.2"
    rekeyed = event_of(
        "child-rekey",
        section("mn", IKE + section("child-sas", section(
            "data", section("old", CHILD) + section("new", CHILD)))),
    )  # fmt: skip
    assert isinstance(rekeyed, vici_types.ChildRekey)
    assert rekeyed.old.spi_in == 0xC0000001
    assert event_of("log", values(msg="x")) is None


def _fake_charon(directory: Path, script: str) -> None:
    program = directory / "charon-systemd"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


async def test_a_charon_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_charon(tmp_path, "echo 'no such plugin' >&2; exit 67")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    charon = Charon(NodeFiles(tmp_path, "mn"))
    with pytest.raises(CharonDiedError, match="not started"):
        charon.check()
    await charon.start()
    with pytest.raises(CharonDiedError, match="ended with status 67: no such plugin"):
        await charon.wait_ready()
    await charon.stop()
    await charon.stop()


async def test_a_charon_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_charon(tmp_path, "trap '' TERM; echo up; while :; do read x; done </dev/zero")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    charon = Charon(NodeFiles(tmp_path, "mn"))
    await charon.start()
    with pytest.raises(IkeError, match="runs already"):
        await charon.start()
    with pytest.raises(IkeTimeoutError, match="not ready after"):
        await charon.wait_ready(0.2)
    async with asyncio.timeout(5):
        while not charon.output.read_text():  # the trap is set
            await asyncio.sleep(0.01)
    pid = charon.pid
    assert pid is not None
    await charon.stop(0.1)
    assert charon.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_prefix_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(IkeError):
        await Charon(NodeFiles(tmp_path, "mn"), ["/nonexistent"]).start()
