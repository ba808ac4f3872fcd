"""Drives one charon over VICI: load, establish, rekey, terminate, list, listen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import IkeError
from dsmip_ipsec.ike import vici_session, vici_types
from dsmip_ipsec.ike.errors import (
    CharonDiedError,
    IkeTimeoutError,
    PeerUnreachableError,
    classify,
)
from dsmip_ipsec.ike.other_children import PREFIX_DISCOVERY, PREFIX_DISCOVERY_TUNNEL
from dsmip_ipsec.ike.render import NodeFiles
from dsmip_ipsec.ike.vici_types import ChildSa, IkeEvent, IkeSa

SIGNALLING = "signalling"
SIGNALLING_TUNNEL = "signalling-tunnel"
DATA = "data"

# A request that only charon itself has to answer.
_LOCAL_TIMEOUT = 10.0
_POLL_INTERVAL = 0.02


@dataclass(frozen=True, slots=True)
class Established:
    """The SAs of one mobile node. ``mirrored``: the signalling CHILD_SA was negotiated in tunnel
    mode because of a NAT, and its SAs have to be copied into transport mode ones."""

    ike: IkeSa
    signalling: ChildSa
    data: ChildSa | None

    @property
    def mirrored(self) -> bool:
        return self.signalling.name == SIGNALLING_TUNNEL


class ViciDriver:
    """A charon behind a VICI socket. Nothing is kept open between calls except by :meth:`events`,
    so the driver outlives a restart of charon."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def _command(
        self,
        command: str,
        message: Mapping[str, Any] | None = None,
        *,
        events: Sequence[str] = (),
        timeout: float = _LOCAL_TIMEOUT,
    ) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
        answer, stream = await vici_session.request(
            self.socket, command, message, events=events, timeout=timeout
        )
        if answer.get("success", "yes") != "yes":
            words = [str(m.get("msg", "")) for name, m in stream if name == "control-log"]
            what = str(answer.get("errmsg", f"charon refused {command!r}"))
            if "not established after" in what:
                last = f", last heard: {words[-1]}" if words else ""
                raise IkeTimeoutError(what + last, hint="read the logs of both ends")
            raise classify(what, words)
        return answer, stream

    async def version(self) -> str:
        """charon's version, e.g. "5.9.8"."""
        answer, _ = await self._command("version")
        return str(answer.get("version", ""))

    async def load_all(self, files: NodeFiles, *, timeout: float = 30.0) -> None:
        """Load the rendered credentials and connections with strongSwan's own swanctl.

        :raises IkeError: swanctl refused something; its words are in the message.
        :raises IkeTimeoutError: it didn't end in time.
        """
        await run_swanctl(files, ["--load-all", "--noprompt"], self.socket, timeout=timeout)

    async def list_sas(self, ike: str | None = None) -> tuple[IkeSa, ...]:
        """All IKE_SAs with their CHILD_SAs, or those of the connection ``ike``."""
        message = {"ike": ike} if ike else {}
        _, stream = await self._command("list-sas", message, events=("list-sa",))
        return vici_types.sas_from(stream)

    async def ike_sa(self, ike: str) -> IkeSa | None:
        """The newest established IKE_SA of a connection."""
        found = [sa for sa in await self.list_sas(ike) if sa.established]
        return max(found, key=lambda sa: sa.uniqueid, default=None)

    async def initiate(self, ike: str, child: str | None, *, timeout: float = 30.0) -> None:
        """Bring up a CHILD_SA, and its IKE_SA if there is none; or the IKE_SA alone (RFC 6023).

        :param timeout: seconds.
        :raises AuthenticationFailedError, NoProposalChosenError, TsUnacceptableError,
            PeerUnreachableError: as charon found; charon's own words are in the message.
        :raises IkeTimeoutError: not up in time.
        :raises CharonDiedError: charon isn't there.
        """
        message = {"ike": ike, "timeout": str(int(timeout * 1000)), "loglevel": "1"}
        if child is not None:
            message["child"] = child
        # charon's own limit answers first, so that it doesn't go on behind our back.
        await self._command("initiate", message, events=("control-log",), timeout=timeout + 2)

    async def terminate(
        self, ike: str, child: str | None = None, *, timeout: float = 10.0, force: bool = False
    ) -> None:
        """Delete a CHILD_SA, or the IKE_SA with all its children, and wait for the peer's word.

        :param force: don't wait for the peer, who may be gone.
        :raises IkeError: there is none, or charon couldn't.
        """
        message = {"ike": ike, "timeout": str(int(timeout * 1000)), "loglevel": "1"}
        if child is not None:
            message["child"] = child
        if force:
            message["force"] = "yes"
        await self._command("terminate", message, events=("control-log",), timeout=timeout + 2)

    async def terminate_one(self, uniqueid: int, *, child: bool = False, timeout: float) -> None:
        """Delete the IKE_SA (``child``: CHILD_SA) that charon numbers ``uniqueid``, and no other of
        its name; its peer gets ``timeout`` (seconds) for its answer, then it goes without.

        :raises IkeError: there is none, or charon couldn't.
        """
        which = {"child-id" if child else "ike-id": str(uniqueid)}
        message = {**which, "timeout": str(int(timeout * 1000)), "force": "yes"}
        await self._command("terminate", message, timeout=timeout + 2)

    async def establish(
        self, ike: str, *, data: bool = True, also: Collection[str] = (), timeout: float = 30.0
    ) -> Established:
        """IKE_SA, signalling CHILD_SA and data CHILD_SA of a mobile node, as initiator.

        The data CHILD_SA comes with IKE_AUTH, which saves a round trip; with data unprotected
        the IKE_SA starts childless (RFC 6023). Only then the NAT state is known, which decides
        the kind of the signalling CHILD_SA, and of further ones (``also``: their names of
        :mod:`.other_children`). What is up already is kept, of either kind.

        :param timeout: seconds for all of it.
        :raises IkeError: as :meth:`initiate`.
        """
        deadline = asyncio.get_running_loop().time() + timeout

        def left() -> float:
            return max(0.1, deadline - asyncio.get_running_loop().time())

        sa = await self.ike_sa(ike)
        if sa is None or (data and sa.child(DATA) is None):
            await self.initiate(ike, DATA if data else None, timeout=left())
            sa = await self._wait_ike(ike, left())
        for name in (SIGNALLING, *also):
            if _of_either_kind(sa, name) is None:
                await self.initiate(ike, _kinds(sa, name)[0], timeout=left())
                sa = await self._wait_ike(ike, left())
        signalling = _of_either_kind(sa, SIGNALLING)
        if signalling is None or (data and sa.child(DATA) is None):
            raise IkeError(
                f"the CHILD_SAs of {ike} vanished while they were set up",
                hint="the peer deleted them: read its charon's log",
            )
        return Established(sa, signalling, sa.child(DATA) if data else None)

    async def _wait_ike(self, ike: str, timeout: float) -> IkeSa:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    sa = await self.ike_sa(ike)
                    if sa is not None:
                        return sa
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError as error:
            raise IkeTimeoutError(
                f"charon lists no established IKE_SA of {ike} after {timeout:.1f} s",
                hint="read the charon logs of both ends",
            ) from error

    async def rekey(self, ike: str, child: str | None = None, *, timeout: float = 20.0) -> None:
        """Rekey a CHILD_SA, or the IKE_SA itself, and wait until the new one is in use.

        :raises TsUnacceptableError, NoProposalChosenError: the peer refused; the old SA stays.
        :raises PeerUnreachableError: the peer didn't answer; the IKE_SA is gone.
        :raises IkeTimeoutError: no end in time.
        :raises IkeError: there is none of that name.
        """
        message = {"ike": ike} if child is None else {"ike": ike, "child": child}
        what = f"rekeying IKE_SA {ike}" if child is None else f"rekeying CHILD_SA {ike}/{child}"
        words: list[str] = []
        try:
            async with (
                asyncio.timeout(timeout),
                vici_session.connect(self.socket) as connection,
            ):
                # The command only queues a job; how that ends, events and the log tell.
                for event in (*vici_types.SA_EVENTS, "log"):
                    await connection.register(event)
                await self._command("rekey", message)
                async for name, raw in connection.events():
                    if name == "log":
                        if raw.get("ikesa-name", ike) == ike:
                            words.append(str(raw.get("msg", "")))
                        if any("rekeying failed" in word for word in words):
                            raise classify(f"{what} failed", words)
                    elif _rekeyed(name, raw, ike, child):
                        return
                    elif _went_down(name, raw, ike):
                        raise PeerUnreachableError(
                            f"{what} failed: the IKE_SA went down" + _last(words),
                            hint="the peer didn't answer, or deleted it: read both logs",
                        )
        except TimeoutError as error:
            raise IkeTimeoutError(
                f"{what} didn't end within {timeout:g} s{_last(words)}",
                hint="the peer doesn't answer, or both ends rekey at once: read the logs",
            ) from error

    async def reauthenticate(self, ike: str, *, timeout: float = 20.0) -> IkeSa:
        """Replace the IKE_SA and all its CHILD_SAs by new ones, make before break, and wait until
        the old ones are deleted. (charon puts it off for a few seconds while an inbound SA
        lingers after a rekeying: ``delete_rekeyed_delay``.)

        :raises PeerUnreachableError: the old IKE_SA went down and no new one is there.
        :raises IkeTimeoutError: no end in time.
        :raises IkeError: there is none of that name.
        """
        old = await self.ike_sa(ike)
        if old is None:
            raise IkeError(f"there is no IKE_SA {ike} to renew", hint="establish it first")
        words: list[str] = []
        renewed = False
        try:
            async with (
                asyncio.timeout(timeout),
                vici_session.connect(self.socket) as connection,
            ):
                for name in ("ike-updown", "log"):
                    await connection.register(name)
                await self._command("rekey", {"ike": ike, "reauth": "yes"})
                async for name, raw in connection.events():
                    if name == "log":
                        if raw.get("ikesa-name", ike) == ike:
                            words.append(str(raw.get("msg", "")))
                        continue
                    event = vici_types.event_from(name, raw)
                    if not isinstance(event, vici_types.IkeUpdown) or event.ike.name != ike:
                        continue
                    if event.up:
                        renewed = True
                    elif event.ike.uniqueid == old.uniqueid:
                        break
        except TimeoutError as error:
            raise IkeTimeoutError(
                f"renewing IKE_SA {ike} didn't end within {timeout:g} s{_last(words)}",
                hint="the peer doesn't answer: read the logs of both ends",
            ) from error
        if not renewed:
            raise PeerUnreachableError(
                f"renewing IKE_SA {ike} failed: the old one went down{_last(words)}",
                hint="the peer didn't answer, or deleted it: read both logs",
            )
        return await self._wait_ike(ike, timeout)

    async def is_complete(self, ike: str, *, data: bool = True, also: Collection[str] = ()) -> bool:
        """Whether an IKE_SA is established, with a signalling CHILD_SA of either kind and, with
        ``data``, that for data: what :meth:`establish` makes."""
        found = [sa for sa in await self.list_sas(ike) if sa.established]
        return any(
            all(_of_either_kind(sa, name) for name in (SIGNALLING, *also))
            and (not data or sa.child(DATA))
            for sa in found
        )

    async def renew_signalling(
        self, ike: str, *, also: Collection[str] = (), timeout: float = 20.0
    ) -> Established:
        """A fresh signalling CHILD_SA of the kind that today's NAT state needs.

        A mobile node that set up its transport mode CHILD_SA without NAT and then moved behind
        one keeps it, since its addresses are the home address and the home agent; but charon's
        own rekeying of it fails there (TS_UNACCEPTABLE). Make before break: the old kind is
        deleted once the new one stands. ``also``: further CHILD_SAs of which there are two kinds.

        :raises IkeError: as :meth:`initiate` and :meth:`rekey`; the old CHILD_SA stays then.
        """
        sa = await self._wait_ike(ike, timeout)
        for name in (SIGNALLING, *also):
            wanted, other = _kinds(sa, name)
            if wanted == other:
                continue
            if sa.child(wanted) is not None:
                await self.rekey(ike, wanted, timeout=timeout)
            else:
                await self.initiate(ike, wanted, timeout=timeout)
            if sa.child(other) is not None:
                await self.terminate(ike, other, timeout=timeout)
        sa = await self._wait_ike(ike, timeout)
        signalling = sa.child(_kinds(sa, SIGNALLING)[0])
        if signalling is None:
            raise IkeError(
                f"the new signalling CHILD_SA of {ike} vanished",
                hint="the peer deleted it: read its charon's log",
            )
        return Established(sa, signalling, sa.child(DATA))

    async def wait_moved(
        self,
        ike: str,
        *,
        local: IPv4Address | IPv6Address | None = None,
        remote: IPv4Address | IPv6Address | None = None,
        timeout: float = 10.0,
    ) -> IkeSa:
        """Until the IKE_SA runs between these addresses and charon has no exchange open on it.

        charon tells by events when an update begins, not when it ends: on the mobile node it
        rewrites its SAs once with the old NAT state (at the event), and again with the new one
        when the home agent has answered; its MOBIKE task ends with that.

        :raises IkeTimeoutError: not in time; the message says where the IKE_SA stands.
        """
        sa: IkeSa | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    sa = await self.ike_sa(ike)
                    if (
                        sa is not None
                        and local in (None, sa.local_host)
                        and remote in (None, sa.remote_host)
                        and not sa.tasks_active
                    ):
                        return sa
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError as error:
            where = (
                "gone"
                if sa is None
                else f"at {sa.local_host} - {sa.remote_host}"
                + (f", busy with {', '.join(sa.tasks_active)}" if sa.tasks_active else "")
            )
            wanted = " - ".join(str(a) for a in (local, remote) if a is not None)
            raise IkeTimeoutError(
                f"the IKE_SA {ike} didn't move to {wanted} within {timeout:g} s, it is {where}",
                hint="check that UDP port 4500 passes on the new path and that the route to the "
                "home agent prefers it",
            ) from error

    async def probe_exchange(self, ike: str, *, timeout: float = 20.0) -> tuple[IkeSa, IkeSa]:
        """Prove the IKE_SA alive by one exchange that starts at this end: (before, after).

        5.9.8 offers no "send a DPD now" over VICI. The least that it offers is to rekey the
        IKE_SA: one CREATE_CHILD_SA exchange and the INFORMATIONAL one that deletes the old IKE_SA.
        It changes the IKE SPIs, the IKE keys and charon's number of the IKE_SA; CHILD_SAs, their
        SPIs, keys and kernel states stay as they are.

        :raises PeerUnreachableError, IkeTimeoutError: the peer didn't answer.
        :raises IkeError: there is no such IKE_SA.
        """
        before = await self.ike_sa(ike)
        if before is None:
            raise IkeError(f"there is no IKE_SA {ike} to probe", hint="establish it first")
        await self.rekey(ike, timeout=timeout)
        after = await self._wait_ike(ike, timeout)
        return before, after

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[IkeEvent]]:
        """Listen on a connection of its own; every event after entering is delivered::

            async with driver.events() as events:
                async for event in events: ...

        :raises CharonDiedError: charon isn't there; from the iterator: it went away.
        """
        async with vici_session.connect(self.socket) as connection:
            for event in vici_types.SA_EVENTS:
                await connection.register(event)
            yield _typed(connection)


