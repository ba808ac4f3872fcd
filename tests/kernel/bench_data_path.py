"""What our policies cost on the kernel's data path: payload through the tunnel SAs with them, and
with policies as strongSwan installs them for the same traffic (in, out and fwd for each selector).

Same kernel, same SAs, same packets, in turns. A sent datagram is encrypted, crosses a veth pair, is
decrypted and checked before sendto() returns, so the sender's time is the whole path's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from figures import judge
from xfrm_netns import fresh_netns, ip

from dsmip_ipsec.ipsec.desired import desired
from dsmip_ipsec.ipsec.model import (
    Algorithm,
    Direction,
    Mode,
    Policy,
    SecretKey,
    SecurityAssociation,
    Selector,
    Template,
)
from dsmip_ipsec.ipsec.peering import Peering, Role, numbered_reqids
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.lab.netns import enter_descriptor
from dsmip_ipsec.mobility.types import Binding
from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.socket import XfrmSocket

ROUNDS, PACKETS, SIZE = 15, 1500, 1000
OF_STRONGSWAN = 0.95
IDS = numbered_reqids(0)
HOME, AGENT = IPv6Address("2001:db8:100::100"), IPv6Address("2001:db8:100::1")
HOME4, AGENT4 = IPv4Address("203.0.113.200"), IPv4Address("192.0.2.2")
CARE_OF = IPv4Address("192.0.2.1")
FAR = {6: "2001:db8:ffff::1", 4: "198.51.100.1"}
BINDING = Binding(HOME, AGENT, CARE_OF, 1, 600, 0.0, 600.0)
# charon's kernel-netlink for a host and everywhere, without protocol and ports.
STRONGSWAN_PRIORITY = {4: 383615, 6: 334463}


def peering(role: Role) -> Peering:
    return Peering(role, HOME, HOME4, AGENT, AGENT4, IDS, native_signalling=False)


def associations() -> list[SecurityAssociation]:
    found = []
    for spi, source, destination in ((0x1001, CARE_OF, AGENT4), (0x1002, AGENT4, CARE_OF)):
        aead = Algorithm("rfc4106(gcm(aes))", SecretKey(spi.to_bytes(20, "big")), 128)
        found.append(
            SecurityAssociation(
                spi, source, destination, Mode.TUNNEL, IDS.data, aead=aead, replay_window=64
            )
        )
    return found


def ours(role: Role) -> list[Policy]:
    state = desired(peering(role), active=True, binding=BINDING, negotiated=associations())
    return list(state.policies)


def strongswans(role: Role) -> list[Policy]:
    """For a CHILD_SA between the home addresses and everywhere."""
    found = []
    away = CARE_OF, AGENT4
    for home in (HOME, HOME4):
        here, there = ip_network(home), ip_network("::/0" if home.version == 6 else "0.0.0.0/0")
        up, down = Selector(here, there), Selector(there, here)
        sent, received = (up, down) if role is Role.MOBILE_NODE else (down, up)
        out = away if role is Role.MOBILE_NODE else away[::-1]
        rows = [(Direction.OUT, sent, out)]
        rows += [(d, received, out[::-1]) for d in (Direction.IN, Direction.FWD)]
        found += [
            Policy(
                direction, selector, STRONGSWAN_PRIORITY[home.version],
                template=Template(Mode.TUNNEL, *ends, IDS.data),
            )
            for direction, selector, ends in rows
        ]  # fmt: skip
    return found


class End:
    def __init__(self, role: Role, namespace: int) -> None:
        self.namespace = namespace
        self.policies = {"ours": ours(role), "strongSwan's": strongswans(role)}
        enter_descriptor(namespace)
        self.xfrm = XfrmSocket()
        for sa in associations():
            self.xfrm.add_state(translate.state(sa))

    def use(self, whose: str) -> None:
        self.xfrm.flush_policies()
        for policy in self.policies[whose]:
            self.xfrm.request(verbs.add_policy(translate.policy(policy)))


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_netns())
        there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, there)
        stack.enter_context(fresh_netns())
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, here)
        ip(f"link add out0 type veth peer name in0 netns /proc/{os.getpid()}/fd/{there}")
        for address in (f"{CARE_OF}/24", f"{HOME4}/32", f"{HOME}/128"):
            ip(f"addr add {address} dev out0" + (" nodad" if ":" in address else ""))
        ip("link set out0 up")
        mobile = End(Role.MOBILE_NODE, here)
        enter_descriptor(there)
        for address in (f"{AGENT4}/24", f"{FAR[4]}/32", f"{FAR[6]}/128", f"{AGENT}/128"):
            ip(f"addr add {address} dev in0" + (" nodad" if ":" in address else ""))
        ip("link set in0 up")
        ip(f"route add default via {CARE_OF} dev in0")
        agent = End(Role.HOME_AGENT, there)
        enter_descriptor(here)
        ip(f"route add default via {AGENT4} dev out0 src {HOME4}")
        ip("-6 route add default dev out0")
        yield mobile, agent
        enter_descriptor(here)


@pytest.mark.parametrize("family", [4, 6])
def test_data_path(capsys: pytest.CaptureFixture[str], ends: tuple[End, End], family: int) -> None:
    mobile, agent = ends
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    enter_descriptor(agent.namespace)
    with socket.socket(kind, socket.SOCK_DGRAM) as receiver:
        receiver.bind((FAR[family], 7777))
        receiver.setblocking(False)
        enter_descriptor(mobile.namespace)
        with socket.socket(kind, socket.SOCK_DGRAM) as sender:
            sender.bind((str(HOME4 if family == 4 else HOME), 0))
            mobile.use("ours")
            agent.use("ours")
            first_arrival(sender, receiver, family)
            ratios = []
            for number in range(ROUNDS):
                order = ["ours", "strongSwan's"]
                took = {}
                for whose in order if number % 2 else order[::-1]:
                    mobile.use(whose)
                    agent.use(whose)
                    took[whose] = flood(sender, receiver, family)
                ratios.append(took["strongSwan's"] / took["ours"])
    judge(
        capsys, f"data path, IPv{family}: ours / strongSwan's", statistics.median(ratios),
        OF_STRONGSWAN,
    )  # fmt: skip


def first_arrival(sender: socket.socket, receiver: socket.socket, family: int) -> None:
    """Until neighbours know each other, packets are lost."""
    end = time.monotonic() + 5
    receiver.settimeout(0.1)
    while time.monotonic() < end:
        sender.sendto(b"first", (FAR[family], 7777))
        with contextlib.suppress(TimeoutError):
            receiver.recv(SIZE)
            break
    receiver.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(SIZE):
            pass


def flood(sender: socket.socket, receiver: socket.socket, family: int) -> float:
    """Seconds for PACKETS datagrams, all of which have arrived."""
    payload, target = bytes(SIZE), (FAR[family], 7777)
    spent, arrived = 0.0, 0
    for at in range(0, PACKETS, 50):  # what a default receive buffer holds
        started = time.perf_counter()
        for _ in range(min(50, PACKETS - at)):
            sender.sendto(payload, target)
        spent += time.perf_counter() - started
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(SIZE):
                arrived += 1
    assert arrived == PACKETS, f"{PACKETS - arrived} of {PACKETS} datagrams didn't arrive"
    return spent
