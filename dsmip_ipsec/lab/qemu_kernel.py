"""A stock distribution kernel for a QEMU guest: its files, and an initramfs that leads to the host.

The kernel is the one that ``apt-get install linux-image-amd64`` puts below ``/boot`` and
``/lib/modules``. Where it can't be installed, ``$DSMIP_QEMU_KERNEL`` names a directory that its
package was unpacked into (``dpkg-deb -x``, then ``depmod -b DIR VERSION``).

Debian's own initramfs looks for disks for seconds. Ours has a static busybox and the modules for
virtio and 9p; it mounts the host's root file system, read-only, and runs our init there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import guest_code
from dsmip_ipsec.lab.guest_init import FAILED_MARK

INSTALL_HINT = "apt-get install qemu-system-x86 linux-image-amd64 busybox-static kmod"
KERNEL_VARIABLE = "DSMIP_QEMU_KERNEL"

# Where our shell is when the host's files are the root.
GUEST_SHELL = "/dev/busybox"

ROOT_TAG, SHARE_TAG = "root", "share"
# Large messages: a round trip to the server costs more than copying.
NINE_P = "trans=virtio,version=9p2000.L,msize=512000"

# Loaded in this order, each after those that it needs.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_console")
_PACKED = {".ko": "", ".ko.xz": "xz", ".ko.gz": "gzip", ".ko.zst": "zstd"}


@dataclass(frozen=True)
class QemuKernel:
    """``release`` is what ``uname -r`` will say; ``modules`` the directory of that name."""

    release: str
    image: Path
    modules: Path


def find_program(name: str) -> str:
    """Path of a program. Raises LabError when it isn't installed."""
    return guest_code.find_program(name, INSTALL_HINT)


def find_busybox() -> Path:
    """A busybox that needs no library. Raises LabError."""
    path = Path(find_program("busybox"))
    # Program headers of a dynamic one name the loader; it stands within the first page.
    with path.open("rb") as file:
        if b"/ld-linux" in file.read(4096):
            raise LabError(f"{path} needs libraries", hint="apt-get install busybox-static")
    return path


def find_kernel() -> QemuKernel:
    """The newest installed kernel that has its modules. Raises LabError."""
    unpacked = os.environ.get(KERNEL_VARIABLE, "")
    root = Path(os.path.abspath(unpacked or "/"))
    found = []
    for image in root.glob("boot/vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        for modules in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
            if (modules / "modules.dep").is_file():
                found.append(QemuKernel(release, image, modules))
                break
    if not found:
        raise LabError(
            f"no kernel with modules below {root} for a QEMU guest",
            hint=f"{INSTALL_HINT}; or unpack the kernel's package, run depmod -b on it and name "
            f"the directory in ${KERNEL_VARIABLE}",
        )
    newest = max(found, key=lambda kernel: _version(kernel.release))
    if not os.access(newest.image, os.R_OK):
        raise LabError(
            f"{newest.image} may not be read by this user",
            hint=f"chmod o+r it, or unpack the kernel's package and name the directory in "
            f"${KERNEL_VARIABLE}",
        )
    return newest


def _version(release: str) -> list[tuple[int, str]]:
    """Sorts 6.1.0-9 before 6.1.0-10."""
    return [(int(n or -1), word) for n, word in re.findall(r"([0-9]+)|([^0-9]+)", release)]


def load_order(dependencies: str, names: Iterable[str]) -> list[str]:
    """Paths of modules in an order in which they can be loaded.

    ``dependencies`` is the text of modules.dep: a line for each module, with the modules that it
    needs, all of them, the last to be loaded first. What isn't named there is built in. Raises
    LabError if the text is no such thing.
    """
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, colon, rest = line.partition(":")
        if not colon:
            raise LabError(f"modules.dep has the line {line!r}", hint="run depmod as root")
        needs[path] = rest.split()
        by_name[path.rpartition("/")[2].partition(".")[0].replace("-", "_")] = path
    order: dict[str, None] = {}
    for name in names:
        if name in by_name:
            path = by_name[name]
            order.update(dict.fromkeys([*reversed(needs[path]), path]))
    return list(order)


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    packed = next((how for end, how in _PACKED.items() if path.name.endswith(end)), None)
    if packed == "":
        return data
    if packed == "xz":
        import lzma

        try:
            return lzma.decompress(data)
        except lzma.LZMAError as error:
            raise ValueError(f"{path}: {error}") from error
    if packed == "gzip":
        import gzip

        return gzip.decompress(data)
    raise LabError(
        f"the module {path} is packed in a way that isn't known here",
        hint="use Debian's kernel packages",
    )


def initramfs(kernel: QemuKernel, busybox: Path, init: Path) -> bytes:
    """The archive that QEMU hands the kernel; ``init`` is on the host's file system.

    Raises LabError when a part of it can't be read.
    """
    try:
        order = load_order((kernel.modules / "modules.dep").read_text(), _MODULES)
        members = [Member(name, 0o40755) for name in ("bin", "dev", "proc", "host", "modules")]
        # The kernel opens it for init before devtmpfs is mounted.
        members.append(Member("dev/console", 0o20600, device=(5, 1)))
        members.append(Member("bin/busybox", 0o100755, busybox.read_bytes()))
        members.append(Member("init", 0o100755, _first_init(init).encode()))
        for number, path in enumerate(order):
            module = _read_module(kernel.modules / path)
            members.append(Member(f"modules/{number:02}", 0o100644, module))
    except (OSError, ValueError, EOFError) as error:
        raise LabError(
            f"can't read the parts of the guest's initramfs: {error}",
            hint="reinstall the kernel's package",
        ) from error
    return cpio(members)


def _first_init(init: Path) -> str:
    quoted = "'" + str(init).replace("'", "'\\''") + "'"
    return f"""\
#!/bin/busybox sh
export PATH=/bin
b=/bin/busybox
fail() {{ $b echo "{FAILED_MARK}$*"; while :; do $b sleep 3600; done; }}
$b mount -t proc proc /proc || fail /proc
mount -t devtmpfs devtmpfs /dev || fail /dev
for module in /modules/*; do insmod "$module" || fail "module $module"; done
# nosuid: in a user namespace the host's programs belong to nobody, and mount(8) is set-uid.
mount -t 9p -o {NINE_P},ro,nosuid,cache=loose {ROOT_TAG} /host || fail "the host's files"
# Our shell goes along: its own mount, mkdir and so on cost a tenth of starting the host's by 9p.
cp $b {GUEST_SHELL} || fail {GUEST_SHELL}
mount --move /dev /host/dev || fail /dev
$b mount --move /proc /host/proc || fail /proc
exec $b switch_root /host {GUEST_SHELL} sh {quoted}
"""


@dataclass(frozen=True)
class Member:
    """One file of an archive; ``mode`` with the bits of its type."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(members: Sequence[Member]) -> bytes:
    """A cpio archive in the "newc" format (Linux: initramfs buffer format), owned by root."""
    out = bytearray()
    for number, member in enumerate([*members, Member("TRAILER!!!", 0)]):
        name = member.name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
        fields = (number, member.mode, 0, 0, 1, 0, len(member.data), 0, 0, *member.device)
        out += b"070701" + b"".join(b"%08X" % value for value in (*fields, len(name), 0)) + name
        out += bytes(-len(out) % 4) + member.data
        out += bytes(-len(out) % 4)
    return bytes(out)
