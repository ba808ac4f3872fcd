"""The NAPT of a lab's ``nat`` nodes, and what routers block: iptables' legacy back end, or nftables
where that is missing.

Both are given as one rule set to one process. ``mapping = "random"`` draws from ports above 20000
only, so that IKE's 4500 and DSMIPv6's 4191 come out as another port always, not just usually.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPSet, NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from ..errors import LabError
from .spec_models import Block, Nat, Rebind

_PORTS = "20000-65535"
# Where a NAT that filters loosely remembers what may come in.
REACHABLE = "reachable"
_UDP_TIMEOUT_S = 120  # conntrack's own, of a flow with answers
_ENDS = ("sport", "dport")
_PROTOCOLS = {"ipip": 4, "ipv6": 41, "esp": 50}  # IANA's protocol numbers


def iptables_rules(
    nat: Nat, forward_to: IPv4Address | None = None, reach: IPv4Address | None = None
) -> str:
    """The rule set as iptables-restore reads it. ``forward_to``: the address of
    ``nat.forward_to``. ``reach``: the node inside, where filtering is looser than conntrack's.

    The filter is that of RFC 4787 §5's address and port dependent filtering, made explicit:
    nothing comes in from outside that didn't start inside. Echo requests to the NAT itself are
    answered, since people ping a NAT to see whether it's there.

    A looser one remembers the port of what leaves (and where it goes) in the set ``REACHABLE``, and
    leads what comes to such a port inside. That works since such a NAT preserves ports.
    """
    ports = f" --random --to-ports {_PORTS}" if nat.mapping == "random" else ""
    outside = nat.outside
    redirect = inwards = learn = ""
    if forward_to is not None:
        redirect = "".join(
            f"-A PREROUTING -i {outside} -p udp --dport {port} -j DNAT "
            f"--to-destination {forward_to}\n"
            for port in nat.forward_ports
        )
    if reach is not None:
        leaving, coming = ("dst,src", "src,dst") if _by_address(nat) else ("src", "dst")
        redirect += (
            f"-A PREROUTING -i {outside} -p udp -m set --match-set {REACHABLE} {coming} "
            f"-j DNAT --to-destination {reach}\n"
        )
        learn = (
            f"*mangle\n-A POSTROUTING -o {outside} -p udp "
            f"-j SET --add-set {REACHABLE} {leaving} --exist\nCOMMIT\n"
        )
    if redirect:
        inwards = f"-A FORWARD -i {outside} -m conntrack --ctstate DNAT -j ACCEPT\n"
    return f"""{learn}*nat
{redirect}-A POSTROUTING -o {outside} -p udp -j MASQUERADE{ports}
-A POSTROUTING -o {outside} -p tcp -j MASQUERADE{ports}
-A POSTROUTING -o {outside} -j MASQUERADE
COMMIT
*filter
-A INPUT -i {outside} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i {outside} -p icmp -m icmp --icmp-type echo-request -j ACCEPT
-A INPUT -i {outside} -j DROP
{inwards}-A FORWARD -i {outside} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i {outside} -j DROP
COMMIT
"""


def nft_rules(
    nat: Nat, forward_to: IPv4Address | None = None, reach: IPv4Address | None = None
) -> str:
    """The same rule set as nft reads it."""
    ports = f" to :{_PORTS} random" if nat.mapping == "random" else ""
    outside = nat.outside
    redirect = inwards = learn = ""
    if forward_to is not None:
        forwarded = ", ".join(map(str, nat.forward_ports))
        redirect = f'    iifname "{outside}" udp dport {{ {forwarded} }} dnat to {forward_to}\n'
    if reach is not None:
        kind, leaving, coming = (
            ("ipv4_addr . inet_service", "ip daddr . udp sport", "ip saddr . udp dport")
            if _by_address(nat)
            else ("inet_service", "udp sport", "udp dport")
        )
        redirect += f'    iifname "{outside}" {coming} @{REACHABLE} dnat to {reach}\n'
        learn = f"""  set {REACHABLE} {{
    type {kind}; flags dynamic,timeout; timeout {_lifetime_s(nat)}s;
  }}
  chain learn {{
    type filter hook postrouting priority -150; policy accept;
    oifname "{outside}" update @{REACHABLE} {{ {leaving} }}
  }}
