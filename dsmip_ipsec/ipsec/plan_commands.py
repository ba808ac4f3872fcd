"""Plans as the commands of iproute2 that do the same."""

from __future__ import annotations

from collections.abc import Iterable

from dsmip_ipsec.ipsec.model import (
    Action,
    Extension,
    ExtensionState,
    Mode,
    Policy,
    SecurityAssociation,
    Selector,
    Tunnel,
    TunnelRoute,
)
from dsmip_ipsec.ipsec.plain_tunnels import TUNNEL_METRIC, tunnel_alias
from dsmip_ipsec.ipsec.plan import Operation, Verb
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH

# What iproute2 calls them.
_EXTENSIONS = {Extension.HOME_ADDRESS_OPTION: "hao", Extension.TYPE2_ROUTING: "route2"}
_PROTOCOLS = {IPPROTO_MH: "mobility-header", IPPROTO_ICMPV6: "ipv6-icmp"}


def as_ip_xfrm(operations: Iterable[Operation]) -> str:
    """The commands of iproute2 that do the same.

    ``$KEY_<spi>`` (and ``$AUTH_KEY_<spi>``) stand for keys that are to be filled in: a plan doesn't
    show them. Moving an
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
    if isinstance(subject, Tunnel):
        return _tunnel(operation.verb, subject)
    if isinstance(subject, TunnelRoute):
        return [_route(operation.verb, subject)]
    if operation.verb is Verb.DELETE_ASSOCIATION:
        return [_delete(subject)]
    if isinstance(before, SecurityAssociation):
        same = before.key == subject.key
        return [_delete(before), _add(subject)] if same else [_add(subject), _delete(before)]
    return [_add(subject)]


def _selector(selector: Selector) -> str:
    text = f"src {selector.source} dst {selector.destination}"
    if selector.protocol:
        text += f" proto {_PROTOCOLS.get(selector.protocol, selector.protocol)}"
    if selector.mobility_header_type is not None:
        text += f" type {selector.mobility_header_type.value}"
    if selector.icmpv6_type is not None:
        text += f" type {selector.icmpv6_type}"
    return text


def _template(policy: Policy) -> str:
    template = policy.template
    if template is None:
        return " action block" if policy.action is Action.BLOCK else " action allow"
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


def _tunnel(verb: Verb, tunnel: Tunnel) -> list[str]:
    name = tunnel.key.interface
    if verb is Verb.DELETE_TUNNEL and tunnel.encapsulation is None:
        return [f"ip link delete {name}"]
    if tunnel.encapsulation is not None:
        ports = tunnel.encapsulation
        return [
            f"# {name}: {tunnel.local} port {ports.source_port} to {tunnel.remote} port "
            f"{ports.destination_port}, by the daemon"
        ]
    kind = "sit mode any pmtudisc" if tunnel.key.version == 4 else "ip6tnl mode any encaplimit none"
    what = "add" if verb is Verb.ADD_TUNNEL else "change"
    text = f"ip link {what} {name} type {kind} local {tunnel.local} remote {tunnel.remote} ttl 64"
    return (
        [text, f'ip link set {name} up alias "{tunnel_alias(tunnel)}"']
        if verb is Verb.ADD_TUNNEL
        else [text]
    )


def _route(verb: Verb, route: TunnelRoute) -> str:
    text = f"{route.destination} dev {route.tunnel.interface} metric {TUNNEL_METRIC}"
    if verb is Verb.DELETE_ROUTE:
        return f"ip route delete {text}"
    source = "" if route.source is None else f" src {route.source}"
    return f"ip route replace {text}{source}"


def _add(sa: SecurityAssociation) -> str:
    text = (
        f"ip xfrm state add src {sa.source} dst {sa.destination} proto esp spi 0x{sa.spi:08x} "
        f"reqid {sa.reqid} mode {sa.mode.value} replay-window {sa.replay_window}{_algorithms(sa)}"
    )
    if sa.mode is Mode.TUNNEL and sa.selector is None:
        text += " flag af-unspec"
    if sa.encapsulation is not None:
        ports = sa.encapsulation
        text += f" encap espinudp {ports.source_port} {ports.destination_port} 0.0.0.0"
    if sa.selector is not None:
        text += f" sel {_selector(sa.selector)}"
    return text


def _algorithms(sa: SecurityAssociation) -> str:
    """Names as the kernel has them; AES-GCM of a placeholder, which has none."""
    key = f"$KEY_{sa.spi:08x}"
    if sa.encryption is not None:
        text = f" enc '{sa.encryption.name}' {key}"
        if sa.authentication is not None:
            name, bits = sa.authentication.name, sa.authentication.icv_bits
            text += f" auth-trunc '{name}' $AUTH_{key.removeprefix('$')} {bits}"
        return text
    name, bits = "rfc4106(gcm(aes))", 128
    if sa.aead is not None:
        name, bits = sa.aead.name, sa.aead.icv_bits
    return f" aead '{name}' {key} {bits}"


def _delete(sa: SecurityAssociation) -> str:
    return f"ip xfrm state delete src {sa.source} dst {sa.destination} proto esp spi 0x{sa.spi:08x}"
