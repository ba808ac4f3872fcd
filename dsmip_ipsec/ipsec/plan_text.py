"""Plans for people and programs: text like a diff, JSON values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsmip_ipsec.ipsec.model import (
    Encapsulation,
    ExtensionState,
    Policy,
    Tunnel,
    TunnelRoute,
)
from dsmip_ipsec.ipsec.plan import Operation, Subject, Verb

# The first word of a verb's name tells.
_SIGNS = {"add": "+", "update": "~", "move": "~", "delete": "-"}


def _sign(verb: Verb) -> str:
    return _SIGNS[verb.value.split()[0]]


def as_text(operations: Iterable[Operation]) -> str:
    """One operation a paragraph, in order; "nothing to do" for an empty plan."""
    paragraphs = [_paragraph(number, o) for number, o in enumerate(operations, 1)]
    return "\n".join(paragraphs) + "\n" if paragraphs else "nothing to do\n"


def _paragraph(number: int, operation: Operation) -> str:
    subject, before = operation.subject, operation.before
    lines = [f"{number:2} {_sign(operation.verb)} {operation.verb.value} {_name(subject)}"]
    if before is not None:
        lines += [f"      was  {_rest(before)}", f"      now  {_rest(subject)}"]
    else:
        lines.append(f"      {_rest(subject)}")
    lines.append(f"      because {operation.reason} ({operation.reference})")
    return "\n".join(lines)


def _name(subject: Subject) -> str:
    if isinstance(subject, Policy):
        return f"{subject.direction.value} {subject.selector}"
    if isinstance(subject, ExtensionState):
        return f"{subject.extension.value} {subject.source} -> {subject.destination}"
    if isinstance(subject, Tunnel):
        return str(subject.key)
    if isinstance(subject, TunnelRoute):
        return str(subject.destination)
    return f"0x{subject.spi:08x} {subject.mode.value} reqid {subject.reqid}"


def _rest(subject: Subject) -> str:
    if isinstance(subject, Policy):
        what = str(subject.template or subject.action.value)
        return f"{what}, priority {subject.priority}"
    if isinstance(subject, ExtensionState):
        anywhere = subject.care_of_address.is_unspecified
        return f"care-of address {'any' if anywhere else subject.care_of_address}"
    if isinstance(subject, Tunnel):
        return str(subject)
    if isinstance(subject, TunnelRoute):
        source = "" if subject.source is None else f", source {subject.source}"
        return f"into the {subject.tunnel}{source}"
    outer = "esp" if subject.encapsulation is None else f"esp in {subject.encapsulation}"
    return f"{subject.source} -> {subject.destination}, {outer}"


def as_json(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """JSON values, one object an operation. Keys are never in them."""
    return [
        {
            "operation": operation.verb.value,
            "subject": _values(operation.subject),
            "before": None if operation.before is None else _values(operation.before),
            "reason": operation.reason,
            "reference": operation.reference,
        }
        for operation in operations
    ]


def _values(subject: Subject) -> dict[str, Any]:
    if isinstance(subject, Policy):
        selector, template = subject.selector, subject.template
        message = selector.mobility_header_type
        return {
            "direction": subject.direction.value,
            "source": str(selector.source),
            "destination": str(selector.destination),
            "protocol": selector.protocol,
            "mobility_header_type": None if message is None else message.value,
            "icmpv6_type": selector.icmpv6_type,
            "priority": subject.priority,
            "action": subject.action.value,
            "template": None
            if template is None
            else {
                "mode": template.mode.value,
                "source": str(template.source),
                "destination": str(template.destination),
                "reqid": template.reqid,
                "extension": None
                if template.extension is None
                else {
                    "header": template.extension.extension.value,
                    "required": template.extension.required,
                },
            },
        }
    if isinstance(subject, ExtensionState):
        return {
            "extension": subject.extension.value,
            "source": str(subject.source),
            "destination": str(subject.destination),
            "care_of_address": str(subject.care_of_address),
            "reqid": subject.reqid,
        }
    if isinstance(subject, TunnelRoute):
        return {
            "destination": str(subject.destination),
            "interface": subject.tunnel.interface,
            "source": None if subject.source is None else str(subject.source),
        }
    if isinstance(subject, Tunnel):
        return {
            "interface": subject.key.interface,
            "home_address": str(subject.home_address),
            "local": str(subject.local),
            "remote": str(subject.remote),
            "encapsulation": _ports(subject.encapsulation),
        }
    return {
        "spi": f"0x{subject.spi:08x}",
        "mode": subject.mode.value,
        "source": str(subject.source),
        "destination": str(subject.destination),
        "reqid": subject.reqid,
        "encapsulation": _ports(subject.encapsulation),
    }


def _ports(encapsulation: Encapsulation | None) -> dict[str, int] | None:
    if encapsulation is None:
        return None
    return {
        "source_port": encapsulation.source_port,
        "destination_port": encapsulation.destination_port,
    }
