"""QEMU guests: a stock distribution kernel, with KVM where it serves, else without.

The interface is :class:`~dsmip_ipsec.lab.guest.Guest`'s. The host's files come by 9p, which needs
neither a privilege nor another daemon; output, heartbeat and stream are virtio ports, the console
a serial line. There is no network device: what a lab needs, it makes inside.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import guest_code, qemu_image, qemu_kernel
from dsmip_ipsec.lab.guest import Guest, Start, guest_user
from dsmip_ipsec.lab.guest_init import HOST_ROOT, Machine
from dsmip_ipsec.lab.pace import TRANSLATED
from dsmip_ipsec.lab.qemu_accel import KVM_CPU, KVM_DEVICE, kvm_works

QEMU = "qemu-system-x86_64"

MACHINE = Machine(
    name="qemu",
    # Seen from the mount of the root, which the guest's own tmpfs doesn't cover.
    bind=f"mount -o bind {HOST_ROOT}{{source}}",
    # Written through, so that what a killed guest wrote is there; mmap: daemons map files.
    share=f"mount -t 9p -o {qemu_kernel.NINE_P},cache=mmap {qemu_kernel.SHARE_TAG}",
    output="/dev/vport0p1",
    heartbeat="/dev/vport0p2",
    stream="/dev/vport0p3",
    terminals=False,
    modules="/lib/modules",
    file_backed=False,
    proc="",  # the initramfs has mounted it
    listing=True,
    # For its first AES-GCM SA the kernel would ask modprobe for each of these, and for twenty names
    # more that the processor's own AES instructions make needless: 22 s without KVM, and charon's
    # peer has given up by then.
    preload=(
        *("esp4", "esp6", "mip6", "xfrm_user", "aesni_intel", "seqiv", "cryptd"),
        *("drbg", "jitterentropy_rng", "sha512_generic", "sha3_generic", "hmac"),
    ),
    prepare=f"mkdir -p {HOST_ROOT} && mount -o bind / {HOST_ROOT} || fail {HOST_ROOT}\n",
)

# No_timer_check and tsc: without, some tests of the clocks fail when the host is busy. Blacklisted
# is what takes long without KVM and serves nothing here: certificates for signatures of modules,
# which aren't asked for, and a self-test.
_KERNEL_OPTIONS = (
    "console=ttyS0 panic=-1 loglevel=4 mitigations=off nokaslr no_timer_check tsc=reliable "
    "random.trust_cpu=on cryptomgr.notests audit=0 apparmor=0 initcall_blacklist="
    "load_system_certificate_list,blacklist_init,crypto_kdf108_init"
)
_PC = "pc,vmport=off,smm=off,graphics=off,i8042=off,hpet=off"


def find_qemu_parts() -> qemu_kernel.QemuKernel:
    """Look for all that a guest needs; returns its kernel. Raises LabError."""
    qemu_kernel.find_program(QEMU)
    qemu_kernel.find_busybox()
    return qemu_kernel.find_kernel()


class QemuGuest(Guest):
    """A stock kernel under ``qemu-system-x86_64``."""

    machine = MACHINE
    _accelerated: bool | None = None

    @property
    def accelerated(self) -> bool:
        """Whether it runs on KVM; tried once."""
        if self._accelerated is None:
            qemu = qemu_kernel.find_program(QEMU)
            self._accelerated = kvm_works(qemu, guest_user(), _kvm_groups())
        return self._accelerated

    @property
    def pace(self) -> float:
        return 1.0 if self.accelerated else TRANSLATED

    def find_parts(self) -> None:
        self._kernel = find_qemu_parts()
        self.machine = replace(MACHINE, modules=str(self._kernel.modules.parent))

    def parts(self) -> list[Path]:
        installed = Path("/lib/modules") in self._kernel.modules.parents
        return [] if installed else [self._kernel.modules]

    def start(self, run_dir: Path, mem_dir: Path, user: guest_code.User | None) -> Start:
        initrd = run_dir / "initrd"
        try:
            initrd.write_bytes(
                qemu_kernel.initramfs(self._kernel, qemu_kernel.find_busybox(), run_dir / "init")
            )
        except OSError as error:
            raise LabError(
                f"can't write the guest's initramfs: {error.strerror}", hint="is the disk full?"
            ) from error
        initrd.chmod(0o644)
        # Only by these names does QEMU take two FIFOs as one line for both ways.
        fifos = [run_dir / "to", run_dir / "from"]
        for end, fifo in zip(("in", "out"), fifos, strict=True):
            (run_dir / f"stream.{end}").symlink_to(fifo)
            if user is not None:
                os.chown(fifo, *user)
        return Start(
            self._command(qemu_image.unpacked(self._kernel.image, run_dir, user), initrd),
            {"PATH": "/usr/bin:/bin", "TMPDIR": str(mem_dir), "HOME": str(mem_dir)},
            writable=[*map(str, fifos), *([str(KVM_DEVICE)] if self.accelerated else [])],
            groups=_kvm_groups() if self.accelerated else [],
        )

    def _command(self, kernel: Path, initrd: Path) -> list[str]:
        accelerator = ("kvm", KVM_CPU) if self.accelerated else ("tcg", "max")
        command = [
            *(qemu_kernel.find_program(QEMU), "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-machine", _PC),
            *("-accel", accelerator[0], "-cpu", accelerator[1], "-smp", "1"),
            *("-m", f"{self.mem_mb}M"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", _KERNEL_OPTIONS),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci"),
        ]
        # The numbers in braces are put in by the keeper, which has the descriptors.
        for number, name in enumerate(("out", "ctl"), start=1):
            command += ["-add-fd", f"fd={{{name}}},set={number}"]
            command += ["-chardev", f"file,id={name},path=/dev/fdset/{number},append=on"]
        command += ["-chardev", f"pipe,id=stream,path={initrd.parent}/stream"]
        for name in ("out", "ctl", "stream"):
            command += ["-device", f"virtserialport,chardev={name},name={name}"]
        files = "security_model=none,multidevs=remap"
        command += [
            *("-virtfs", f"local,path=/,mount_tag={qemu_kernel.ROOT_TAG},readonly=on,{files}"),
            *("-virtfs", f"local,path={self.share},mount_tag={qemu_kernel.SHARE_TAG},{files}"),
        ]
        return command


def _kvm_groups() -> list[int]:
    """Which group a guest of root must be in to open /dev/kvm."""
    try:
        return [os.stat(KVM_DEVICE).st_gid]
    except OSError:
        return []
