"""The parts of a QEMU guest that need no boot: initramfs, kernel's files, the trial of KVM."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import guest_code, pace, qemu_accel, qemu_kernel
from dsmip_ipsec.lab.guest_qemu import QEMU

DEPENDENCIES = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/a/virtio.ko kernel/a/ring.ko
kernel/fs/netfs.ko:
kernel/a/virtio.ko: kernel/a/ring.ko
kernel/a/ring.ko:
"""


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    names = ["9pnet_virtio", "9p", "built_in"]
    order = [Path(p).name for p in qemu_kernel.load_order(DEPENDENCIES, names)]
    assert order == ["ring.ko", "virtio.ko", "9pnet.ko", "9pnet_virtio.ko.xz", "netfs.ko", "9p.ko"]
    with pytest.raises(LabError, match="the line"):
        qemu_kernel.load_order("no colon here", [])


def kernel_tree(root: Path, *releases: str) -> None:
    for release in releases:
        modules = root / "lib/modules" / release
        (modules / "kernel").mkdir(parents=True)
        (root / "boot").mkdir(exist_ok=True)
        (root / "boot" / f"vmlinuz-{release}").write_bytes(b"")
        (modules / "modules.dep").write_text("kernel/9p.ko.xz:\n")
        (modules / "kernel/9p.ko.xz").write_bytes(lzma.compress(b"the module"))


def test_the_newest_kernel_with_modules_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(qemu_kernel.KERNEL_VARIABLE, str(tmp_path))
    with pytest.raises(LabError) as error:
        qemu_kernel.find_kernel()
    assert "linux-image" in error.value.hint
    kernel_tree(tmp_path, "6.1.0-9-amd64", "6.1.0-10-amd64")
    (tmp_path / "boot" / "vmlinuz-7.0.0-1-amd64").write_bytes(b"without modules")
    found = qemu_kernel.find_kernel()
    assert found.release == "6.1.0-10-amd64"
    assert found.modules == tmp_path / "lib/modules/6.1.0-10-amd64"


def test_initramfs_is_what_cpio_reads(tmp_path: Path) -> None:
    """busybox, which wasn't written by us, unpacks it."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "apt-get install busybox-static"
    kernel_tree(tmp_path, "6.1.0-1-amd64")
    release = tmp_path / "lib/modules/6.1.0-1-amd64"
    kernel = qemu_kernel.QemuKernel(release.name, tmp_path / "none", release)
    archive = qemu_kernel.initramfs(kernel, Path(busybox), Path("/tmp/it's here/init"))
    listed = subprocess.run(
        [busybox, "cpio", "-t"], input=archive, capture_output=True, check=True
    ).stdout.decode()
    assert {"dev/console", "bin/busybox", "init", "modules/00"} <= set(listed.split())
    into = tmp_path / "into"
    into.mkdir()
    subprocess.run(
        [busybox, "cpio", "-idm", "init", "modules/00"],
        input=archive, cwd=into, check=True, capture_output=True,
    )  # fmt: skip
    assert (into / "modules/00").read_bytes() == b"the module"
    assert os.access(into / "init", os.X_OK)
    subprocess.run([busybox, "sh", "-n", str(into / "init")], check=True)
    assert """'/tmp/it'\\''s here/init'""" in (into / "init").read_text()


def test_missing_module_file_is_an_error(tmp_path: Path) -> None:
    kernel_tree(tmp_path, "6.1.0-1-amd64")
    release = tmp_path / "lib/modules/6.1.0-1-amd64"
    kernel = qemu_kernel.QemuKernel(release.name, tmp_path / "none", release)
    (release / "kernel/9p.ko.xz").write_bytes(b"damaged")
    with pytest.raises(LabError, match="initramfs"):
        qemu_kernel.initramfs(kernel, Path("/bin/sh"), Path("/init"))


def test_dynamic_busybox_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("/bin/ls", tmp_path / "busybox")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError) as error:
        qemu_kernel.find_busybox()
    assert "busybox-static" in error.value.hint


def test_rom_tells_a_processor_that_runs_from_one_that_does_not(tmp_path: Path) -> None:
    """On QEMU's own processor, which is everywhere, and as fast as is asked for."""
    qemu = qemu_kernel.find_program(QEMU)
    accelerator = ["-accel", "tcg", "-cpu", "max"]
    rom = tmp_path / "rom"
    rom.write_bytes(qemu_accel.rom())
    assert qemu_accel.run_rom(qemu, rom, accelerator)
    image = bytearray(qemu_accel.rom())
    image[-16:-14] = b"\xeb\xfe"  # jmp to itself
    rom.write_bytes(image)
    assert not qemu_accel.run_rom(qemu, rom, accelerator)
    assert not qemu_accel.run_rom(str(tmp_path / "none"), rom, accelerator)


@pytest.mark.parametrize(
    ("told", "factor"), [("", 1.0), ("8", 8.0), ("0.1", 1.0), ("x", 1.0), ("1e9", 100.0)]
)
def test_pace_scales_deadlines(monkeypatch: pytest.MonkeyPatch, told: str, factor: float) -> None:
    monkeypatch.setenv(pace.PACE_VARIABLE, told)
    assert pace.scaled(2.5) == 2.5 * factor


@pytest.mark.as_root
def test_directory_above_that_can_be_searched_only_is_covered(tmp_path: Path) -> None:
    """QEMU's file server opens the directories that it looks into; User-Mode Linux doesn't."""
    above = Path("/var/lib") / f"dsmip-test-{os.getpid()}"
    root = above / "clone"
    root.mkdir(parents=True)
    try:
        above.chmod(0o711)
        (root / "file").write_text("x")
        assert guest_code.make_visible([root], (65534, 65534), tmp_path) == []
        [mount] = guest_code.make_visible([root], (65534, 65534), tmp_path, listing=True)
        assert (mount.target, mount.cover) == (root, above)
        assert (mount.source / "file").read_text() == "x"
    finally:
        (root / "file").unlink()
        root.rmdir()
        above.rmdir()
