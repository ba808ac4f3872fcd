"""The one directory that a guest can write to, and the user of the host that it writes as."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from functools import cache
from pathlib import Path

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import guest_code


def guest_user() -> guest_code.User | None:
    """uid and gid that guests run as: ``nobody`` when we are root, else None (who we are).

    Root of a user namespace or a container that can't become nobody is an ordinary user.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
        user = (entry.pw_uid, entry.pw_gid)
    except KeyError:
        user = (65534, 65534)
    return user if _can_become(user) else None


@cache
def _can_become(user: guest_code.User) -> bool:
    """Tried: unmapped numbers, setgroups forbidden or a missing capability may be in the way."""
    try:
        guest_code.run_as(user, ["true"])
    except OSError:
        return False
    return True


def prepare_share(share: Path) -> None:
    """Make ``share`` a directory that the guest can write to (0700, owned by its user).

    An existing directory is taken over only while it is empty. Raises LabError.
    """
    user = guest_user()
    try:
        share.mkdir(mode=0o700, parents=False, exist_ok=True)
        info = share.stat()
        owner = os.geteuid() if user is None else user[0]
        if info.st_uid != owner:
            if user is None or any(share.iterdir()):
                raise LabError(
                    f"{share} belongs to another user than the guest's",
                    hint="give the guest a new or an empty directory",
                )
            os.chown(share, *user)
    except OSError as error:
        raise LabError(
            f"can't prepare the directory {share} for the guest: {error.strerror}",
            hint="give the guest a new directory in one that exists",
        ) from error
    if "," in str(share) or "\n" in str(share):
        raise LabError(f"comma or line break in {share}", hint="choose another name")
    if not guest_code.reaches(share, user):
        raise LabError(
            f"the guest's user can't reach {share}",
            hint="use a directory below one that all users may enter, such as /tmp",
        )


def collect_share(share: Path, destination: Path) -> list[Path]:
    """Copy what the guest left in ``share``; returns the files written, relative.

    Only regular files and directories: the guest chose the names and could have left a link to
    some file of the host for us, as root, to read or to overwrite. What only
    its owner may read, since it holds keys, stays so.
    """
    written: list[Path] = []
    for directory, names, files, directory_fd in os.fwalk(share, follow_symlinks=False):
        here = Path(directory).relative_to(share)
        (destination / here).mkdir(parents=True, exist_ok=True)
        if here.parts:
            (destination / here).chmod(os.fstat(directory_fd).st_mode & 0o777)
        names.sort()
        for name in sorted(files):
            if not stat.S_ISREG(os.lstat(name, dir_fd=directory_fd).st_mode):
                continue
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            source = os.open(name, flags, dir_fd=directory_fd)
            mode = os.fstat(source).st_mode & 0o777
            target = destination / here / name
            target.unlink(missing_ok=True)  # an older one may have another mode
            created = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(source, "rb") as reader, open(created, "wb") as writer:
                shutil.copyfileobj(reader, writer)
            written.append(here / name)
    return written
