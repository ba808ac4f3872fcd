"""Between the IPsec model and the kernel's views of it: pure conversions, both ways."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv6Address, ip_network
from operator import attrgetter

from dsmip_ipsec.ipsec import model
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6
from dsmip_ipsec.xfrm import types as xfrm
from dsmip_ipsec.xfrm.constants import Action, Direction, Mode, Protocol, StateFlag
from dsmip_ipsec.xfrm.move import Move

_DIRECTIONS = {
    model.Direction.IN: Direction.IN,
    model.Direction.OUT: Direction.OUT,
    model.Direction.FWD: Direction.FWD,
}
_NO_LIMITS = xfrm.Lifetime()
_DIRECTIONS_BACK = {value: key for key, value in _DIRECTIONS.items()}
_MODES = {model.Mode.TRANSPORT: Mode.TRANSPORT, model.Mode.TUNNEL: Mode.TUNNEL}
_MODES_BACK = {value: key for key, value in _MODES.items()}
_EXTENSIONS = {
    model.Extension.HOME_ADDRESS_OPTION: Protocol.DSTOPTS,
    model.Extension.TYPE2_ROUTING: Protocol.ROUTING,
}
# Both say the same of a lifetime, in the same order. (astuple() copies deeply, which takes longer
# than everything else.)
_LIMITS = attrgetter(*(field.name for field in fields(model.Lifetime)))
_EXTENSIONS_BACK = {value: key for key, value in _EXTENSIONS.items()}


def selector(value: model.Selector) -> xfrm.Selector:
    """Mobility Header and ICMPv6 types are the kernel's source port, in either direction of flow.
    (The destination port of ICMPv6 is the code.)"""
    message = value.mobility_header_type
    port = message.value if message is not None else value.icmpv6_type
    return xfrm.Selector(
        value.source,
        value.destination,
        value.protocol,
        source_port=port,
    )


def policy(value: model.Policy) -> xfrm.Policy:
    templates: tuple[xfrm.Template, ...] = ()
    if value.template is not None:
        wanted = value.template
        templates = (
            xfrm.Template(
                wanted.source, wanted.destination, mode=_MODES[wanted.mode], reqid=wanted.reqid
            ),
        )
        if wanted.extension is not None:
            # Templates go from the inside to the outside: the header stands before ESP.
            templates += (_extension_template(wanted.extension),)
    return xfrm.Policy(
        _DIRECTIONS[value.direction],
        selector(value.selector),
        templates,
        value.priority,
        Action.BLOCK if value.action is model.Action.BLOCK else Action.ALLOW,
    )


def _extension_template(value: model.ExtensionTemplate) -> xfrm.Template:
    anything = IPv6Address(0)
    return xfrm.Template(
        anything,
        anything,
        protocol=_EXTENSIONS[value.extension],
        mode=Mode.ROUTE_OPTIMIZATION,
        reqid=value.reqid,
        optional=not value.required,
    )


def extension(value: model.ExtensionState) -> xfrm.State:
    """Such a state has no SPI and no algorithms, and a selector for every IPv6 packet."""
    anywhere = ip_network("::/0")
    return xfrm.State(
        destination=value.destination,
        source=value.source,
        spi=0,
        protocol=_EXTENSIONS[value.extension],
        mode=Mode.ROUTE_OPTIMIZATION,
        selector=xfrm.Selector(anywhere, anywhere),
        reqid=value.reqid,
        care_of_address=value.care_of_address,
    )


def extension_back(value: xfrm.State) -> model.ExtensionState | None:
    """The model of a kernel state; None for one of another kind."""
    kind = _EXTENSIONS_BACK.get(value.protocol)
    ends = value.source, value.destination, value.care_of_address
    if kind is None or value.mode is not Mode.ROUTE_OPTIMIZATION:
        return None
    source, destination, care_of = ends
    if not (
        isinstance(source, IPv6Address)
        and isinstance(destination, IPv6Address)
        and isinstance(care_of, IPv6Address)
    ):
        return None
    return model.ExtensionState(kind, source, destination, care_of, value.reqid)


def policy_key(
    value: xfrm.Policy | xfrm.PolicyId,
) -> tuple[model.Direction, model.Selector] | None:
    """What the model knows a kernel policy by; None for one that we could not have written."""
    direction, inner = _DIRECTIONS_BACK.get(value.direction), _selector_back(value.selector)
    return None if direction is None or inner is None else (direction, inner)


def policy_back(value: xfrm.Policy) -> model.Policy | None:
    """The model of a kernel policy; None for one that we could not have written."""
    key = policy_key(value)
    template = _template_back(value.templates[0], value.templates[1:]) if value.templates else None
    if key is None or (value.templates and template is None):
        return None
    action = model.Action.PROTECT
    if value.action is Action.BLOCK:
        if template is not None:
            return None
        action = model.Action.BLOCK
    elif template is None:
        action = model.Action.BYPASS
    return model.Policy(*key, value.priority, action, template)


def _selector_back(value: xfrm.Selector) -> model.Selector | None:
    if value.source is None or value.destination is None:
        return None
    message, icmpv6_type = None, None
    if value.source_port is not None:
        if value.protocol == IPPROTO_ICMPV6:
            icmpv6_type = value.source_port
        else:
            try:
                message = model.MobilityHeaderType(value.source_port)
            except ValueError:
                return None
    try:
        return model.Selector(value.source, value.destination, value.protocol, message, icmpv6_type)
    except ValueError:
        return None


def _template_back(esp: xfrm.Template, outer: tuple[xfrm.Template, ...]) -> model.Template | None:
    mode = _MODES_BACK.get(esp.mode)
    if mode is None or esp.protocol is not Protocol.ESP or len(outer) > 1:
        return None
    wanted = None
    for template in outer:
        kind = _EXTENSIONS_BACK.get(template.protocol)
        if kind is None or template.mode is not Mode.ROUTE_OPTIMIZATION:
            return None
        wanted = model.ExtensionTemplate(kind, template.reqid, not template.optional)
    return model.Template(mode, esp.source, esp.destination, esp.reqid, wanted)


def _algorithm(value: model.Algorithm | None) -> xfrm.Algorithm | None:
    if value is None:
        return None
    return xfrm.Algorithm(value.name, xfrm.Key(value.key.reveal()), value.icv_bits)


def _algorithm_back(value: xfrm.Algorithm | None) -> model.Algorithm | None:
    if value is None:
        return None
    return model.Algorithm(value.name, model.SecretKey(value.key.reveal()), value.icv_bits)


def _mark(value: model.Mark | None) -> xfrm.Mark | None:
    return None if value is None else xfrm.Mark(value.value, value.mask)


def _mark_back(value: xfrm.Mark | None) -> model.Mark | None:
    return None if value is None else model.Mark(value.value, value.mask)


def _lifetime_back(value: xfrm.Lifetime) -> model.Lifetime:
    if value == _NO_LIMITS:
        return model.UNLIMITED
    return model.Lifetime(*_LIMITS(value))


def _encapsulation(value: model.Encapsulation | None) -> xfrm.Encap | None:
    return None if value is None else xfrm.Encap(value.source_port, value.destination_port)


def encapsulation_back(value: xfrm.Encap | None) -> model.Encapsulation | None:
    """The model of the ports of ESP in UDP."""
    return None if value is None else model.Encapsulation(value.source_port, value.destination_port)


def move(before: model.SecurityAssociation, after: model.SecurityAssociation, skip: int) -> Move:
    """From where an SA is to the place that it is to have, leaving out ``skip`` numbers."""
    where = xfrm.StateId(before.destination, before.spi, mark=_mark(before.mark))
    encap = _encapsulation(after.encapsulation)
    return Move(where, after.source, after.destination, encap, skip=skip)


def state(value: model.SecurityAssociation) -> xfrm.State:
    return xfrm.State(
        destination=value.destination,
        source=value.source,
        spi=value.spi,
        mode=_MODES[value.mode],
        reqid=value.reqid,
        selector=selector(value.selector) if value.selector is not None else xfrm.Selector(),
        aead=_algorithm(value.aead),
        encryption=_algorithm(value.encryption),
        authentication=_algorithm(value.authentication),
        encap=_encapsulation(value.encapsulation),
        flags=StateFlag.ESN if value.esn else StateFlag(0),
        replay=xfrm.Replay(window=value.replay_window),
        lifetime=xfrm.Lifetime(*_LIMITS(value.lifetime)),
        mark=_mark(value.mark),
        output_mark=_mark(value.output_mark),
    )


def state_back(value: xfrm.State) -> model.SecurityAssociation | None:
    """The model of a kernel SA; None for one that isn't ESP in transport or tunnel mode.

    A larval SA (no keys: the kernel waits for IKE) is none either.
    """
    mode = _MODES_BACK.get(value.mode)
    keyed = value.aead is not None or value.encryption is not None
    if mode is None or value.protocol is not Protocol.ESP or not keyed:
        return None
    inner = None
    source, destination = value.selector.source, value.selector.destination
    if source is not None and destination is not None:
        inner = model.Selector(source, destination, value.selector.protocol)
    return model.SecurityAssociation(
        spi=value.spi,
        source=value.source,
        destination=value.destination,
        mode=mode,
        reqid=value.reqid,
        aead=_algorithm_back(value.aead),
        encryption=_algorithm_back(value.encryption),
        authentication=_algorithm_back(value.authentication),
        selector=inner,
        encapsulation=encapsulation_back(value.encap),
        replay_window=value.replay.window,
        esn=bool(value.flags & StateFlag.ESN),
        lifetime=_lifetime_back(value.lifetime),
        mark=_mark_back(value.mark),
        output_mark=_mark_back(value.output_mark),
    )
