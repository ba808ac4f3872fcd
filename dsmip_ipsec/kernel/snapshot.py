"""What the kernel has of one mobile node's IPsec state, read once and not touched."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.ipsec.desired import PRIORITY_BAND, DesiredState
from dsmip_ipsec.ipsec.model import ExtensionState, Network, Policy, SecurityAssociation
from dsmip_ipsec.ipsec.payload_policies import home_addresses, mobile_networks
from dsmip_ipsec.ipsec.peering import Peering
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.mobility.types import Binding
from dsmip_ipsec.xfrm.errors import XfrmError
from dsmip_ipsec.xfrm.socket import XfrmSocket


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``current``: policies, mirrors and extension states of ours, and where the tunnel SAs are if
    those are ours to move. ``negotiated``: the SAs of IKE, newest first."""

    current: DesiredState
    negotiated: tuple[SecurityAssociation, ...]


def read_snapshot(peering: Peering, binding: Binding | None) -> Snapshot:
    """Read this namespace's SPD and SAD. Raises KernelError."""
    try:
        with XfrmSocket() as xfrm:
            states, kernel_policies = xfrm.dump_states(), xfrm.dump_policies()
    except XfrmError as error:
        raise KernelError(
            f"can't read IPsec state: {error}",
            hint="run as root, in the daemon's network namespace",
        ) from error
    reqids = peering.reqids
    mirrors: list[SecurityAssociation] = []
    extensions: list[ExtensionState] = []
    negotiated: list[SecurityAssociation] = []
    for state in states:
        if state.reqid not in reqids:
            continue
        extension, sa = translate.extension_back(state), translate.state_back(state)
        if extension is not None:
            extensions.append(extension)
        elif sa is not None:
            (mirrors if sa.reqid == reqids.mirror else negotiated).append(sa)
    banded = (p for p in kernel_policies if p.priority in PRIORITY_BAND)
    policies = [translate.policy_back(p) for p in banded]
    homes: list[Network] = [ip_network(home) for home, _ in home_addresses(peering)]
    homes += mobile_networks(peering, binding)
    placed = [sa for sa in negotiated if sa.reqid in reqids.tunnels and peering.moves_associations]
    current = DesiredState(
        tuple(p for p in policies if p is not None and _concerns(p, homes)),
        tuple(mirrors),
        tuple(placed),
        tuple(extensions),
    )
    return Snapshot(current, tuple(negotiated))


def _concerns(policy: Policy, homes: list[Network]) -> bool:
    return policy.selector.source in homes or policy.selector.destination in homes
