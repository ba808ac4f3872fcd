"""The init script of a guest: the text of PID 1, written anew for each guest.

A shell script rather than Python: an interpreter takes most of a second to start in the guest.
What it must do before the command runs is little: file systems, modules, loopback, a heartbeat.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

GUEST_DIR = PurePosixPath("/run/dsmip")
# Where the command finds the share, whatever its path on the host.
GUEST_SHARE = GUEST_DIR / "share"
GUEST_HOME = GUEST_DIR / "home"

READY_MARK = "dsmip-guest: ready"
FAILED_MARK = "dsmip-guest: cannot set up: "

# Addresses of documentation (RFC 5737), a key of zeros: it exists for a moment, in a guest.
_TRIED_SA = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x100"
_TRIED_SA_KEY = f"aead 'rfc4106(gcm(aes))' 0x{bytes(20).hex()} 128"

# What programs expect to be able to write to; the root file system is the host's, read-only.
TMPFS = (
    ("/run", "0755"),
    ("/tmp", "1777"),  # noqa: S108 - the guest's own
    ("/var/tmp", "1777"),  # noqa: S108
    ("/var/log", "0755"),
    ("/var/lib/misc", "0755"),  # leases of dnsmasq
    ("/var/lib/dhcp", "0755"),
)
SBIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Mount:
    """A host directory that must be seen in the guest at ``target``.

    ``cover`` is a directory that no guest may look into; an empty tmpfs goes over it first.
    """

    source: Path
    target: Path
    cover: Path | None = None


@dataclass(frozen=True)
class Machine:
    """How init finds the host from one kind of guest.

    ``proc``: commands that mount /proc, before all others. ``prepare``: those that must come before
    any other mount of the host's files. ``bind`` and ``share``: commands that mount a host
    directory at the path that follows, or the share; ``{source}`` is the host's path. The three
    devices are for the output, the heartbeat and the stream; ``terminals``: they are serial lines.
    ``modules``: where directories named after releases are. ``file_backed``: its memory is a file.
    ``listing``: the host's directories must be readable for its user, not only searchable.
    ``preload``: modules that are loaded where they exist, before the command runs; those of
    ESP with AES-GCM must be among them, since an SA with it is tried then.
    """

    name: str
    bind: str
    share: str
    output: str
    heartbeat: str
    stream: str
    terminals: bool
    modules: str
    file_backed: bool
    proc: str = "mount -t proc proc /proc || fail /proc\n"
    prepare: str = ""
    listing: bool = False
    preload: Sequence[str] = ()


# Beside init, on the host: mount(8) without its set-uid bit.
PLAIN_MOUNT = "mount"

UML = Machine(
    name="uml",
    bind="mount -t hostfs -o ro,nosuid,{source} none",
    share="mount -t hostfs -o nosuid,{source} none",
    output="/dev/ttyS0",
    heartbeat="/dev/ttyS1",
    stream="/dev/ttyS2",
    terminals=True,
    modules="/usr/lib/uml/modules",
    file_backed=True,
    # In a user namespace the host's programs belong to nobody, and by its set-uid bit mount(8)
    # would make nobody of the guest's root. All are root here: nothing needs such bits.
    proc=f"""\
"${{0%/*}}/{PLAIN_MOUNT}" -t proc proc /proc || fail /proc
"${{0%/*}}/{PLAIN_MOUNT}" -o remount,bind,ro,nosuid / || fail nosuid
""",
    # What nearly every lab needs. One by one, a shell and modprobe for each, they take longer.
    preload=(
        *("veth", "tun", "sch_netem", "xfrm_user", "esp4", "esp6", "mip6"),
        *("iptable_nat", "iptable_filter", "xt_MASQUERADE", "xt_conntrack"),
        *("gcm", "ghash_generic", "ctr", "seqiv"),
        *("drbg", "hmac", "sha512_generic", "jitterentropy_rng"),
    ),
)

# The host's root stays within reach below, without what the guest mounts over it.
HOST_ROOT = GUEST_DIR / "host"


@dataclass(frozen=True)
class InitSpec:
    argv: Sequence[str]
    share: Path
    nonce: str
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    mounts: Sequence[Mount] = ()
    hostname: str = "dsmip-guest"
    heartbeat_s: int = 2
    machine: Machine = UML


def is_shadowed(path: Path) -> bool:
    """Whether the guest's own tmpfs lies over this host path."""
    hidden = [*(name for name, _ in TMPFS), "/dev", "/proc", "/sys"]
    return any(path == Path(name) or Path(name) in path.parents for name in hidden)


