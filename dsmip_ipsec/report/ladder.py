"""The message ladder of a capture: IKE exchanges, binding updates and acknowledgements, and the
first ESP packet of each SA on each path, as lines of text between the nodes. For failures.

tshark reads the capture. With the directory that :mod:`dsmip_ipsec.report.wireshark` fills it
sees what is inside ESP; without, a binding update is just ESP in UDP port 4191.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsmip_ipsec.errors import LabError

TSHARK_TIMEOUT_S = 60.0

_FIELDS = (
    *("frame.time_epoch", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst"),
    *("udp.srcport", "udp.dstport"),
    *("isakmp.exchangetype", "isakmp.flag_r", "isakmp.messageid"),
    *("mip6.mhtype", "mip6.bu.seqnr", "mip6.bu.lifetime"),
    *("mip6.ba.seqnr", "mip6.ba.status", "esp.spi"),
)
_EXCHANGES = {  # RFC 7296 §3.1
    "34": "IKE_SA_INIT",
    "35": "IKE_AUTH",
    "36": "CREATE_CHILD_SA",
    "37": "INFORMATIONAL",
}
_COLUMN = 32  # width between two nodes' lines: fits the longest label and an arrow


@dataclass(frozen=True, slots=True)
class Message:
    """One message on the wire. ``source`` and ``destination`` are the outermost addresses,
    ``time`` is in seconds since 1970, ``label`` says what it is."""

    time: float
    source: str
    destination: str
    label: str


def messages(capture: Path, config: Path | None = None) -> list[Message]:
    """The capture's messages in order. ``config`` is a ``WIRESHARK_CONFIG_DIR`` with keys.

    Raises LabError if tshark is missing, fails or takes over a minute.
    """
    command = ["tshark", "-n", "-r", str(capture), "-Y", "isakmp || mipv6 || esp", "-T", "fields"]
    command += ["-d", "udp.port==4191,ip", "-E", "separator=/t", "-E", "occurrence=a"]
    for field in _FIELDS:
        command += ["-e", field]
    environment = dict(os.environ)
    if config is not None:
        environment["WIRESHARK_CONFIG_DIR"] = str(config)
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            timeout=TSHARK_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError("tshark isn't installed", hint="apt-get install tshark") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(
            f"tshark can't read {capture}: {error}", hint="open the capture in Wireshark"
        ) from error
    # A capture that a kill cut off in its last packet is an error for tshark, after all the
    # others. They are what a failure's reader wants.
    if done.returncode != 0 and not done.stdout:
        said = done.stderr.decode(errors="replace").splitlines()
        reason = [line for line in said if line.strip() and "Running as user" not in line]
        raise LabError(
            f"tshark can't read {capture}: {reason[0] if reason else done.returncode}",
            hint="check that the capture is there and not cut off",
        )
    return _messages(done.stdout.decode(errors="replace").splitlines())


def _messages(lines: Iterable[str]) -> list[Message]:
    found: list[Message] = []
    esp_seen: set[tuple[str, str, str]] = set()
    for line in lines:
        values = dict(zip(_FIELDS, line.split("\t"), strict=False))
        label = _label(values)
        if not label or not values["frame.time_epoch"]:
            continue
        # Outermost first. Where IPv4 carries IPv6 (RFC 5555 §4.1) both are there, and IPv4 is
        # the outer one: no network of ours carries IPv4 in IPv6 outside of ESP.
        source, destination = (
            (values[f"ip.{end}"] or values[f"ipv6.{end}"]).split(",")[0] for end in ("src", "dst")
        )
        if not values["mip6.mhtype"] and not values["isakmp.exchangetype"]:
            path = label, source, destination
            if path in esp_seen:
                continue
            esp_seen.add(path)
        found.append(Message(float(values["frame.time_epoch"]), source, destination, label))
    return found


def _label(values: Mapping[str, str]) -> str:
    """What the message is, in a few words."""
    if exchange := values["isakmp.exchangetype"]:
        kind = _EXCHANGES.get(exchange, f"IKE exchange {exchange}")
        answer = "response" if values["isakmp.flag_r"] in ("1", "True") else "request"
        return f"{kind} {answer}"
    kind = values["mip6.mhtype"]
    if kind == "5":
        ends = ", lifetime 0" if values["mip6.bu.lifetime"] == "0" else ""
        return f"BU {values['mip6.bu.seqnr']}{ends}"
    if kind == "6":
        return f"BA {values['mip6.ba.seqnr']}, status {values['mip6.ba.status']}"
    if kind:
        return f"Mobility Header type {kind}"
    spi = values["esp.spi"].split(",")[0]
    if not spi:
        return ""
    ports = (values["udp.srcport"] + "," + values["udp.dstport"]).split(",")
    udp = next((f" in UDP {port}" for port in ("4191", "4500") if port in ports), "")
    return f"ESP {int(spi, 0):#010x}{udp}"


def ladder(
    found: Sequence[Message], nodes: Mapping[str, Iterable[str]], *, start: float | None = None
) -> list[str]:
    """Lines of text: a column for each of ``nodes`` (name to its addresses, left to right), an
    arrow for each message, in seconds since ``start`` (the first message).

    Messages with an address that no node has are written out instead of drawn.
    """
    if not found:
        return ["no IKE, Mobility Header or ESP messages"]
    zero = found[0].time if start is None else start
    names = list(nodes)
    column = {address: names.index(name) for name in names for address in nodes[name]}
    head = "".join(f"{name:<{_COLUMN}}" for name in names)
    lines = [f"{'':12}{head}".rstrip()]
    for message in found:
        at = f"{message.time - zero:9.3f} s "
        left, right = column.get(message.source), column.get(message.destination)
        if left is None or right is None or left == right:
            text = f"{message.source} > {message.destination}: {message.label}"
            lines.append(f"{at}{text}")
            continue
        lines.append((at + _arrow(left, right, message.label, len(names))).rstrip())
    return lines


def _arrow(source: int, destination: int, label: str, columns: int) -> str:
    """`|---- label --->|` between two columns, over those in between."""
    first, last = sorted((source, destination))
    space = (last - first) * _COLUMN - 1
    body = f" {label[: space - 6]} ".center(space - 1, "-")
    body = f"{body}>" if source < destination else f"<{body}"
    before = f"|{'':{_COLUMN - 1}}" * first
    after = "".join(f"|{'':{_COLUMN - 1}}" for _ in range(last, columns))
    return f"{before}|{body}{after}"
