"""Whether KVM can be used for a guest: tried, since /dev/kvm alone promises little.

On some nested hosts KVM refuses registers that QEMU sets, or emulates each instruction and is
slower than QEMU's own translation (TCG). So a ROM of six octets runs first, as fast as real
hardware would.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

KVM_DEVICE = Path("/dev/kvm")

# Hides the register (IA32_ARCH_CAPABILITIES) whose value nested hosts often refuse.
KVM_CPU = "host,-arch-capabilities"
_PORT = 0xF4
_TOLD = 0x10
# QEMU's isa-debug-exit turns an octet into the exit status.
_EXPECTED = (_TOLD << 1) | 1
# Hardware takes 10 ms for the loop, and QEMU 0.1 s to start.
_LOOPS = 10_000_000
_LIMIT_S = 2.0
_ROM_SIZE = 0x10000
_START = 0xFF00


def rom() -> bytes:
    """A 64 KB BIOS: counts to _LOOPS, then leaves by the debug port."""
    code = (
        b"\x66\xb9" + _LOOPS.to_bytes(4, "little")  # mov ecx, loops
        + b"\x66\x49"  # again: dec ecx
        + b"\x75\xfc"  # jnz again
        + bytes((0xB0, _TOLD, 0xE6, _PORT))  # mov al, told; out port, al
        + b"\xf4"  # hlt
    )  # fmt: skip
    image = bytearray(b"\xf4" * _ROM_SIZE)
    image[_START : _START + len(code)] = code
    # The processor starts sixteen octets below the end: jmp near to the code.
    offset = (_START - (_ROM_SIZE - 16 + 3)) & 0xFFFF
    image[-16:-13] = b"\xe9" + offset.to_bytes(2, "little")
    return bytes(image)


def kvm_works(qemu: str, user: tuple[int, int] | None, groups: Sequence[int]) -> bool:
    """Whether a guest of ``user`` (None: we) would run on KVM, at the speed of hardware."""
    if not KVM_DEVICE.exists():
        return False
    with tempfile.TemporaryDirectory(prefix="dsmip-kvm-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the guest's user reads the ROM
        (directory / "rom").write_bytes(rom())
        (directory / "rom").chmod(0o644)
        return run_rom(qemu, directory / "rom", ["-accel", "kvm", "-cpu", KVM_CPU], user, groups)


def run_rom(
    qemu: str,
    image: Path,
    accelerator: Sequence[str],
    user: tuple[int, int] | None = None,
    groups: Sequence[int] = (),
) -> bool:
    """Whether QEMU with these options runs the ROM to its end in time."""
    command = [
        *(qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"),
        *accelerator,
        *("-m", "16", "-bios", str(image), "-no-reboot"),
        *("-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=1"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
            cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else list(groups),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == _EXPECTED
