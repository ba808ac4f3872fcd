"""XFRM netlink on pyroute2: the kernel's IPsec database, read and written from Python.

:class:`XfrmSocket` (blocking) and :class:`AsyncXfrmSocket` (asyncio) send the requests of
:mod:`~dsmip_ipsec.xfrm.requests`, alone or in batches; :class:`XfrmMonitor` listens. States and
policies are the immutable views of :mod:`~dsmip_ipsec.xfrm.types`. Nothing here depends on the
rest of dsmip-ipsec.
"""

from dsmip_ipsec.xfrm import requests
from dsmip_ipsec.xfrm.aio import AsyncXfrmSocket
from dsmip_ipsec.xfrm.constants import (
    Action,
    DefaultAction,
    Direction,
    EncapType,
    EventFlag,
    ExtraFlag,
    Group,
    Mode,
    PolicyFlag,
    PolicyType,
    Protocol,
    Share,
    StateFlag,
)
from dsmip_ipsec.xfrm.errors import (
    XfrmDecodeError,
    XfrmDumpInterrupted,
    XfrmEncodeError,
    XfrmError,
    XfrmOverrun,
    XfrmTimeout,
)
from dsmip_ipsec.xfrm.exchange import Request, Result
from dsmip_ipsec.xfrm.monitor import XfrmMonitor
from dsmip_ipsec.xfrm.move import KEEP, Move, moved_state, replace_state
from dsmip_ipsec.xfrm.notifications import Notification
from dsmip_ipsec.xfrm.socket import XfrmSocket
from dsmip_ipsec.xfrm.types import (
    AddressFilter,
    Algorithm,
    CurrentLifetime,
    DefaultPolicy,
    Encap,
    Event,
    Key,
    KmAddress,
    Lifetime,
    Mark,
    Migration,
    Policy,
    PolicyId,
    Replay,
    SadInfo,
    Selector,
    SpdInfo,
    State,
    StateId,
    Statistics,
    Template,
)

__all__ = [
    "KEEP",
    "Action",
    "AddressFilter",
    "Algorithm",
    "AsyncXfrmSocket",
    "CurrentLifetime",
    "DefaultAction",
    "DefaultPolicy",
    "Direction",
    "Encap",
    "EncapType",
    "Event",
    "EventFlag",
    "ExtraFlag",
    "Group",
    "Key",
    "KmAddress",
    "Lifetime",
    "Mark",
    "Migration",
    "Mode",
    "Move",
    "Notification",
    "Policy",
    "PolicyFlag",
    "PolicyId",
    "PolicyType",
    "Protocol",
    "Replay",
    "Request",
    "Result",
    "SadInfo",
    "Selector",
    "Share",
    "SpdInfo",
    "State",
    "StateFlag",
    "StateId",
    "Statistics",
    "Template",
    "XfrmDecodeError",
    "XfrmDumpInterrupted",
    "XfrmEncodeError",
    "XfrmError",
    "XfrmMonitor",
    "XfrmOverrun",
    "XfrmSocket",
    "XfrmTimeout",
    "moved_state",
    "replace_state",
    "requests",
]
