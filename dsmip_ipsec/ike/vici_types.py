"""What charon tells about its SAs and about their changes, typed.

Field names are those of VICI with underscores. Source: the VICI README of strongSwan 5.9.8,
"list-sa" and the events; what a given charon leaves out takes the value documented here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from dsmip_ipsec.ike.errors import IkeError
from dsmip_ipsec.ike.vici_session import RawMessage

Address = IPv4Address | IPv6Address

# Those of 5.9.8 and 6.0.1: everything that changes an SA. Neither has one for alerts (refusals.py).
SA_EVENTS = ("ike-updown", "ike-rekey", "ike-update", "child-updown", "child-rekey")


@dataclass(frozen=True, slots=True)
class ChildSa:
    """A CHILD_SA. ``mode`` is TUNNEL, TRANSPORT or TRANSPORT_PROXY; SPIs are 0 until installed;
    ``encap`` tells UDP encapsulation of its ESP. Byte and packet counts are the last that charon
    asked the kernel for; -1 where it told none."""

    name: str
    uniqueid: int
    reqid: int
    state: str
    mode: str
    spi_in: int
    spi_out: int
    encap: bool
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    algorithm: str
    packets_in: int = -1
    packets_out: int = -1

    @property
    def installed(self) -> bool:
        return self.state == "INSTALLED"


@dataclass(frozen=True, slots=True)
class IkeSa:
    """An IKE_SA. ``nat_local``: this end is behind a NAT; ``nat_remote``: the other end is;
    ``nat_fake``: this end pretends to be (``encap = yes``). SPIs are integers of 64 bits,
    initiator and responder of the IKE_SA (not of an exchange)."""

    name: str
    uniqueid: int
    state: str
    local_host: Address
    local_port: int
    local_id: str
    remote_host: Address
    remote_port: int
    remote_id: str
    initiator: bool
    initiator_spi: int
    responder_spi: int
    nat_local: bool
    nat_remote: bool
    nat_fake: bool
    algorithm: str
    tasks_active: tuple[str, ...]
    children: tuple[ChildSa, ...]

    @property
    def established(self) -> bool:
        return self.state == "ESTABLISHED"

    @property
    def nat(self) -> bool:
        """A NAT on either side, or a pretended one: then charon encapsulates ESP in UDP, and
        refuses transport mode with addresses that aren't the outer ones."""
        return self.nat_local or self.nat_remote or self.nat_fake

    def child(self, name: str) -> ChildSa | None:
        """The newest installed CHILD_SA of that name."""
        found = [c for c in self.children if c.name == name and c.installed]
        return max(found, key=lambda c: c.uniqueid, default=None)


@dataclass(frozen=True, slots=True)
class IkeUpdown:
    """An IKE_SA was established (``up``) or is gone."""

    ike: IkeSa
    up: bool


@dataclass(frozen=True, slots=True)
class IkeRekey:
    """``new`` replaces ``old``; the CHILD_SAs go over unchanged."""

    old: IkeSa
    new: IkeSa


@dataclass(frozen=True, slots=True)
class IkeUpdate:
    """The IKE_SA's endpoints are about to change from those in ``ike`` to these."""

    ike: IkeSa
    local_host: Address
    local_port: int
    remote_host: Address
    remote_port: int


@dataclass(frozen=True, slots=True)
class ChildUpdown:
    """A CHILD_SA was installed (``up``) or deleted. ``ike.children`` is just this one."""

    ike: IkeSa
    child: ChildSa
    up: bool


@dataclass(frozen=True, slots=True)
class ChildRekey:
    """``new`` replaces ``old``, which is deleted a little later."""

    ike: IkeSa
    old: ChildSa
    new: ChildSa


IkeEvent = IkeUpdown | IkeRekey | IkeUpdate | ChildUpdown | ChildRekey


class _Reader:
    """Reads one section; everything that is missing or no number is an IkeError."""

    def __init__(self, raw: object, what: str) -> None:
        if not isinstance(raw, Mapping):
            raise IkeError(f"charon's {what} is not a section", hint="report this with its log")
        self.raw: Mapping[str, Any] = raw
        self.what = what

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw.get(key, default)
        if not isinstance(value, str):
            raise IkeError(f"charon's {self.what} has no {key}", hint="report this with its log")
        return value

    def number(self, key: str, default: int | None = None, base: int = 10) -> int:
        if default is not None and key not in self.raw:
            return default
        value = self.text(key)
        try:
            return int(value, base)
        except ValueError as error:
            raise IkeError(
                f"charon's {self.what} has {key} = {value!r}, not a number",
                hint="report this with its log",
            ) from error

    def address(self, key: str) -> Address:
        value = self.text(key)
        if value == "%any":
            return IPv4Address(0)
        try:
            return ip_address(value)
        except ValueError as error:
            raise IkeError(
                f"charon's {self.what} has {key} = {value!r}, not an address",
                hint="report this with its log",
            ) from error

    def yes(self, key: str) -> bool:
        return self.raw.get(key) == "yes"

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key, [])
        return tuple(str(v) for v in value) if isinstance(value, list) else ()

    def algorithm(self) -> str:
        parts = [str(self.raw.get("encr-alg", ""))]
        if self.raw.get("encr-keysize"):
            parts.append(str(self.raw["encr-keysize"]))
        if self.raw.get("integ-alg"):
            parts.append(str(self.raw["integ-alg"]))
        return "-".join(part for part in parts if part)