async def _typed(connection: vici_session.ViciConnection) -> AsyncIterator[IkeEvent]:
    async for name, message in connection.events():
        event = vici_types.event_from(name, message)
        if event is not None:
            yield event


_TUNNELS = {SIGNALLING: SIGNALLING_TUNNEL, PREFIX_DISCOVERY: PREFIX_DISCOVERY_TUNNEL}


def _kinds(sa: IkeSa, name: str) -> tuple[str, str]:
    """Of the CHILD_SA ``name`` in transport mode: (what today's NAT state needs, the other one);
    twice the same where there is but one."""
    tunnel = _TUNNELS.get(name, name)
    return (tunnel, name) if sa.nat else (name, tunnel)


def _of_either_kind(sa: IkeSa, name: str) -> ChildSa | None:
    wanted, other = _kinds(sa, name)
    return sa.child(wanted) or sa.child(other)


def _rekeyed(name: str, raw: vici_session.RawMessage, ike: str, child: str | None) -> bool:
    event = vici_types.event_from(name, raw)
    if child is None:
        return isinstance(event, vici_types.IkeRekey) and event.new.name == ike
    return (
        isinstance(event, vici_types.ChildRekey)
        and event.ike.name == ike
        and event.old.name == child
    )


def _last(words: Sequence[str]) -> str:
    return f", last heard: {words[-1]}" if words else ""