"""
    if redirect:
        redirect = f"""  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
{redirect}  }}
"""
        inwards = f'    iifname "{outside}" ct status dnat accept\n'
    return f"""table ip dsmip_nat {{
{learn}{redirect}  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{outside}" meta l4proto {{ tcp, udp }} masquerade{ports}
    oifname "{outside}" masquerade
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname "{outside}" ct state established,related accept
    iifname "{outside}" icmp type echo-request accept
    iifname "{outside}" drop
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
{inwards}    iifname "{outside}" ct state established,related accept
    iifname "{outside}" drop
  }}
}}
"""


def _by_address(nat: Nat) -> bool:
    return nat.filtering == "address-dependent"


def _lifetime_s(nat: Nat) -> int:
    return nat.udp_timeout_s or _UDP_TIMEOUT_S


def _make_set(nat: Nat) -> str | None:
    """The set that iptables' rules name: None, or why there is none."""
    kind: dict[str, Any] = {"stype": "bitmap:port", "bitmap_ports_range": (0, 65535)}
    if _by_address(nat):
        kind = {"stype": "hash:ip,port"}
    try:
        with IPSet() as sets:
            sets.create(REACHABLE, timeout=_lifetime_s(nat), **kind)
    except (OSError, NetlinkError) as error:
        return f"no IP set {kind['stype']}: {error}"
    return None


def install(
    nat: Nat, forward_to: IPv4Address | None = None, reach: IPv4Address | None = None
) -> None:
    """Make the calling thread's namespace that NAT (call it within
    :func:`dsmip_ipsec.lab.netns.isolated`). The rest is as for :func:`iptables_rules`.

    :raises LabError: neither iptables nor nftables can do it, with what each said.
    """
    said: list[str] = []
    for command, rules, prepare in (
        (
            ["iptables-legacy-restore"],
            iptables_rules(nat, forward_to, reach),
            None if reach is None else partial(_make_set, nat),
        ),
        (["nft", "-f", "-"], nft_rules(nat, forward_to, reach), None),
    ):
        failure = (prepare() if prepare is not None else None) or _feed(command, rules)
        if failure is None:
            break
        said.append(failure)
    else:
        raise LabError(
            f"no NAT: {'; '.join(said)}",
            hint="install iptables or nftables; `dsmip-ipsec doctor` shows what the kernel can do",
        )
    if nat.udp_timeout_s is not None:
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            try:
                Path("/proc/sys/net/netfilter", name).write_text(str(nat.udp_timeout_s))
            except OSError as error:
                raise LabError(
                    f"the NAT's UDP timeout can't be set: {error.strerror}",
                    hint="leave udp_timeout_s out",
                ) from None


def block(rule: Block, *, lift: bool = False) -> None:
    """Have the calling thread's namespace drop some of what it would forward, or with ``lift`` no
    longer (call it within :func:`dsmip_ipsec.lab.netns.isolated`).

    :raises LabError: neither iptables nor nftables can do it, with what each said.
    """
    if rule.protocol == "native-ipv6":
        _blackhole_ipv6()
        return
    verb = "-D" if lift else "-I"
    if rule.port is None:
        lines = [f"{verb} FORWARD -p {_PROTOCOLS[rule.protocol]} -j DROP"]
    else:
        lines = [f"{verb} FORWARD -p {rule.protocol} --{end} {rule.port} -j DROP" for end in _ENDS]
    said: list[str] = []
    for command, rules in (
        (["iptables-legacy-restore", "--noflush"], "\n".join(["*filter", *lines, "COMMIT", ""])),
        (["nft", "-f", "-"], _nft_unblock(rule) if lift else _nft_block(rule)),
    ):
        failure = _feed(command, rules)
        if failure is None:
            return
        said.append(failure)
    raise LabError(
        f"{rule} can't be {'unblocked' if lift else 'blocked'}: {'; '.join(said)}",
        hint="install iptables or nftables",
    )


