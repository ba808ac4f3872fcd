"""How fast SAs follow their mobile nodes: our reconciler, `ip -batch` with the same changes, and
the same messages packed beforehand on a bare socket. Run by `make bench`, in the guest kernel.

A handover moves both data SAs of a node and updates its two outbound policies.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest
from figures import judge
from xfrm_netns import fresh_netns

from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import (
    Algorithm,
    Encapsulation,
    Mode,
    Policy,
    SecretKey,
    SecurityAssociation,
)
from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role, numbered_reqids
from dsmip_ipsec.ipsec.plan import Operation, plan
from dsmip_ipsec.ipsec.plan_commands import as_ip_xfrm
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.exchange import Exchange, Request, split
from dsmip_ipsec.xfrm.socket import XfrmSocket

NODES = 100
# The best of each counts. Even, so that the nodes are where they were; those of `ip` take long.
ROUNDS = 12
IP_ROUNDS = 4
TIMES_IP_BATCH = 2.0
OF_PACKED = 0.5
AGENT, AGENT4 = IPv6Address("2001:db8:100::1"), IPv4Address("203.0.113.2")
PLACES = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")
NETLINK_XFRM = 6


class Nodes:
    """The mobile nodes of a home agent, all behind one NAT or all behind the other."""

    def __init__(self) -> None:
        self.place = 0
        self.peerings = {
            ids: Peering(
                Role.HOME_AGENT, AGENT + 0x100 + n, IPv4Address("203.0.113.128") + n, AGENT, AGENT4,
                ids, moves_associations=True, native_signalling=False,
            )
            for n in range(NODES)
            for ids in [numbered_reqids(n)]
        }  # fmt: skip
        self.numbers = {ids: n for n, ids in enumerate(self.peerings)}

    def binding(self, peering: Peering) -> Binding:
        number = self.numbers[peering.reqids]
        return Binding(
            peering.home_address, AGENT, IPv4Address("10.0.0.2"), self.place, 600, 0.0, 600.0,
            ipv4_home_address=None, outer=OuterAddress(PLACES[self.place], 20000 + number),
            nat_detected=True, udp_encapsulation=True,
        )  # fmt: skip

    def negotiated(self, ids: Reqids) -> list[SecurityAssociation]:
        """As IKE has installed them at the first place."""
        number, there = self.numbers[ids], PLACES[0]
        return [
            SecurityAssociation(
                spi, source, destination, Mode.TUNNEL, ids.data, encapsulation=ports,
                aead=Algorithm("rfc4106(gcm(aes))", key(spi), 128),
            )
            for spi, source, destination, ports in (
                (0x10000 + number, there, AGENT4, Encapsulation(4500, 4500)),
                (0x20000 + number, AGENT4, there, Encapsulation(4500, 4500)),
            )
        ]  # fmt: skip

    def desired(self, ids: Reqids, negotiated: Sequence[SecurityAssociation]) -> DesiredState:
        peering = self.peerings[ids]
        return desired(peering, active=False, binding=self.binding(peering), negotiated=negotiated)

    def state(self) -> DesiredState:
        whole = DesiredState()
        for ids in self.peerings:
            whole += self.desired(ids, self.negotiated(ids))
        return whole


def key(spi: int) -> SecretKey:
    return SecretKey(hashlib.sha256(b"%08x" % spi).digest()[:20])


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with fresh_netns():
        made = Nodes()
        with XfrmSocket() as xfrm:
            for ids in made.peerings:
                for sa in made.negotiated(ids):
                    xfrm.add_state(translate.state(sa))
        yield made


def moves(nodes: Nodes) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """There and back again."""
    nodes.place = 0
    here = nodes.state()
    nodes.place = 1
    there = nodes.state()
    nodes.place = 0
    return plan(here, there), plan(there, here)


async def test_sa_updates_a_second(capsys: pytest.CaptureFixture[str], nodes: Nodes) -> None:
    reconciler = Reconciler(nodes.desired, tuple(nodes.peerings))
    await reconciler.open()
    there, back = moves(nodes)
    gc.freeze()  # as a daemon does that has started
    ours, ip, packed = [], [], []
    for number in range(ROUNDS):
        nodes.place = 1 - number % 2
        started = time.perf_counter()
        done = await reconciler.reconcile()
        ours.append(time.perf_counter() - started)
        assert sorted(map(str, done)) == sorted(map(str, back if number % 2 else there))
    # The others go on from what it left, and nobody listens any more.
    assert reconciler._monitor is not None
    asyncio.get_running_loop().remove_reader(reconciler._monitor.fileno())
    reconciler._monitor.close()
    commands = [batch(operations) for operations in (there, back)]
    datagrams = [pack(operations) for operations in (there, back)]
    for number in range(IP_ROUNDS):
        started = time.perf_counter()
        subprocess.run(["ip", "-batch", "-"], input=commands[number % 2], check=True, text=True)
        ip.append(time.perf_counter() - started)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM) as bare:
        bare.bind((0, 0))
        for number in range(ROUNDS):
            started = time.perf_counter()
            send(bare, datagrams[number % 2])
            packed.append(time.perf_counter() - started)
    with capsys.disabled():
        for name, times in (("reconciler", ours), ("ip -batch", ip), ("packed", packed)):
            print(f"\n{name:48} {2 * NODES / min(times):10.0f} SA updates a second", end="")
    judge(capsys, "reconciler / ip -batch", min(ip) / min(ours), TIMES_IP_BATCH)
    judge(capsys, "reconciler / packed messages", min(packed) / min(ours), OF_PACKED)


def batch(operations: Sequence[Operation]) -> str:
    """The plan's own commands, for `ip -batch`."""
    text = re.sub(
        r"\$KEY_(\w+)",
        lambda match: f"0x{key(int(match[1], 16)).reveal().hex()}",
        as_ip_xfrm(operations),
    )
    lines = [line.removeprefix("ip ") for line in text.splitlines() if line.startswith("ip ")]
    return "\n".join(lines).replace("'", "") + "\n"


def pack(operations: Sequence[Operation]) -> list[bytes]:
    """Messages that make the same changes: an SA anew and the old one deleted."""
    asked: list[Request[None]] = []
    for operation in operations:
        subject, before = operation.subject, operation.before
        if isinstance(subject, Policy):
            asked.append(verbs.update_policy(translate.policy(subject)))
            continue
        assert isinstance(subject, SecurityAssociation)
        assert isinstance(before, SecurityAssociation)
        add = verbs.add_state(translate.state(subject))
        delete = verbs.delete_state(translate.state(before).id)
        asked += [delete, add] if before.key == subject.key else [add, delete]
    return [Exchange(group, 1).datagram for group in split(asked)]


def send(bare: socket.socket, datagrams: Sequence[bytes]) -> None:
    for datagram in datagrams:
        bare.send(datagram)
        code = int.from_bytes(bare.recv(65536)[16:20], sys.byteorder, signed=True)
        assert code == 0, f"the kernel refused a packed message: {-code}"
