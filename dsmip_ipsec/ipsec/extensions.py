"""Mobile IPv6's extension headers in desired state: who may add and take them."""

from __future__ import annotations

from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.model import Extension, ExtensionState, ExtensionTemplate
from dsmip_ipsec.ipsec.peering import Peering, Role


def extension_states(
    peering: Peering, signalling_care_of: IPv6Address | None
) -> tuple[ExtensionState, ...]:
    """What lets BU and BA travel natively between care-of address and home agent.

    Inbound with a wildcard care-of address: a BU from anywhere and its BA, also a refusal, must
    pass. The kernel takes such a header only under a policy that names it, ours wants ESP too.
    Outbound only the mobile node needs a state: the home agent's socket gives each BA its routing
    header itself, since a refusal goes to a care-of address that isn't bound.
    """
    if not peering.native_signalling:
        return ()
    home, agent, reqid = peering.home_address, peering.home_agent, peering.reqids.mirror
    option, routing = Extension.HOME_ADDRESS_OPTION, Extension.TYPE2_ROUTING
    any_address = IPv6Address(0)
    if peering.role is Role.HOME_AGENT:
        return (ExtensionState(option, home, agent, any_address, reqid),)
    states: tuple[ExtensionState, ...] = (ExtensionState(routing, agent, home, any_address, reqid),)
    if signalling_care_of is not None:
        states += (ExtensionState(option, home, agent, signalling_care_of, reqid),)
    return states


def extension_template(
    states: tuple[ExtensionState, ...], source: IPv6Address, destination: IPv6Address, *, sent: bool
) -> ExtensionTemplate | None:
    """What a policy from ``source`` to ``destination`` says of the extension header."""
    for state in states:
        if (state.source, state.destination) == (source, destination):
            return ExtensionTemplate(state.extension, state.reqid, required=sent)
    return None
