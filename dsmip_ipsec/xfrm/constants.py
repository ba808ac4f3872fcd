"""Names and numbers of linux/xfrm.h (and the few of linux/netlink.h that XFRM needs).

Enumerations are open: a number that this list doesn't know becomes a member of its own
(``UNKNOWN_7``), so that a newer kernel's SA doesn't make a whole dump unreadable.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

NETLINK_XFRM = 6

# linux/netlink.h
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4
NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

XFRM_INF = 0xFFFFFFFFFFFFFFFF
#: Longest anti-replay window, in packets (XFRMA_REPLAY_ESN_MAX).
REPLAY_WINDOW_MAX = 4096


class OpenIntEnum(IntEnum):
    """An IntEnum that gives an unknown number a member of its own."""

    @classmethod
    def _missing_(cls, value: object) -> OpenIntEnum | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member


class Message(OpenIntEnum):
    """XFRM_MSG_*"""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B
    FLUSHSA = 0x1C
    FLUSHPOLICY = 0x1D
    NEWAE = 0x1E
    GETAE = 0x1F
    REPORT = 0x20
    MIGRATE = 0x21
    NEWSADINFO = 0x22
    GETSADINFO = 0x23
    NEWSPDINFO = 0x24
    GETSPDINFO = 0x25
    MAPPING = 0x26
    SETDEFAULT = 0x27
    GETDEFAULT = 0x28


class Attribute(OpenIntEnum):
    """XFRMA_*"""

    UNSPEC = 0
    ALG_AUTH = 1
    ALG_CRYPT = 2
    ALG_COMP = 3
    ENCAP = 4
    TMPL = 5
    SA = 6
    POLICY = 7
    SEC_CTX = 8
    LTIME_VAL = 9
    REPLAY_VAL = 10
    REPLAY_THRESH = 11
    ETIMER_THRESH = 12
    SRCADDR = 13
    COADDR = 14
    LASTUSED = 15
    POLICY_TYPE = 16
    MIGRATE = 17
    ALG_AEAD = 18
    KMADDRESS = 19
    ALG_AUTH_TRUNC = 20
    MARK = 21
    TFCPAD = 22
    REPLAY_ESN_VAL = 23
    SA_EXTRA_FLAGS = 24
    PROTO = 25
    ADDRESS_FILTER = 26
    PAD = 27
    OFFLOAD_DEV = 28
    SET_MARK = 29
    SET_MARK_MASK = 30
    IF_ID = 31
    MTIMER_THRESH = 32


class Group(OpenIntEnum):
    """XFRMNLGRP_*: multicast groups of NETLINK_XFRM."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    POLICY = 4
    AEVENTS = 5
    REPORT = 6
    MIGRATE = 7
    MAPPING = 8


class Protocol(OpenIntEnum):
    """IPPROTO_* that XFRM transforms; ANY is IPSEC_PROTO_ANY (as a filter: ESP, AH and IPComp)."""

    NONE = 0
    ROUTING = 43
    ESP = 50
    AH = 51
    DSTOPTS = 60
    COMP = 108
    ANY = 255


class Mode(OpenIntEnum):
    """XFRM_MODE_*"""

    TRANSPORT = 0
    TUNNEL = 1
    ROUTE_OPTIMIZATION = 2
    IN_TRIGGER = 3
    BEET = 4


class Direction(OpenIntEnum):
    """XFRM_POLICY_IN/OUT/FWD; SOCKET_* are those that a dump shows of per-socket policies."""

    IN = 0
    OUT = 1
    FWD = 2
    SOCKET_IN = 3
    SOCKET_OUT = 4
    SOCKET_FWD = 5


class PolicyType(OpenIntEnum):
    """XFRM_POLICY_TYPE_*"""

    MAIN = 0
    SUB = 1
    ANY = 255


class Action(OpenIntEnum):
    """XFRM_POLICY_ALLOW/BLOCK"""

    ALLOW = 0
    BLOCK = 1


class DefaultAction(OpenIntEnum):
    """XFRM_USERPOLICY_*: what happens to packets that no policy matches."""

    UNSPEC = 0
    BLOCK = 1
    ACCEPT = 2


class Share(OpenIntEnum):
    """XFRM_SHARE_*"""

    ANY = 0
    SESSION = 1
    USER = 2
    UNIQUE = 3


class EncapType(OpenIntEnum):
    """UDP_ENCAP_* of linux/udp.h, and TCP_ENCAP_ESPINTCP"""

    ESPINUDP_NON_IKE = 1
    ESPINUDP = 2
    ESPINTCP = 7


class StateFlag(IntFlag):
    """XFRM_STATE_*"""

    NOECN = 1
    DECAP_DSCP = 2
    NOPMTUDISC = 4
    WILDRECV = 8
    ICMP = 16
    AF_UNSPEC = 32
    ALIGN4 = 64
    ESN = 128


class ExtraFlag(IntFlag):
    """XFRM_SA_XFLAG_*"""

    DONT_ENCAP_DSCP = 1
    OSEQ_MAY_WRAP = 2


class PolicyFlag(IntFlag):
    """XFRM_POLICY_LOCALOK/ICMP"""

    LOCALOK = 1
    ICMP = 2


class EventFlag(IntFlag):
    """XFRM_AE_*"""

    REPLAY_THRESHOLD = 1
    REPLAY_VALUE = 2
    LIFETIME_VALUE = 4
    TIMER_THRESHOLD = 8
    CAUSE_REPLAY = 16
    CAUSE_TIMER = 32
    CAUSE_UPDATE = 64
