"""Keeper of one guest: a small process between us and ``linux.uml`` or QEMU.

Run by path with an isolated interpreter (``python -I -S guest_keeper.py CONFIG.json``), so it
imports the standard library only. It has three duties:

* **Confine.** Before ``linux.uml`` starts, the process gives up root (uid, gid, groups; the kernel
  drops the capabilities with them), sets *no_new_privs* and, where the kernel has Landlock, may
  write beneath the given directories only. Root in the guest is therefore nobody on the host.
* **Bury.** ``linux.uml`` keeps helper threads and one traced process for each guest process, and
  these outlive a ``kill -9`` of it (one was seen spinning, untraced). As root, a PID namespace
  makes the kernel end them all together; else two nested subreapers adopt and kill them. (Not a
  user namespace of our own: where containers and hardened hosts refuse those, nothing would be
  gained.)
* **Watch.** When the process that started the keeper goes away for whatever reason, the guest
  ends and its directories are removed. When the keeper itself is killed, the processes below
  notice and end (the directories are then removed by the process that started it).

The processes: keeper -> warden (confines, and enters the namespace) -> tender (PID 1 there; the
warden itself where there is no namespace) -> linux.uml.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWPID = 0x20000000

# landlock(7); the numbers are the same on every architecture.
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
FS_WRITE_FILE = 1 << 1
FS_CHANGE_DIRECTORY = 0x1FF << 4  # remove dir/file, make char/dir/reg/sock/fifo/block/sym
FS_REFER = 1 << 13  # ABI 2
FS_TRUNCATE = 1 << 14  # ABI 3
NET_TCP = 3  # ABI 4: bind and connect
SCOPE = 3  # ABI 6: abstract sockets and signals

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class KeeperConfig:
    """What the keeper is told. ``{out}``, ``{ctl}``, ``{from}`` and ``{to}`` in ``argv`` become
    descriptor numbers."""

    argv: list[str]
    env: dict[str, str]
    parent_pid: int
    user: tuple[int, int] | None  # uid, gid to become; None: stay who we are
    writable: list[str]  # directories that the guest may write beneath, or devices
    fifos: dict[str, str]  # name in argv: path; the guest reads from `to` and writes to the others
    remove: list[str]  # directories to remove at the end
    remove_if_orphaned: list[str] = field(default_factory=list)  # when our starter is gone
    groups: list[int] = field(default_factory=list)  # supplementary ones to be in, with ``user``
    namespace: bool = True  # try for a PID namespace

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> KeeperConfig:
        data = json.loads(text)
        if data["user"] is not None:
            data["user"] = tuple(data["user"])
        return cls(**data)


def _syscall(number: int, *args: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _die_with(parent: int) -> None:
    """SIGKILL me when my parent ends; ``parent`` is a pidfd of it, opened before the fork."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:  # it ended before the signal was asked for
        os._exit(1)