def _went_down(name: str, raw: vici_session.RawMessage, ike: str) -> bool:
    event = vici_types.event_from(name, raw)
    return isinstance(event, vici_types.IkeUpdown) and event.ike.name == ike and not event.up


def event_ike(event: IkeEvent) -> IkeSa:
    """The IKE_SA that an event is about (for a rekeyed IKE_SA: the new one)."""
    return event.new if isinstance(event, vici_types.IkeRekey) else event.ike


async def run_swanctl(
    files: NodeFiles, arguments: Sequence[str], socket: Path, *, timeout: float
) -> str:
    """swanctl's output, run on a node's files.

    :raises IkeError: swanctl is missing or failed; with what it said.
    :raises IkeTimeoutError: it didn't end in time.
    """
    environment = {
        **os.environ,
        "STRONGSWAN_CONF": str(files.strongswan_conf),
        "SWANCTL_DIR": str(files.directory),
    }
    command = [
        "swanctl",
        *arguments,
        "--file",
        str(files.swanctl_conf),
        "--uri",
        f"unix://{socket}",
    ]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise IkeError(
            f"swanctl can't be started: {error.strerror}", hint="install strongswan-swanctl"
        ) from error
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise IkeTimeoutError(
            f"swanctl {arguments[0]} didn't end within {timeout:g} s",
            hint="charon may hang: read its log",
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode("utf-8", "replace")
    if process.returncode:
        lines = [line for line in text.splitlines() if line.strip()]
        # swanctl also names each of its directories that isn't there.
        told = [line for line in lines if not line.startswith("opening directory")]
        telling = [line for line in told if "fail" in line.lower() or "error" in line.lower()]
        if not socket.exists():
            raise CharonDiedError(f"no charon answers at {socket}", hint="start charon first")
        said = (telling or told[-1:] or ["no output"])[0]
        raise IkeError(
            f"swanctl {arguments[0]} failed: {said.strip()}",
            hint=f"what it read is in {files.directory}",
        )
    return text