def render_init(spec: InitSpec) -> str:
    """The script's text. Everything that isn't ours is quoted; the environment is complete."""
    env = {
        "PATH": f"{GUEST_DIR}/bin:{SBIN_PATH}",
        "HOME": str(GUEST_HOME),
        "LANG": "C.UTF-8",
        # The output is a serial line, so isatty() holds; colours and redrawing must be asked for.
        "TERM": "dumb",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the code is read-only here; existing .pyc are used
        "DSMIP_GUEST": spec.machine.name,
        "DSMIP_SHARE": str(GUEST_SHARE),
        **spec.env,
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *spec.argv]
    tmpfs = "\n".join(
        f"[ ! -d {path} ] || mount -t tmpfs -o mode={mode} tmpfs {path} || fail {path}"
        for path, mode in TMPFS
    )
    machine = spec.machine
    devices = (machine.output, machine.heartbeat, machine.stream)
    lines_up = "\n".join(
        f"stty -F {device} raw -echo || fail {device}"
        if machine.terminals
        # Ports turn up a moment after their driver was loaded.
        else f"n=0; until [ -c {device} ]; do n=$((n+1)); [ $n -lt 600 ] || fail {device}; "
        "sleep 0.05; done"
        for device in devices
    )
    preload = ""
    if machine.preload:
        # The crypto API composes an SA's algorithm once, and asks modprobe for every part's
        # alternatives: in vain, so nobody is asked meanwhile.
        preload = f"""\
{GUEST_DIR}/bin/modprobe -q -a {" ".join(machine.preload)} || :
echo >/proc/sys/kernel/modprobe
{{ ip xfrm state add {_TRIED_SA} {_TRIED_SA_KEY} &&
ip xfrm state delete {_TRIED_SA}; }} 2>/dev/null || :
"""
    share = machine.share.format(source=shlex.quote(str(spec.share)))
    covers: list[Path] = []
    lines: list[str] = []
    for mount in spec.mounts:
        target = shlex.quote(str(mount.target))
        if mount.cover is not None and mount.cover not in covers:
            covers.append(mount.cover)
            over = shlex.quote(str(mount.cover))
            lines.append(f"mount -t tmpfs -o mode=0755 tmpfs {over} || fail {over}")
        bind = machine.bind.format(source=shlex.quote(str(mount.source)))
        lines.append(f"mkdir -p {target} && {bind} {target} || fail {target}")
    return f"""\
#!/bin/sh
PATH={SBIN_PATH}
export PATH
exec </dev/null
# The host ends the guest; PID 1 must not end (that is a kernel panic).
rest() {{ while :; do sleep 3600; done; }}
fail() {{ echo "{FAILED_MARK}$*"; rest; }}
{machine.proc}mount -t sysfs sys /sys || fail /sys
grep -q '^devtmpfs /dev ' /proc/mounts || mount -t devtmpfs devtmpfs /dev || fail /dev
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts || fail /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm || fail /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
# Opening this node loads the module (its alias is the device number).
[ -c /dev/net/tun ] || mknod -m 0666 /dev/net/tun c 10 200 || fail /dev/net/tun
{tmpfs}
mkdir -p {GUEST_SHARE} {GUEST_HOME} {GUEST_DIR}/bin {GUEST_DIR}/modules/lib/modules /run/lock
{machine.prepare}{share} {GUEST_SHARE} || fail share
{chr(10).join(lines)}
# The modules lie outside /lib/modules, which a small host may not even have.
ln -s {shlex.quote(machine.modules)}/"$(uname -r)" {GUEST_DIR}/modules/lib/modules/ || fail modules
# For one AES-GCM SA the crypto API asks for some twenty names one by one. Of those, composed ones
# ("gcm(aes)") and alternatives ("aes-all") are no modules here; not to look costs a second less.
cat >{GUEST_DIR}/bin/modprobe <<'END'
#!/bin/sh
case "$*" in *crypto-*'('*|*crypto-*-all) exit 1;; esac
exec /sbin/modprobe -d {GUEST_DIR}/modules "$@"
END
chmod 0755 {GUEST_DIR}/bin/modprobe
{preload}echo {GUEST_DIR}/bin/modprobe >/proc/sys/kernel/modprobe || fail modprobe
# A module in UML, and not loaded by the first IPv6 SA, address or policy.
[ -d /proc/sys/net/ipv6 ] || {GUEST_DIR}/bin/modprobe ipv6 || fail ipv6
echo {shlex.quote(spec.hostname)} >/proc/sys/kernel/hostname
ip link set lo up || fail lo
# One device carries the command's output and, last, its status, one the heartbeat, one the
# stream; the console is the kernel's. So nothing of the four can garble another. The first is
# opened once: a virtio port takes one opener at a time, and the command may leave it open.
{lines_up}
exec 3>{machine.output} || fail {machine.output}
while :; do echo >{machine.heartbeat}; sleep {spec.heartbeat_s}; done 3>&- &
cd {shlex.quote(spec.cwd)} || fail {shlex.quote(spec.cwd)}
echo "{READY_MARK}"
/usr/bin/setsid -w {shlex.join(words)} >&3 2>&1 3>&-
status=$?
# Written data is on the host at once; this is for files that are still mapped.
sync
echo {shlex.quote(spec.nonce)} "$status" >&3
rest
"""
