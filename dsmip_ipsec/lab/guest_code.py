"""What the guest must be able to read: the interpreter, the environment, the project.

The guest sees the host's files with the eyes of the user that runs it. When that is ``nobody``,
a clone below a directory of mode 0700 (``/root``, ``mktemp -d``) or one made under umask 077 is
out of its reach. Then a readable copy is staged (hard links where they serve) and mounted in the
guest *at the path it has on the host*, so that no path, ``pyvenv.cfg`` or ``.pth`` file changes.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import dsmip_ipsec
from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.guest_init import Mount, is_shadowed

# Never needed in a guest, and large.
NOT_STAGED = {".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", "lab-out"}

User = tuple[int, int]  # uid, gid


def find_program(name: str, install: str) -> str:
    """Path of a program. Raises LabError, with how to ``install`` it, when it isn't there."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/bin:/bin:/usr/local/bin")
    if found is None:
        raise LabError(f"{name}, for guests, is not installed", hint=install)
    return found


def package_dir() -> Path:
    return Path(dsmip_ipsec.__file__).resolve().parent


def project_dir() -> Path:
    """The checkout when we run from one, else the directory of the installed package."""
    package = package_dir()
    return package.parent if (package.parent / "pyproject.toml").is_file() else package


# One package of each kind of installation will do, but they may come from different places.
DEPENDENCIES = ("cryptography", "jinja2", "pexpect", "pydantic", "pyroute2", "rich", "vici")


def code_roots(extra: Iterable[Path] = ()) -> list[Path]:
    """The directories (or files) that the guest must see, without those inside another."""
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    roots = [project_dir(), *prefixes, *dependency_dirs(), *extra]
    unique = dict.fromkeys(Path(os.path.abspath(root)) for root in roots)
    # The guest's root file system is the host's, and these are for everybody to read.
    system = [Path("/usr"), Path("/etc")]
    wanted = [root for root in unique if root not in [Path("/"), *system]]
    return [
        root for root in wanted if not any(other in root.parents for other in [*wanted, *system])
    ]


def dependency_dirs() -> list[Path]:
    """Where the packages that we import were found: beside Python, or in a user's own directory
    or one that PYTHONPATH names, which the guest's Python wouldn't look into by itself."""
    found = (importlib.util.find_spec(name) for name in DEPENDENCIES)
    origins = (Path(spec.origin) for spec in found if spec is not None and spec.origin)
    return list(dict.fromkeys(origin.parent.parent for origin in origins))


def python_path() -> str:
    """PYTHONPATH for the guest: our package first, however this process came by it."""
    return ":".join(map(str, dict.fromkeys([package_dir().parent, *dependency_dirs()])))


def first_unreadable(paths: Sequence[Path], user: User | None) -> Path | None:
    """The first file or directory in these trees that ``user`` can't read, None if all can be.

    Asked of the kernel, as that user (find's -readable is access(2)): no arithmetic on mode bits.
    """
    command = ["find", "-P", *map(str, paths)]
    for name in sorted(NOT_STAGED):
        command += ["-name", name, "-prune", "-o"]
    command += ["!", "-type", "l", "("]
    command += ["!", "-readable", "-o", "-type", "d", "!", "-executable", ")", "-print", "-quit"]
    done = run_as(user, command)
    if done.stdout:
        return Path(done.stdout.splitlines()[0])
    if done.returncode != 0:  # find: 'DIRECTORY': Permission denied
        return next((path for path in paths if f"'{path}" in done.stderr), paths[0])
    return None


def reaches(path: Path, user: User | None) -> bool:
    """Whether ``user`` can look things up in this directory."""
    return run_as(user, ["test", "-x", str(path)]).returncode == 0


def run_as(user: User | None, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        cwd="/",
        check=False,
        user=None if user is None else user[0],
        group=None if user is None else user[1],
        extra_groups=None if user is None else [],
    )


def _cover(path: Path, user: User | None, *, listing: bool = False) -> Path | None:
    """The topmost ancestor that ``user`` can't search (None: all of them can be), or, with
    ``listing``, can't read."""
    for ancestor in reversed(path.parents):
        if not reaches(ancestor, user):
            return ancestor
        if listing and run_as(user, ["test", "-r", str(ancestor)]).returncode != 0:
            return ancestor
    return None


def _stage_file(source: str, target: str) -> None:
    info = os.lstat(source)
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), target)
        return
    if not stat.S_ISREG(info.st_mode):
        return  # a socket or FIFO is of no use in a guest
    # A set-uid bit must not come along, and a link shares the mode with its original.
    if info.st_mode & 0o7004 == 0o0004:
        try:
            os.link(source, target)
        except OSError:  # another file system, or a container without the right to
            pass
        else:
            return
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if info.st_mode & 0o100 else 0o644)


def stage(source: Path, target: Path) -> None:
    """A readable copy of a tree (or a file). Directories 0755; unneeded ones are left out."""
    if not source.is_dir():
        _stage_file(str(source), str(target))
        return
    for directory, names, files in os.walk(source):
        names[:] = [name for name in names if name not in NOT_STAGED]
        there = os.path.join(target, os.path.relpath(directory, source))
        os.makedirs(there, exist_ok=True)
        os.chmod(there, 0o755)  # noqa: S103 - to be readable is its purpose
        for name in files:
            _stage_file(os.path.join(directory, name), os.path.join(there, name))
        for name in [n for n in names if os.path.islink(os.path.join(directory, n))]:
            _stage_file(os.path.join(directory, name), os.path.join(there, name))


def make_visible(
    roots: Sequence[Path], user: User | None, stage_dir: Path, *, listing: bool = False
) -> list[Mount]:
    """The mounts with which a guest run by ``user`` sees each root at its path on the host.

    ``user`` None means the user that we are, who can read what we can. ``listing``: directories
    above a root must be readable, too, for the guest to look into them. Raises LabError when a root
    can't be staged.
    """
    mounts: list[Mount] = []
    for number, root in enumerate(roots):
        if not root.exists():
            raise LabError(f"{root} doesn't exist", hint="name an existing file or directory")
        source = root
        cover = None
        if user is not None and (
            first_unreadable([root], user) is not None
            or (listing and _cover(root, user, listing=True) is not None)
        ):
            source = stage_dir / str(number)
            try:
                stage(root, source)
            except OSError as error:
                raise LabError(
                    f"can't stage a copy of {root} for the guest: {error.strerror}",
                    hint=f"make {root} and the directories above it readable for all users, "
                    "or free space in the temporary directory",
                ) from error
            cover = _cover(root, user, listing=listing)
        if source == root and not is_shadowed(root):
            continue
        if not root.is_dir():
            raise LabError(
                f"the guest can't see the file {root}",
                hint="name the directory that it lies in instead",
            )
        if cover is not None and is_shadowed(cover):
            cover = None  # the guest's own tmpfs lies there already
        mounts.append(Mount(source, root, cover))
    for mount in mounts:
        if any(c in str(mount.source) for c in ",\n") or "\n" in str(mount.target):
            raise LabError(
                f"the guest can't mount {mount.source}: comma or line break in the path",
                hint="move it to a path without these characters",
            )
    return mounts


def compile_package() -> None:
    """Write missing .pyc files of our package: the guest can't, and would compile at each start."""
    package = package_dir()
    if os.access(package, os.W_OK):
        compileall.compile_dir(package, quiet=2)
