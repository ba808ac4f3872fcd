"""What the running kernel can do, found out by trying (see probe_tries.py).

The tries run in a child process with a network namespace of its own, so nothing of them is left.
Root can try everything. For an ordinary user a user namespace may serve; since no module can be
loaded from one, a refusal there often proves nothing and the result is *untested*.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.kernel.probe_tries import TRIES, CantTry, NotThere
from dsmip_ipsec.kernel.user_namespace import CLONE_NEWNET, unshare_as_root

# Refusals that come from code which is built in and looked: true in a user namespace as well.
_DEFINITE = {errno.ENOPROTOOPT}
# The kernel's own name where two share a number.
_NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN"}


class Status(StrEnum):
    OK = "ok"
    MISSING = "missing"
    UNTESTED = "untested"


@dataclass(frozen=True)
class Capability:
    """One result. ``reason`` is "" when ok; ``errno`` is a name such as EPROTONOSUPPORT or ""."""

    name: str
    title: str
    status: Status
    reason: str = ""
    errno: str = ""


@dataclass(frozen=True)
class Capabilities:
    """What a kernel can do. ``by`` is root, user namespace or user (then nothing was tried)."""

    release: str
    machine: str
    by: str
    results: tuple[Capability, ...]

    def __iter__(self) -> Iterator[Capability]:
        return iter(self.results)

    def __getitem__(self, name: str) -> Capability:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def ok(self, name: str) -> bool:
        """Whether the kernel was seen doing this; False for what was not tried."""
        return any(result.name == name and result.status is Status.OK for result in self.results)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Capabilities:
        """The inverse of to_dict (also through JSON). Raises KernelError."""
        try:
            assert isinstance(data, Mapping)
            results = tuple(
                Capability(**{**item, "status": Status(item["status"])}) for item in data["results"]
            )
            head = {key: str(data[key]) for key in ("release", "machine", "by")}
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise KernelError(
                "the result of the kernel probes can't be read",
                hint="run dsmip-ipsec doctor again; if it stays, report it",
            ) from error
        return cls(**head, results=results)


# What the labs can't do without; each entry is satisfied by any one of its names.
LAB_NEEDS: tuple[tuple[str, ...], ...] = (
    ("esp4",),
    ("esp6",),
    ("esp_in_udp",),
    ("tun",),
    ("veth",),
    ("mh_socket",),
    ("rcvmark",),
    ("netem",),
    ("nat_iptables", "nat_nft"),
)

# And with IPsec in the daemons. (Where netem is missing a relay of the lab's delays packets.)
USERSPACE_LAB_NEEDS: tuple[tuple[str, ...], ...] = (
    ("tun",),
    ("veth",),
    ("nat_iptables", "nat_nft"),
)


def lab_obstacles(capabilities: Capabilities, *, ipsec_in_kernel: bool = True) -> list[Capability]:
    """What keeps labs from running on this kernel; empty: nothing does."""
    return [
        capabilities[names[0]]
        for names in (LAB_NEEDS if ipsec_in_kernel else USERSPACE_LAB_NEEDS)
        if not any(capabilities.ok(name) for name in names)
    ]


def probe(only: Collection[str] | None = None, *, deadline_s: float = 60.0) -> Capabilities:
    """Try everything (or the names in ``only``) on the running kernel; takes a second or two.

    Never raises for what a kernel lacks. Raises KernelError for an unknown name.
    """
    names = list(TRIES) if only is None else list(only)
    if unknown := [name for name in names if name not in TRIES]:
        raise KernelError(f"no probe is called {unknown[0]}", hint=f"known: {', '.join(TRIES)}")
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(names, write_end)
    os.close(write_end)
    try:
        by, found, lost = _collect(read_end, time.monotonic() + deadline_s)
    finally:
        os.close(read_end)
        # It is its own process group: a program that hangs goes with it.
        for target in (-pid, pid):
            try:
                os.kill(target, signal.SIGKILL)
            except ProcessLookupError:
                continue
        os.waitpid(pid, 0)
    results = [
        found.get(name) or Capability(name, TRIES[name].title, Status.UNTESTED, lost)
        for name in names
    ]
    kernel = os.uname()
    return Capabilities(kernel.release, kernel.machine, by, tuple(results))


def _collect(descriptor: int, deadline: float) -> tuple[str, dict[str, Capability], str]:
    """Results as they come, one JSON document a line; what was lost gets the returned reason."""
    buffer = b""
    lost = "the trying process died"
    while True:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            lost = "the trying process hung"
            break
        data = os.read(descriptor, 65536)
        if not data:
            break
        buffer += data
    by = "user"
    found: dict[str, Capability] = {}
    for line in buffer.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        item = json.loads(line)
        if "by" in item:
            by = item["by"]
        elif "lost" in item:
            lost = item["lost"]
        else:
            found[item["name"]] = Capability(**{**item, "status": Status(item["status"])})
    return by, found, lost


def _child(names: list[str], descriptor: int) -> NoReturn:
    """Enter a namespace, try, tell; never returns into the code that forked."""

    def tell(item: Mapping[str, object]) -> None:
        os.write(descriptor, json.dumps(item).encode() + b"\n")

    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        by = _enter_namespace()
        tell({"by": by})
        for name in names:
            tell(asdict(_attempt(name, by)))
    except OSError as error:
        tell({"lost": f"needs root (no user namespace: {error.strerror})"})
    finally:
        os._exit(0)


def _enter_namespace() -> str:
    """Returns who we are there; raises OSError."""
    if os.geteuid() != 0:
        unshare_as_root(CLONE_NEWNET)
        return "user namespace"
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "root"


def _attempt(name: str, by: str) -> Capability:
    title = TRIES[name].title
    try:
        TRIES[name].run()
    except CantTry as error:
        return Capability(name, title, Status.UNTESTED, str(error))
    except NotThere as error:
        return _refused(name, str(error), error.code, by)
    except OSError as error:
        return _refused(name, error.strerror or str(error), error.errno or 0, by)
    except Exception as error:  # one broken try must not hide the others
        return Capability(name, title, Status.UNTESTED, f"the probe failed: {error!r}")
    return Capability(name, title, Status.OK)


def _refused(name: str, reason: str, code: int, by: str) -> Capability:
    title = TRIES[name].title
    number = _NAMES.get(code, "")
    if by != "root" and code not in _DEFINITE and (has_modules() or code == errno.EPERM):
        reason += " (in a user namespace; only root can load a module)"
        return Capability(name, title, Status.UNTESTED, reason, number)
    if code in (errno.EPERM, errno.EACCES):
        return Capability(name, title, Status.UNTESTED, f"{reason} (container?)", number)
    return Capability(name, title, Status.MISSING, reason, number)


def has_modules() -> bool:
    """Whether this kernel can load modules at all."""
    return Path("/proc/modules").exists()


def main(argv: list[str] | None = None) -> int:
    """``python -m dsmip_ipsec.kernel.probes [FILE]``: the results as JSON, for other processes."""
    parser = argparse.ArgumentParser(prog="dsmip_ipsec.kernel.probes")
    parser.add_argument("file", nargs="?", type=Path, help="write here instead of to stdout")
    args = parser.parse_args(argv)
    text = json.dumps(probe().to_dict(), indent=1)
    if args.file is None:
        print(text)
    else:
        args.file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
