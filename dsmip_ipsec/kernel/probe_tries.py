"""One try for each thing that we may want of a kernel, made in a throw-away network namespace.

Each function does the thing itself, with documentation addresses (RFC 5737, RFC 3849) and keys
that protect nothing, and returns if the kernel took it. Modules are loaded by the trying. Called
by probes.py only, in a child process that has unshared its network.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

# linux/udp.h, linux/xfrm.h, linux/netlink.h, asm-generic/socket.h, linux/if_tun.h
UDP_ENCAP = 100
UDP_ENCAP_ESPINUDP = 2
NETLINK_XFRM = 6
XFRM_MSG_MIGRATE = 0x21
XFRMA_MIGRATE = 17
NLM_F_REQUEST_ACK = 0x05
NLMSG_ERROR = 2
SO_RCVMARK = 75
IPPROTO_MH = 135
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001

V4 = ("192.0.2.1", "192.0.2.2")
V6 = ("2001:db8::1", "2001:db8::2")
# Not secrets: they never protect a packet.
CBC_SHA256 = (
    *("enc", "cbc(aes)", "0x" + "11" * 16),
    *("auth-trunc", "hmac(sha256)", "0x" + "22" * 32, "128"),
)


class NotThere(Exception):
    """The kernel refused. ``code`` as in errno (0: not known)."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class CantTry(Exception):
    """Something else than the kernel stands in the way."""


@dataclass(frozen=True)
class Try:
    name: str
    title: str
    run: Callable[[], None]


TRIES: dict[str, Try] = {}


def _try(name: str, title: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(run: Callable[[], None]) -> Callable[[], None]:
        TRIES[name] = Try(name, title, run)
        return run

    return register


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SBIN}")
    if found is None:
        raise CantTry(f"the program {name} is missing (Debian package {package})")
    return found


_ERRNO_OF = {os.strerror(code): code for code in sorted(errno.errorcode)}
# iproute2 ends with 2 when the kernel refused, mostly with 255 or 1 when it didn't even ask.
_ASKED = {"ip": (2,), "tc": (2,)}


def _command(package: str, program: str, *words: str, stdin: str = "") -> None:
    """Run a program. NotThere, with what it complained about, when the kernel refused; CantTry
    when the program is missing, hangs or doesn't know the words."""
    try:
        done = subprocess.run(
            [_program(program, package), *words],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
            # nobody's /run isn't writable for the lock of iptables
            env={
                "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
                "LC_ALL": "C",
                "XTABLES_LOCKFILE": "/dev/null",
            },
        )
    except subprocess.TimeoutExpired:
        raise CantTry(f"{program} didn't answer within 10 s") from None
    if done.returncode == 0:
        return
    complaint = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    text = complaint[0] if complaint else f"{program} ended with {done.returncode}"
    text = text.removeprefix("RTNETLINK answers: ").removeprefix("Error: ")
    code = next((_ERRNO_OF[known] for known in _ERRNO_OF if text.rstrip(".").endswith(known)), 0)
    if not code and done.returncode not in _ASKED.get(program, (done.returncode,)):
        raise CantTry(f"{program}: {text}")
    raise NotThere(text, code)


def _ip(*words: str) -> None:
    _command("iproute2", "ip", *words)


def _state(ends: tuple[str, str], spi: str, *words: str) -> None:
    _ip("xfrm", "state", "add", "src", ends[0], "dst", ends[1], "proto", "esp", "spi", spi, *words)


@_try("esp4", "ESP over IPv4")
def _esp4() -> None:
    _state(V4, "0x1001", "mode", "tunnel", *CBC_SHA256)


@_try("esp6", "ESP over IPv6")
def _esp6() -> None:
    # Where IPv6 is a module, a socket loads it, but an SA doesn't.
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    _state(V6, "0x1002", "mode", "transport", *CBC_SHA256)


@_try("esp_gcm", "AES-GCM for ESP")
def _esp_gcm() -> None:
    key = "0x" + "33" * 20
    _state(V4, "0x1003", "mode", "tunnel", "aead", "rfc4106(gcm(aes))", key, "128")