def restrict_writes(writable: list[str]) -> int:
    """Confine this process to writing beneath ``writable``; no_new_privs must be set.

    Returns the Landlock ABI that was used, 0 when the kernel has none.
    """
    try:
        abi = _syscall(
            SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION
        )
    except OSError:
        return 0
    rights = FS_WRITE_FILE | FS_CHANGE_DIRECTORY
    rights |= FS_REFER if abi >= 2 else 0
    rights |= FS_TRUNCATE if abi >= 3 else 0
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped (u64 each)
    attr = struct.pack("=QQQ", rights, NET_TCP, SCOPE)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _syscall(SYS_LANDLOCK_CREATE_RULESET, attr, ctypes.c_size_t(len(attr)), 0)
    # A file may be given write and truncate only. O_PATH needs no permission on it.
    for path in [*writable, "/dev/null", "/dev/zero"]:
        allowed = rights if os.path.isdir(path) else rights & (FS_WRITE_FILE | FS_TRUNCATE)
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # struct landlock_path_beneath_attr (packed): allowed_access u64, parent_fd s32
        rule = struct.pack("=Qi", allowed, beneath)
        _syscall(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(beneath)
    _syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return abi


def _drop_bounds() -> None:
    """With an empty bounding set, execve(2) gives root no capability. This is for the root of a
    user namespace, who can't become anybody else; who isn't root may not do it, and needn't."""
    for capability in range(64):
        with contextlib.suppress(OSError):
            _prctl(PR_CAPBSET_DROP, capability)


def _confine(config: KeeperConfig) -> None:
    if config.user is not None:
        uid, gid = config.user
        os.setgroups(config.groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)  # all three: the kernel clears every capability set
    _drop_bounds()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if not restrict_writes(config.writable):
        print("guest keeper: no Landlock here; file permissions alone confine", flush=True)


def _status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def _tend(config: KeeperConfig, above: int, fds: dict[str, int], in_namespace: bool) -> NoReturn:
    """Start linux.uml and wait for its end or that of the process ``above`` (a pidfd)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    me = os.pidfd_open(os.getpid())
    uml = os.fork()
    if uml == 0:
        _guarded(_become_uml, config, me, fds)
    end = os.pidfd_open(uml)
    while not (ready := select.select([above, end], [], [], 1.0)[0]):
        _collect_orphans(uml)
    status = _status(os.waitpid(uml, 0)[1]) if end in ready else 1
    if not in_namespace:  # else my exit as PID 1 ends them all
        _kill_children()
    os._exit(status)


def _become_uml(config: KeeperConfig, tender: int, fds: dict[str, int]) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _die_with(tender)
    for descriptor in fds.values():
        os.set_inheritable(descriptor, True)
    argv = [word.format(**fds) for word in config.argv]
    os.execve(argv[0], argv, config.env)  # noqa: S606


def _collect_orphans(uml: int) -> None:
    """Reap what was adopted and has ended, but leave linux.uml itself to its waiter."""
    while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if info.si_pid == uml:
            return
        os.waitpid(info.si_pid, 0)


def _warden(config: KeeperConfig, keeper: int, fds: dict[str, int]) -> NoReturn:
    in_namespace = config.namespace and int(_libc.unshare(CLONE_NEWPID)) == 0
    _confine(config)
    if not in_namespace:
        _tend(config, keeper, fds, in_namespace)
    me = os.pidfd_open(os.getpid())
    tender = os.fork()
    if tender == 0:
        _guarded(_tend, config, me, fds, in_namespace)
    end = os.pidfd_open(tender)
    ready = select.select([keeper, end], [], [])[0]
    # Without me the tender ends, and with it, as PID 1, the namespace.
    os._exit(_status(os.waitpid(tender, 0)[1]) if end in ready else 1)


def _guarded(body: Callable[..., NoReturn], *args: object) -> NoReturn:
    """Run the body of a forked child: it must never return into its parent's code."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # The terminal hangs up when the keeper, its session's leader, is killed: then there is
        # work to do still.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        body(*args)
    except BaseException as error:
        print(f"guest keeper: cannot start the guest: {error}", flush=True)
    finally:
        os._exit(126)


def _kill_children() -> None:
    """Kill and collect every child, the adopted ones too, until none is left."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(word) for word in file.read().split()]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)  # killed, not yet dead; its own children come to us then


def keep(config: KeeperConfig) -> int:
    """Start the guest, wait until it, its starter or a signal ends it, clean up."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    status = 1
    try:
        starter = os.pidfd_open(config.parent_pid)
        if os.getppid() != config.parent_pid:
            return 1  # gone already, and its number perhaps somebody else's
        # The starter has them open both ways, so `to` has a writer: not at its end, nor blocking.
        modes = {name: os.O_RDONLY if name == "to" else os.O_WRONLY for name in config.fifos}
        fds = {
            name: os.open(path, modes[name] | os.O_CLOEXEC) for name, path in config.fifos.items()
        }
        me = os.pidfd_open(os.getpid())
        warden = os.fork()
        if warden == 0:
            _guarded(_warden, config, me, fds)
        for descriptor in fds.values():
            os.close(descriptor)
        end = os.pidfd_open(warden)
        ready = select.select([starter, end, wake_read], [], [])[0]
        if end in ready:
            status = _status(os.waitpid(warden, 0)[1])
    finally:
        _kill_children()
    return status


def main(path: str) -> int:
    with open(path) as file:
        config = KeeperConfig.from_json(file.read())
    status = keep(config)
    orphaned = os.getppid() != config.parent_pid
    for directory in config.remove + (config.remove_if_orphaned if orphaned else []):
        shutil.rmtree(directory, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
