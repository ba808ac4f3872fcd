"""The NAPT of a lab's ``nat`` nodes, and what routers block: iptables' legacy back end, or nftables
where that is missing.

Both are given as one rule set to one process. ``mapping = "random"`` draws from ports above 20000
only, so that IKE's 4500 and DSMIPv6's 4191 come out as another port always, not just usually.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from ..errors import LabError
from .spec_models import Block, Nat

_PORTS = "20000-65535"
_ENDS = ("sport", "dport")
_PROTOCOLS = {"ipip": 4, "ipv6": 41, "esp": 50}  # IANA's protocol numbers


def iptables_rules(nat: Nat) -> str:
    """The rule set as iptables-restore reads it.

    The filter is that of RFC 4787 §5's address and port dependent filtering, made explicit:
    nothing comes in from outside that didn't start inside. Echo requests to the NAT itself are
    answered, since people ping a NAT to see whether it's there.
    """
    ports = f" --random --to-ports {_PORTS}" if nat.mapping == "random" else ""
    outside = nat.outside
    return f"""*nat
-A POSTROUTING -o {outside} -p udp -j MASQUERADE{ports}
-A POSTROUTING -o {outside} -p tcp -j MASQUERADE{ports}
-A POSTROUTING -o {outside} -j MASQUERADE
COMMIT
*filter
-A INPUT -i {outside} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i {outside} -p icmp -m icmp --icmp-type echo-request -j ACCEPT
-A INPUT -i {outside} -j DROP
-A FORWARD -i {outside} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i {outside} -j DROP
COMMIT
"""


def nft_rules(nat: Nat) -> str:
    """The same rule set as nft reads it."""
    ports = f" to :{_PORTS} random" if nat.mapping == "random" else ""
    outside = nat.outside
    return f"""table ip dsmip_nat {{
  chain postrouting {{
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
    iifname "{outside}" ct state established,related accept
    iifname "{outside}" drop
  }}
}}
"""


def install(nat: Nat) -> None:
    """Make the calling thread's namespace that NAT (call it within
    :func:`dsmip_ipsec.lab.netns.isolated`).

    :raises LabError: neither iptables nor nftables can do it, with what each said.
    """
    said: list[str] = []
    for command, rules in (
        (["iptables-legacy-restore"], iptables_rules(nat)),
        (["nft", "-f", "-"], nft_rules(nat)),
    ):
        failure = _feed(command, rules)
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


def block(rule: Block) -> None:
    """Have the calling thread's namespace drop some of what it would forward (call it
    within :func:`dsmip_ipsec.lab.netns.isolated`).

    :raises LabError: neither iptables nor nftables can do it, with what each said.
    """
    if rule.protocol == "native-ipv6":
        _blackhole_ipv6()
        return
    if rule.port is None:
        lines = [f"-I FORWARD -p {_PROTOCOLS[rule.protocol]} -j DROP"]
    else:
        lines = [f"-I FORWARD -p {rule.protocol} --{end} {rule.port} -j DROP" for end in _ENDS]
    said: list[str] = []
    for command, rules in (
        (["iptables-legacy-restore", "--noflush"], "\n".join(["*filter", *lines, "COMMIT", ""])),
        (["nft", "-f", "-"], _nft_block(rule)),
    ):
        failure = _feed(command, rules)
        if failure is None:
            return
        said.append(failure)
    raise LabError(
        f"{rule} can't be blocked: {'; '.join(said)}",
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
    return f"""table ip dsmip_block {{
  chain forward {{
    type filter hook forward priority -10; policy accept;
{drops}  }}
}}
"""


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
