"""The strongSwan of Debian's next release, unpacked into a directory: nothing is installed.

``python tests/strongswan6.py DIRECTORY`` fetches what is missing (some 20 MB, once) with apt-get,
from the mirror that this machine uses anyway, and prints the directory to chroot to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = os.environ.get("DSMIP_NEXT_DEBIAN", "trixie")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = (
    "charon-systemd", "strongswan-swanctl", "libstrongswan", "libstrongswan-standard-plugins",
    "strongswan-libcharon", "libcharon-extra-plugins",
    # What they are linked with.
    "libc6", "libssl3t64", "libsystemd0", "libcap2", "libgcc-s1", "libzstd1", "liblzma5",
    "libgcrypt20", "libgpg-error0", "liblz4-1", "zlib1g",
)  # fmt: skip


class Unavailable(Exception):
    """It can't be had; why."""


def tree(directory: Path) -> Path:
    """The root of what is unpacked below ``directory``. :raises Unavailable: it can't be had."""
    root = directory / SUITE
    if not root.is_dir():
        fresh = directory / f"{SUITE}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        for package in _fetch(directory / "apt"):
            _run(["dpkg", "-x", str(package), str(fresh)])
        # As base-files has them; and where the test mounts something.
        for name in ("bin", "sbin", "lib", "lib64"):
            (fresh / name).symlink_to(f"usr/{name}")
        for name in ("tmp", "dev", "proc", "run"):
            (fresh / name).mkdir()
        fresh.rename(root)
        shutil.rmtree(directory / "apt")
    return root


def _fetch(work: Path) -> list[Path]:
    """The packages' files. apt-get gets lists, cache and status of its own."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {SUITE} main\n")
    options = [
        word
        for option in (
            f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=-", f"Dir::State={work}",
            f"Dir::State::status={work / 'status'}", f"Dir::Cache={work / 'cache'}",
            "APT::Sandbox::User=", "Acquire::Languages=none", "Acquire::Retries=2",
        )
        for word in ("-o", option)
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *options]
    _run([*apt, "update"])
    _run([*apt, "download", *PACKAGES], cwd=work / "debs")
    return sorted((work / "debs").glob("*.deb"))


def _mirror() -> str:
    """The one that this machine's own Debian comes from."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    codename = release.get("VERSION_CODENAME", "").strip('"')
    for line in _run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"]).splitlines():
        site, _, name = line.partition(" ")
        if name == codename:
            return site
    raise Unavailable(f"apt has no source for this machine's own release {codename!r}")


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode or "\nW: Failed" in f"\n{done.stderr}":
        raise Unavailable(f"{command[0]} {command[-1]}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(tree(Path(sys.argv[1]).resolve()))
    except Unavailable as error:
        sys.exit(f"strongSwan of Debian {SUITE} can't be had: {error}")