def child_sa(raw: object) -> ChildSa:
    """A CHILD_SA from its section. :raises IkeError: something is missing or malformed."""
    read = _Reader(raw, "CHILD_SA")
    return ChildSa(
        name=read.text("name"),
        uniqueid=read.number("uniqueid"),
        reqid=read.number("reqid"),
        state=read.text("state"),
        mode=read.text("mode"),
        spi_in=read.number("spi-in", 0, 16),
        spi_out=read.number("spi-out", 0, 16),
        encap=read.yes("encap"),
        local_ts=read.texts("local-ts"),
        remote_ts=read.texts("remote-ts"),
        algorithm=read.algorithm(),
        packets_in=read.number("packets-in", -1),
        packets_out=read.number("packets-out", -1),
    )


def ike_sa(name: str, raw: object) -> IkeSa:
    """An IKE_SA with its children. :raises IkeError: something is missing or malformed."""
    read = _Reader(raw, "IKE_SA")
    children = _Reader(read.raw.get("child-sas", {}), "list of CHILD_SAs").raw
    return IkeSa(
        name=name,
        uniqueid=read.number("uniqueid"),
        state=read.text("state"),
        local_host=read.address("local-host"),
        local_port=read.number("local-port"),
        local_id=read.text("local-id"),
        remote_host=read.address("remote-host"),
        remote_port=read.number("remote-port"),
        remote_id=read.text("remote-id"),
        initiator=read.yes("initiator"),
        initiator_spi=read.number("initiator-spi", 0, 16),
        responder_spi=read.number("responder-spi", 0, 16),
        nat_local=read.yes("nat-local"),
        nat_remote=read.yes("nat-remote"),
        nat_fake=read.yes("nat-fake"),
        algorithm=read.algorithm(),
        tasks_active=read.texts("tasks-active"),
        children=tuple(
            child_sa(section)
            for section in children.values()
            if isinstance(section, Mapping) and "uniqueid" in section
        ),
    )


def sas_from(stream: list[tuple[str, RawMessage]]) -> tuple[IkeSa, ...]:
    """The IKE_SAs out of the "list-sa" events of a list-sas command."""
    return tuple(
        ike_sa(name, raw)
        for event, message in stream
        if event == "list-sa"
        for name, raw in message.items()
    )


def event_from(name: str, message: RawMessage) -> IkeEvent | None:
    """A typed event; None for one that says nothing about SAs.

    :raises IkeError: a malformed event.
    """
    if name not in SA_EVENTS:
        return None
    sections = [(key, raw) for key, raw in message.items() if isinstance(raw, Mapping)]
    if len(sections) != 1:
        raise IkeError(f"charon's event {name} names {len(sections)} IKE_SAs instead of one")
    ike_name, section = sections[0]
    if name == "ike-rekey":
        read = _Reader(section, "event ike-rekey")
        return IkeRekey(
            ike_sa(ike_name, read.raw.get("old")), ike_sa(ike_name, read.raw.get("new"))
        )
    ike = ike_sa(ike_name, section)
    outer = _Reader(message, f"event {name}")
    if name == "ike-updown":
        return IkeUpdown(ike, outer.yes("up"))
    if name == "ike-update":
        return IkeUpdate(
            ike,
            outer.address("local-host"),
            outer.number("local-port"),
            outer.address("remote-host"),
            outer.number("remote-port"),
        )
    children = _Reader(section.get("child-sas"), f"event {name}").raw
    if len(children) != 1:
        raise IkeError(f"charon's event {name} names {len(children)} CHILD_SAs instead of one")
    (child,) = children.values()
    if name == "child-updown":
        return ChildUpdown(ike, child_sa(child), outer.yes("up"))
    pair = _Reader(child, "event child-rekey").raw
    return ChildRekey(ike, child_sa(pair.get("old")), child_sa(pair.get("new")))
