"""Plans for people and programs: text like a diff, JSON values, ``ip xfrm`` commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsmip_ipsec.ipsec.model import (
    Action,
    Extension,
    ExtensionState,
    Mode,
    Policy,
    SecurityAssociation,
    Selector,
)
from dsmip_ipsec.ipsec.plan import Operation, Subject, Verb
from dsmip_ipsec.wire.ip import IPPROTO_MH

# The first word of a verb's name tells.
_SIGNS = {"add": "+", "update": "~", "move": "~", "delete": "-"}
# What iproute2 calls them.
_EXTENSIONS = {Extension.HOME_ADDRESS_OPTION: "hao", Extension.TYPE2_ROUTING: "route2"}


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
    return f"0x{subject.spi:08x} {subject.mode.value} reqid {subject.reqid}"


def _rest(subject: Subject) -> str:
    if isinstance(subject, Policy):
        what = "block" if subject.template is None else str(subject.template)
        return f"{what}, priority {subject.priority}"
    if isinstance(subject, ExtensionState):
        anywhere = subject.care_of_address.is_unspecified
        return f"care-of address {'any' if anywhere else subject.care_of_address}"
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
    encapsulation = subject.encapsulation
    return {
        "spi": f"0x{subject.spi:08x}",
        "mode": subject.mode.value,
        "source": str(subject.source),
        "destination": str(subject.destination),
        "reqid": subject.reqid,
        "encapsulation": None
        if encapsulation is None
        else {
            "source_port": encapsulation.source_port,
            "destination_port": encapsulation.destination_port,
        },
    }


def as_ip_xfrm(operations: Iterable[Operation]) -> str:
    """The commands of iproute2 that do the same.

    ``$KEY_<spi>`` stands for the key that is to be filled in: a plan doesn't know it. Moving an
    SA is adding it anew and deleting the old one, which loses its sequence numbers: iproute2 has
    no command that keeps them.
    """
    lines: list[str] = []
    for operation in operations:
        lines.append(f"# {operation.reason} ({operation.reference})")
        lines += _commands(operation)
    return "\n".join(lines) + "\n" if lines else "# nothing to do\n"


def _commands(operation: Operation) -> list[str]:
    subject, before = operation.subject, operation.before
    if isinstance(subject, Policy):
        where = f"dir {subject.direction.value} {_selector(subject.selector)}"
        if operation.verb is Verb.DELETE_POLICY:
            return [f"ip xfrm policy delete {where}"]
        # "update" also adds: what counts is that there is one such policy.
        return [f"ip xfrm policy update {where} priority {subject.priority}{_template(subject)}"]
    if isinstance(subject, ExtensionState):
        return [_extension(operation.verb, subject)]
    if operation.verb is Verb.DELETE_ASSOCIATION:
        return [_delete(subject)]
    if isinstance(before, SecurityAssociation):
        same = before.key == subject.key
        return [_delete(before), _add(subject)] if same else [_add(subject), _delete(before)]
    return [_add(subject)]


def _selector(selector: Selector) -> str:
    text = f"src {selector.source} dst {selector.destination}"
    if selector.protocol:
        text += (
            f" proto {'mobility-header' if selector.protocol == IPPROTO_MH else selector.protocol}"
        )
    if selector.mobility_header_type is not None:
        text += f" type {selector.mobility_header_type.value}"
    return text


def _template(policy: Policy) -> str:
    template = policy.template
    if policy.action is Action.BLOCK or template is None:
        return " action block"
    text = (
        f" tmpl src {template.source} dst {template.destination} proto esp "
        f"reqid {template.reqid} mode {template.mode.value}"
    )
    if template.extension is not None:
        outer = template.extension
        text += f" tmpl src :: dst :: proto {_EXTENSIONS[outer.extension]} reqid {outer.reqid}"
        text += f" mode ro level {'required' if outer.required else 'use'}"
    return text


def _extension(verb: Verb, state: ExtensionState) -> str:
    where = f"src {state.source} dst {state.destination} proto {_EXTENSIONS[state.extension]}"
    if verb is Verb.DELETE_EXTENSION:
        return f"ip xfrm state delete {where}"
    what = "add" if verb is Verb.ADD_EXTENSION else "update"
    return f"ip xfrm state {what} {where} reqid {state.reqid} mode ro coa {state.care_of_address}"


def _add(sa: SecurityAssociation) -> str:
    text = (
        f"ip xfrm state add src {sa.source} dst {sa.destination} proto esp spi 0x{sa.spi:08x} "
        f"reqid {sa.reqid} mode {sa.mode.value} aead 'rfc4106(gcm(aes))' $KEY_{sa.spi:08x} 128"
    )
    if sa.mode is Mode.TUNNEL and sa.selector is None:
        text += " flag af-unspec"
    if sa.encapsulation is not None:
        ports = sa.encapsulation
        text += f" encap espinudp {ports.source_port} {ports.destination_port} 0.0.0.0"
    if sa.selector is not None:
        text += f" sel {_selector(sa.selector)}"
    return text


def _delete(sa: SecurityAssociation) -> str:
    return f"ip xfrm state delete src {sa.source} dst {sa.destination} proto esp spi 0x{sa.spi:08x}"