def _encap_socket(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)


@_try("esp_in_udp", "ESP in UDP over IPv4 (RFC 3948)")
def _esp_in_udp() -> None:
    _encap_socket(socket.AF_INET)
    encap = ("encap", "espinudp", "4500", "4500", "0.0.0.0")  # noqa: S104
    _state(V4, "0x1004", "mode", "tunnel", *CBC_SHA256, *encap)


@_try("esp_in_udp6", "ESP in UDP over IPv6")
def _esp_in_udp6() -> None:
    _encap_socket(socket.AF_INET6)
    _state(V6, "0x1005", "mode", "tunnel", *CBC_SHA256, "encap", "espinudp", "4500", "4500", "::")


@_try("migrate", "moving policies and SAs (XFRM_MSG_MIGRATE)")
def _migrate() -> None:
    """Ask for the move of a policy that isn't there. ENOENT says that the kernel looked for it,
    ENOPROTOOPT that it was built without CONFIG_XFRM_MIGRATE."""
    old = [socket.inet_pton(socket.AF_INET6, address) for address in V6]
    new = socket.inet_pton(socket.AF_INET6, "2001:db8::3")
    # struct xfrm_selector: daddr, saddr (16 each), dport, dport_mask, sport, sport_mask,
    # family (u16 each), prefixlen_d, prefixlen_s, proto (u8 each), ifindex, user: 56 octets
    selector = old[1] + old[0] + struct.pack("=5H3B3xiI", 0, 0, 0, 0, 10, 128, 128, 0, 0, 0)
    # struct xfrm_userpolicy_id: sel, index u32, dir u8 (XFRM_POLICY_OUT): 64 octets
    policy = selector + struct.pack("=IB3x", 0, 1)
    # struct xfrm_user_migrate: old_daddr, old_saddr, new_daddr, new_saddr, proto u8, mode u8,
    # reserved u16, reqid u32, old_family u16, new_family u16: 76 octets
    move = old[1] + old[0] + old[1] + new + struct.pack("=BBHIHH", 50, 1, 0, 1, 10, 10)
    assert len(policy) == 64
    assert len(move) == 76
    body = policy + struct.pack("=HH", 4 + len(move), XFRMA_MIGRATE) + move
    head = struct.pack("=IHHII", 16 + len(body), XFRM_MSG_MIGRATE, NLM_F_REQUEST_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM) as sock:
        sock.settimeout(5)
        sock.sendto(head + body, (0, 0))
        answer = sock.recv(65536)
    kind, code = struct.unpack_from("=4xH10xi", answer)
    if kind != NLMSG_ERROR or -code not in (0, errno.ENOENT):
        raise NotThere(os.strerror(-code), -code)


def _mip6(protocol: str) -> None:
    _ip(
        *("xfrm", "state", "add", "src", V6[0], "dst", V6[1], "proto", protocol),
        *("mode", "ro", "coa", "2001:db8::3"),
    )


@_try("mip6_hao", "home address option (RFC 6275 §6.3)")
def _mip6_hao() -> None:
    _mip6("hao")


@_try("mip6_rt2", "type 2 routing header (RFC 6275 §6.4)")
def _mip6_rt2() -> None:
    _mip6("route2")


@_try("sub_policy", "XFRM sub policies")
def _sub_policy() -> None:
    _ip("xfrm", "policy", "add", "src", V6[0], "dst", V6[1], "dir", "out", "ptype", "sub")


def _link(kind: str, **attributes: object) -> None:
    # Here, because importing it takes most of a second in a guest.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ipr:
        try:
            ipr.link("add", ifname=f"try{kind}"[:15], kind=kind, **attributes)
        except NetlinkError as error:
            raise NotThere(os.strerror(error.code), error.code) from None


@_try("dummy", "dummy links")
def _dummy() -> None:
    _link("dummy")


@_try("veth", "veth pairs")
def _veth() -> None:
    _link("veth", peer="trypeer")