def _blackhole_ipv6() -> None:
    """By routing rules: IPv6's netfilter is no matter of course in a small kernel. What the node
    itself sends, neighbour discovery too, isn't touched."""
    for _, interface in socket.if_nameindex():
        if interface == "lo":
            continue
        command = f"ip -6 rule add iif {interface} blackhole pref 10".split()
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"IPv6 can't be blocked: {error}", hint="install iproute2") from None
        if result.returncode != 0:
            raise LabError(f"IPv6 can't be blocked: {result.stderr.strip()}")


def _nft_block(rule: Block) -> str:
    if rule.port is None:
        drops = f"    ip protocol {_PROTOCOLS[rule.protocol]} drop\n"
    else:
        drops = "".join(f"    {rule.protocol} {end} {rule.port} drop\n" for end in _ENDS)
    return f"""table ip {_nft_name(rule)} {{
  chain forward {{
    type filter hook forward priority -10; policy accept;
{drops}  }}
}}
"""


def congest() -> None:
    """Have the calling thread's namespace mark what it forwards over IPv4 with CE, as a congested
    router does to packets of ECN capable transports (call it within
    :func:`dsmip_ipsec.lab.netns.isolated`).

    :raises LabError: neither iptables nor nftables can do it, with what each said.
    """
    marks = "".join(
        f"-A FORWARD -m ecn --ecn-ip-ect {ect} -j TOS --set-tos 0x03/0x03\n" for ect in (1, 2)
    )
    nft = """table ip dsmip_congest {
  chain forward {
    type filter hook forward priority -150; policy accept;
    ip ecn { 1, 2 } ip ecn set ce
  }
}
"""
    said: list[str] = []
    for command, rules in (
        (["iptables-legacy-restore", "--noflush"], f"*mangle\n{marks}COMMIT\n"),
        (["nft", "-f", "-"], nft),
    ):
        failure = _feed(command, rules)
        if failure is None:
            return
        said.append(failure)
    raise LabError(f"no congestion marks: {'; '.join(said)}", hint="install iptables or nftables")


def _nft_unblock(rule: Block) -> str:
    return f"delete table ip {_nft_name(rule)}\n"


def _nft_name(rule: Block) -> str:
    """A table for each rule, so that it can go alone."""
    return f"dsmip_block_{rule.protocol}_{rule.port or 0}"


def rebind(rule: Rebind) -> None:
    """Have the calling thread's namespace, a NAT's, forget mappings: the next packet from inside
    gets a new one (call it within :func:`dsmip_ipsec.lab.netns.isolated`).

    :raises LabError: the kernel refused it, or there was none.
    """
    found = 0
    try:
        with NFCTSocket() as conntrack:
            for entry in list(conntrack.dump()):
                flow = NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_ORIG"))
                if rule.port is not None and (flow.proto, flow.dport) != (
                    socket.IPPROTO_UDP,
                    rule.port,
                ):
                    continue
                conntrack.entry("del", tuple_orig=flow)
                found += 1
    except (OSError, NetlinkError) as error:
        raise LabError(
            f"the mappings of {rule} can't be deleted: {error}",
            hint="does the kernel have nf_conntrack_netlink?",
        ) from None
    if not found:
        raise LabError(f"there is no mapping of {rule}", hint="which flows go through that NAT?")


def _feed(command: list[str], rules: str) -> str | None:
    """Run ``command`` on ``rules``: None, or what it complained about."""
    program = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return f"{command[0]} isn't installed"
    try:
        result = subprocess.run(
            [program, *command[1:]], input=rules, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return f"{command[0]}: {lines[0]}"
