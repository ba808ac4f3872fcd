"""What the home agent takes out of a kernel tunnel: only its mobile node's source addresses.

RFC 6275 §10.4.5 has the home agent compare the tunnel's outer source with the care-of address: the
kernel's tunnel does, by its ends. That alone would let a mobile node send in another one's name,
so what comes out must have a source that the tunnel is for.

A traffic control filter on the tunnel's input sees to it, and not a routing rule: a rule comes
after the local table, so it doesn't see what is for the home agent itself. The filter goes with
the interface, so nothing is left of it whatever happens to us.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from dsmip_ipsec.errors import KernelError

Network = IPv4Network | IPv6Network

# linux/if_ether.h
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_INGRESS = 0xFFFF0000
_LAST = 0xFFF0  # the filter that drops what none before it took
_SOURCE_OFFSET = {4: 12, 6: 8}


class SourceFilters:
    """The filters of the tunnels that :meth:`admit` was called for, by interface name."""

    def __init__(self, ipr: Any) -> None:
        self._ipr = ipr
        self._admitted: dict[str, dict[Network, int]] = {}

    def forget(self, name: str) -> None:
        """The interface is gone, and its filters with it. Idempotent."""
        self._admitted.pop(name, None)

    async def admit(self, name: str, index: int, networks: Iterable[Network]) -> None:
        """From now on only packets from ``networks`` come out of ``name``. Idempotent.

        Raises KernelError; the interface should be down, or go, then.
        """
        wanted = set(networks)
        try:
            admitted = self._admitted.get(name)
            if admitted is None:
                admitted = await self._begin(name, index)
            for network in sorted(wanted - set(admitted), key=str):
                priority = next(p for p in range(1, _LAST) if p not in admitted.values())
                await self._add(index, priority, network)
                admitted[network] = priority
            for network in [each for each in admitted if each not in wanted]:
                await self._ipr.tc("del-filter", index=index, parent=_INGRESS,
                                   info=admitted.pop(network) << 16)  # fmt: skip
        except NetlinkError as error:
            raise KernelError(
                f"can't restrict the sources behind {name}: {error.args[-1]}",
                errno=int(error.code),
                hint="the kernel needs the modules sch_ingress, cls_u32 and act_gact",
            ) from error

    async def _begin(self, name: str, index: int) -> dict[Network, int]:
        """The filter that drops; whatever an interface that we didn't make has goes before."""
        try:
            await self._ipr.tc("add", "ingress", index=index)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            await self._ipr.tc("del", "ingress", index=index)
            await self._ipr.tc("add", "ingress", index=index)
        await self._filter(index, _LAST, _ETH_P_ALL, ["0x0/0x0+0"], "drop")
        return self._admitted.setdefault(name, {})

    async def _add(self, index: int, priority: int, network: Network) -> None:
        protocol = _ETH_P_IP if network.version == 4 else _ETH_P_IPV6
        await self._filter(index, priority, protocol, source_keys(network), "ok")

    async def _filter(
        self, index: int, priority: int, protocol: int, keys: list[str], action: str
    ) -> None:
        await self._ipr.tc(
            "add-filter", "u32", index=index, parent=_INGRESS, prio=priority,
            protocol=protocol, target=0, keys=keys, action=action,
        )  # fmt: skip


def source_keys(network: Network) -> list[str]:
    """u32 keys (``value/mask+offset``, 32 bits each) for an IP source address in ``network``."""
    value, mask = network.network_address.packed, network.netmask.packed
    keys = []
    for at in range(0, len(mask), 4):
        if any(mask[at : at + 4]):
            word, bits = value[at : at + 4].hex(), mask[at : at + 4].hex()
            keys.append(f"0x{word}/0x{bits}+{_SOURCE_OFFSET[network.version] + at}")
    return keys or ["0x0/0x0+0"]