@_try("bridge", "bridges")
def _bridge() -> None:
    _link("bridge")


@_try("sit", "IPv6 in IPv4 (sit)")
def _sit() -> None:
    _link("sit", sit_local=V4[0], sit_remote=V4[1])


@_try("ipip", "IPv4 in IPv4 (ipip)")
def _ipip() -> None:
    _link("ipip", ipip_local=V4[0], ipip_remote=V4[1])


@_try("ip6tnl", "IPv4 and IPv6 in IPv6 (ip6tnl)")
def _ip6tnl() -> None:
    _link("ip6tnl", ip6tnl_local=V6[0], ip6tnl_remote=V6[1])


@_try("xfrm_interface", "XFRM interfaces")
def _xfrm_interface() -> None:
    _ip("link", "add", "tryxfrm", "type", "xfrm", "dev", "lo", "if_id", "7")


@_try("tun", "TUN devices")
def _tun() -> None:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        # struct ifreq: name 16, flags u16, padding
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"trytun", IFF_TUN_NO_PI))
    finally:
        os.close(device)


def _load_fou() -> None:
    """Its netlink family isn't an alias of the module on older kernels: nothing else loads it."""
    with contextlib.suppress(NotThere, CantTry):
        _command("kmod", "modprobe", "fou")


@_try("fou_listen", "IP in UDP: receive (FOU)")
def _fou_listen() -> None:
    _load_fou()
    _ip("fou", "add", "port", "5555", "ipproto", "41")


@_try("gue_listen", "IP in UDP: receive either family (GUE)")
def _gue_listen() -> None:
    _load_fou()
    _ip("fou", "add", "port", "5556", "gue")


@_try("fou_send", "IP in UDP: send (FOU)")
def _fou_send() -> None:
    """Links are accepted by kernels that can't send, so look whether a datagram comes out."""
    _load_fou()
    _ip("link", "set", "lo", "up")
    for address in V4:
        # It may be there from an earlier try.
        with contextlib.suppress(NotThere):
            _ip("address", "add", f"{address}/32", "dev", "lo")
    # The other way round than the try of ipip: the kernel takes a pair of ends once.
    _ip(
        *("link", "add", "tryfou", "type", "ipip", "local", V4[1], "remote", V4[0]),
        *("encap", "fou", "encap-sport", "4191", "encap-dport", "5557"),
    )
    _ip("link", "set", "tryfou", "up")
    _ip("route", "add", "198.51.100.0/24", "dev", "tryfou", "src", V4[1])
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((V4[0], 5557))
        receiver.settimeout(1)
        try:
            sender.sendto(b"try", ("198.51.100.1", 9))
            data, source = receiver.recvfrom(2048)
        except TimeoutError:
            raise NotThere("the link was made, but sends nothing") from None
    if source != (V4[1], 4191) or data[:1] != b"\x45":
        raise NotThere("the link was made, but sends something else")


@_try("nat_iptables", "NAT by iptables-legacy (MASQUERADE)")
def _nat_iptables() -> None:
    rule = ("-t", "nat", "-A", "POSTROUTING", "-o", "lo", "-p", "udp", "-j", "MASQUERADE")
    _command("iptables", "iptables-legacy", *rule, "--to-ports", "20000-29999")


@_try("nat_nft", "NAT by nftables (masquerade)")
def _nat_nft() -> None:
    rules = (
        "table ip try {\nchain post {\ntype nat hook postrouting priority 100\n"
        "meta l4proto udp masquerade to :20000-29999\n}\n}\n"
    )
    _command("nftables", "nft", "-f", "-", stdin=rules)


@_try("netem", "delay and loss (netem)")
def _netem() -> None:
    _command("iproute2", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "20ms")


@_try("mh_socket", "raw Mobility Header sockets")
def _mh_socket() -> None:
    socket.socket(socket.AF_INET6, socket.SOCK_RAW, IPPROTO_MH).close()


@_try("rcvmark", "packet marks at a socket (SO_RCVMARK)")
def _rcvmark() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
