"""Errors of the XFRM sockets, as kinds of pyroute2's :class:`NetlinkError`.

Each carries an errno in ``code`` (as every NetlinkError does) and a ``hint`` that says what can
be done about it. No error quotes a message's octets: they may hold keys.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class NetlinkError(Exception):
        code: int

        def __init__(self, code: int, msg: str | None = None) -> None: ...

    class NetlinkDumpInterrupted(NetlinkError):
        pass

else:
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError


class XfrmError(NetlinkError):
    """Base of the errors of this package: the kernel refused a request (``code`` is its errno),
    or one of the kinds below."""

    def __init__(self, code: int, message: str, *, hint: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.hint = hint

    @property
    def errno(self) -> int:
        """The same as ``code``, by the name OSError has for it."""
        return self.code

    def __str__(self) -> str:
        return self.message


class XfrmEncodeError(XfrmError, ValueError):
    """A value that linux/xfrm.h has no room for (raised before anything is sent)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(errno.EINVAL, message, hint=hint)


class XfrmDecodeError(XfrmError):
    """A netlink message that isn't what linux/xfrm.h says.

    ``offset`` counts octets from the start of the buffer or structure that was decoded
    (-1: not tied to a place).
    """

    def __init__(self, message: str, *, offset: int = -1) -> None:
        super().__init__(
            errno.EBADMSG,
            message if offset < 0 else f"{message} (at octet {offset})",
            hint="the kernel's XFRM messages aren't those of linux/xfrm.h; report kernel and "
            "architecture (32-bit processes on 64-bit kernels have other structures)",
        )
        self.offset = offset


class XfrmTimeout(XfrmError):
    """The kernel didn't answer in time. What was asked may have been done, or not."""

    def __init__(self, message: str) -> None:
        super().__init__(
            errno.ETIMEDOUT,
            message,
            hint="read the SAD and SPD before trying again",
        )


class XfrmOverrun(XfrmError):
    """Answers were lost because the socket's receive buffer was full (ENOBUFS). What was asked
    was done, or not."""

    def __init__(self, message: str) -> None:
        super().__init__(
            errno.ENOBUFS,
            message,
            hint="read the SAD and SPD again; raise net.core.rmem_max or send smaller batches",
        )


class XfrmDumpInterrupted(XfrmError, NetlinkDumpInterrupted):
    """The kernel says that what was dumped changed meanwhile (NLM_F_DUMP_INTR)."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EINTR, message, hint="dump again")


# What an errno means for a message, where strerror alone would mislead.
# Verified on Linux 6.1; (message, errno) first, then errno alone.
_HINTS: dict[tuple[str, int] | int, str] = {
    ("NEWSA", errno.EEXIST): "an SA with this destination, SPI and protocol exists: update it, "
    "or delete it first",
    ("NEWSA", errno.EINVAL): "check the selector's family against the mode, key lengths, the "
    "replay window, and that the kernel has ESP for this family",
    ("NEWSA", errno.EPROTONOSUPPORT): "load esp4, or ipv6 and esp6 (modprobe), or use a "
    "kernel with ESP",
    ("NEWSA", errno.ENOSYS): "the kernel lacks an algorithm of this SA; see /proc/crypto",
    ("UPDSA", errno.ESRCH): "no such SA; an update can't change destination, SPI or protocol",
    ("UPDSA", errno.EINVAL): "an update can't switch UDP encapsulation on or off: replace the SA",
    ("NEWPOLICY", errno.EEXIST): "a policy with this selector, direction, type and mark exists: "
    "update it instead",
    ("MIGRATE", errno.ENOENT): "no policy has exactly this selector, direction and type",
    ("MIGRATE", errno.ENODATA): "no template or SA of the policy has the old addresses; "
    "templates with wildcard addresses can't be migrated",
    ("MIGRATE", errno.ENOPROTOOPT): "the kernel was built without CONFIG_XFRM_MIGRATE",
    ("ALLOCSPI", errno.ENOENT): "no free SPI in this range",
    errno.EPERM: "CAP_NET_ADMIN in the user namespace of the network namespace is needed",
    errno.ESRCH: "no such SA",
    errno.ENOENT: "no such policy",
    errno.EAFNOSUPPORT: "the kernel lacks XFRM for this address family",
    errno.ENOPROTOOPT: "the kernel was built without this feature",
}


def kernel_error(name: str, code: int, what: str, detail: str = "") -> XfrmError:
    """The error for a request that the kernel refused.

    ``name`` is the message type without its prefix ("NEWSA"), ``what`` describes the request
    without secrets, ``detail`` is the kernel's own extended-ack text.
    """
    text = f"{what}: {detail or os.strerror(code)} ({errno.errorcode.get(code, str(code))})"
    return XfrmError(code, text, hint=_HINTS.get((name, code)) or _HINTS.get(code, ""))
