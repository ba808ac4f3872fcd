"""``dsmip-ipsec decode``: a capture as text or JSON, down to the options of a binding update."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

_INDENT = "    "
_NANOSECONDS = 10**9


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "decode",
        help="print the packets of a capture, decrypted",
        description="Print every layer of every packet of a capture: IP, UDP 4191 and 4500, ESP "
        "and IKEv2 (decrypted, where there are keys), and Mobility Headers with their options.",
    )
    parser.add_argument("capture", type=Path, metavar="CAPTURE", help="pcap or pcapng; -: stdin")
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="the directory wireshark/ of a lab, or another with esp_sa and ikev2_decryption_table",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a packet and line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the capture. Raises DsmipError when it breaks, behind the packets before that."""
    from dsmip_ipsec.errors import ConfigError
    from dsmip_ipsec.userspace.capture_file import read_frames
    from dsmip_ipsec.userspace.dissect import Dissector
    from dsmip_ipsec.userspace.key_ring import KeyRing

    dissector = Dissector(KeyRing.read(arguments.keys) if arguments.keys else None)
    write = _write_json if arguments.json else _write_text
    path: Path = arguments.capture
    try:
        if str(path) == "-":
            file = sys.stdin.buffer
            write(_packets(read_frames(file), dissector), sys.stdout)
        else:
            with path.open("rb") as file:
                write(_packets(read_frames(file), dissector), sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror}", hint="give a capture file"
        ) from error
    return 0


def _packets(frames: Iterable[Any], dissector: Any) -> Iterator[dict[str, Any]]:
    """Each packet as the object that --json prints."""
    from dsmip_ipsec.userspace.capture_file import CaptureError
    from dsmip_ipsec.userspace.dissect import LINK_TYPES

    for frame in frames:
        if frame.number == 1 and frame.link_type not in LINK_TYPES:
            raise CaptureError(
                f"the capture's link type is {frame.link_type}, which can't be read here",
                hint="capture on an Ethernet, TUN, loopback or 'any' interface",
            )
        layers = dissector.dissect(frame)
        packet: dict[str, Any] = {
            "frame": frame.number,
            "timestamp": _timestamp(frame.time_ns),
            "time_ns": frame.time_ns,
            "length": frame.length,
            "captured_length": len(frame.data),
            "layers": [layer.as_json() for layer in layers],
        }
        error = next((layer.error for layer in layers if layer.error), "")
        if error:
            packet["error"] = error
        yield packet


def _timestamp(time_ns: int | None) -> str | None:
    """RFC 3339, UTC, with nanoseconds; None for times that no calendar has."""
    if time_ns is None:
        return None
    seconds, fraction = divmod(time_ns, _NANOSECONDS)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def _write_json(packets: Iterable[dict[str, Any]], output: TextIO) -> None:
    for packet in packets:
        output.write(json.dumps(packet, separators=(",", ":")) + "\n")


def _write_text(packets: Iterable[dict[str, Any]], output: TextIO) -> None:
    for packet in packets:
        output.write(_text(packet))


def _text(packet: dict[str, Any]) -> str:
    captured = packet["captured_length"]
    size = f"{packet['length']} octets"
    if captured != packet["length"]:
        size += f", {captured} captured"
    lines = [f"frame {packet['frame']}  {packet['timestamp'] or '-'}  {size}"]
    for layer in packet["layers"]:
        lines += _layer_lines(layer)
    return "\n".join(lines) + "\n\n"


def _layer_lines(layer: dict[str, Any]) -> Iterator[str]:
    """A line with the plain fields; lists (options, payloads) below, one line an item."""
    rest = {key: value for key, value in layer.items() if key not in ("layer", "note", "error")}
    note = f"  ({layer['note']})" if "note" in layer else ""
    yield f"  {layer['layer']}  {_inline(rest)}".rstrip() + note
    yield from _list_lines(rest, _INDENT)
    if "error" in layer:
        yield f"{_INDENT}error: {layer['error']}"


def _list_lines(fields: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in fields.items():
        if not _nested(value):
            continue
        for item in value:
            named = {name: part for name, part in item.items() if name not in ("option", "payload")}
            title = item.get("option") or item.get("payload") or key
            yield f"{indent}{title}: {_inline(named)}".rstrip()
            yield from _list_lines(named, indent + _INDENT)


def _inline(fields: dict[str, Any]) -> str:
    parts = []
    for key, value in fields.items():
        if not _nested(value):
            # SPIs and Ethernet types are known by their hexadecimal digits.
            known = isinstance(value, int) and key in ("spi", "ethertype")
            parts.append(f"{key}={hex(value)}" if known else f"{key}={_value(value)}")
    return " ".join(parts)


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    # A name in an Identification payload is its sender's: no control characters on a terminal.
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text or "-"
