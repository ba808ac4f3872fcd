"""XFRM messages as pyroute2 ``nlmsg`` classes, and the marshal that picks them by type.

They are for pyroute2's own ways (``nlm_request``, decoding what others captured). The sockets'
verbs pack structures directly, ten times faster; the tests check one against the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsmip_ipsec.xfrm import structs
from dsmip_ipsec.xfrm._pyroute2 import Marshal, nlmsg
from dsmip_ipsec.xfrm.attributes import (
    ID,
    SELECTOR,
    USERPOLICY_ID,
    USERPOLICY_INFO,
    USERSA_ID,
    USERSA_INFO,
    _defaults,
    _pad,
    _prefixed,
    structure,
    xfrm_attributes,
)
from dsmip_ipsec.xfrm.constants import NLMSG_ERROR, Message
from dsmip_ipsec.xfrm.errors import XfrmDecodeError
from dsmip_ipsec.xfrm.exchange import messages


class xfrm_message(xfrm_attributes, nlmsg):
    """Base of the messages that have XFRMA_* attributes."""


class xfrm_dump(xfrm_message):
    """A dump of states or policies: attributes alone."""


class xfrm_usersa_info(xfrm_message):
    """NEWSA, UPDSA"""

    fields = USERSA_INFO
    defaults = _defaults(fields)


class xfrm_usersa_id(xfrm_message):
    """GETSA, DELSA"""

    fields = USERSA_ID
    defaults = _defaults(fields)


class xfrm_userspi_info(xfrm_message):
    """ALLOCSPI"""

    fields = (*USERSA_INFO, ("min", "I"), ("max", "I"))
    defaults = _defaults(fields)


class xfrm_usersa_flush(xfrm_message):
    """FLUSHSA"""

    fields = (("proto", "B"),)


class xfrm_userpolicy_info(xfrm_message):
    """NEWPOLICY, UPDPOLICY"""

    fields = USERPOLICY_INFO
    defaults = _defaults(fields)


class xfrm_userpolicy_id(xfrm_message):
    """GETPOLICY, DELPOLICY, MIGRATE"""

    fields = USERPOLICY_ID
    defaults = _defaults(fields)


class xfrm_policy_flush(xfrm_message):
    """FLUSHPOLICY: attributes alone."""


class xfrm_user_acquire(xfrm_message):
    """ACQUIRE"""

    fields = (
        *_prefixed("id_", ID),
        ("saddr", "16s"),
        *_prefixed("sel_", SELECTOR),
        *_prefixed("policy_", USERPOLICY_INFO),
        ("aalgos", "I"),
        ("ealgos", "I"),
        ("calgos", "I"),
        ("seq", "I"),
    )
    defaults = _defaults(fields)


class xfrm_user_expire(xfrm_message):
    """EXPIRE"""

    fields = (*_prefixed("state_", USERSA_INFO), ("hard", "B"), _pad("pad", 7))
    defaults = _defaults(fields)


class xfrm_user_polexpire(xfrm_message):
    """POLEXPIRE"""

    fields = (*_prefixed("pol_", USERPOLICY_INFO), ("hard", "B"), _pad("pad", 7))
    defaults = _defaults(fields)


class xfrm_aevent_id(xfrm_message):
    """NEWAE, GETAE"""

    fields = (*_prefixed("sa_id_", USERSA_ID), ("saddr", "16s"), ("flags", "I"), ("reqid", "I"))
    defaults = _defaults(fields)


class xfrm_user_report(xfrm_message):
    """REPORT"""

    fields = (("proto", "B"), _pad("pad", 3), *_prefixed("sel_", SELECTOR))
    defaults = _defaults(fields)


class xfrm_user_mapping(xfrm_message):
    """MAPPING"""

    fields = (
        *_prefixed("id_", USERSA_ID),
        ("reqid", "I"),
        ("old_saddr", "16s"),
        ("new_saddr", "16s"),
        ("old_sport", ">H"),
        ("new_sport", ">H"),
    )
    defaults = _defaults(fields)


class xfrm_userpolicy_default(xfrm_message):
    """SETDEFAULT, GETDEFAULT"""

    fields = (("in", "B"), ("fwd", "B"), ("out", "B"))


class xfrm_sadinfo(nlmsg):
    """NEWSADINFO, GETSADINFO"""

    fields = (("flags", "I"),)
    prefix = "XFRMA_SAD_"
    nla_map = (
        ("XFRMA_SAD_UNSPEC", "none"),
        ("XFRMA_SAD_CNT", "uint32"),
        ("XFRMA_SAD_HINFO", "hinfo"),
    )

    class hinfo(structure):
        fields = (("sadhcnt", "I"), ("sadhmcnt", "I"))


class xfrm_spdinfo(nlmsg):
    """NEWSPDINFO, GETSPDINFO"""

    fields = (("flags", "I"),)
    prefix = "XFRMA_SPD_"
    nla_map = (
        ("XFRMA_SPD_UNSPEC", "none"),
        ("XFRMA_SPD_INFO", "info"),
        ("XFRMA_SPD_HINFO", "hinfo"),
        ("XFRMA_SPD_IPV4_HTHRESH", "hthresh"),
        ("XFRMA_SPD_IPV6_HTHRESH", "hthresh"),
    )

    class info(structure):
        fields = (
            ("incnt", "I"),
            ("outcnt", "I"),
            ("fwdcnt", "I"),
            ("inscnt", "I"),
            ("outscnt", "I"),
            ("fwdscnt", "I"),
        )

    class hinfo(structure):
        fields = (("spdhcnt", "I"), ("spdhmcnt", "I"))

    class hthresh(structure):
        fields = (("lbits", "B"), ("rbits", "B"))


# Message classes, and the octets of the structure that each must have at least.
CLASSES: dict[Message, tuple[type[nlmsg], int]] = {
    Message.NEWSA: (xfrm_usersa_info, 224),
    Message.DELSA: (xfrm_usersa_id, 24),
    Message.GETSA: (xfrm_usersa_id, 24),
    Message.NEWPOLICY: (xfrm_userpolicy_info, 168),
    Message.DELPOLICY: (xfrm_userpolicy_id, 64),
    Message.GETPOLICY: (xfrm_userpolicy_id, 64),
    Message.ALLOCSPI: (xfrm_userspi_info, 232),
    Message.ACQUIRE: (xfrm_user_acquire, 280),
    Message.EXPIRE: (xfrm_user_expire, 232),
    Message.UPDPOLICY: (xfrm_userpolicy_info, 168),
    Message.UPDSA: (xfrm_usersa_info, 224),
    Message.POLEXPIRE: (xfrm_user_polexpire, 176),
    Message.FLUSHSA: (xfrm_usersa_flush, 1),
    Message.FLUSHPOLICY: (xfrm_policy_flush, 0),
    Message.NEWAE: (xfrm_aevent_id, 48),
    Message.GETAE: (xfrm_aevent_id, 48),
    Message.REPORT: (xfrm_user_report, 60),
    Message.MIGRATE: (xfrm_userpolicy_id, 64),
    Message.NEWSADINFO: (xfrm_sadinfo, 4),
    Message.GETSADINFO: (xfrm_sadinfo, 4),
    Message.NEWSPDINFO: (xfrm_spdinfo, 4),
    Message.GETSPDINFO: (xfrm_spdinfo, 4),
    Message.MAPPING: (xfrm_user_mapping, 64),
    Message.SETDEFAULT: (xfrm_userpolicy_default, 3),
    Message.GETDEFAULT: (xfrm_userpolicy_default, 3),
}


class MarshalXfrm(Marshal):
    """pyroute2's marshal, which checks lengths before it decodes (pyroute2 wouldn't)."""

    msg_map = {int(message): kind for message, (kind, _) in CLASSES.items()}  # noqa: RUF012

    def parse(
        self,
        data: bytes,
        seq: int | None = None,
        callback: Any = None,
        skip_alien_seq: bool = False,
    ) -> Iterator[nlmsg]:
        check(bytes(data))
        return super().parse(data, seq, callback)


def check(datagram: bytes) -> None:
    """Raises XfrmDecodeError unless every message is as long as its structure, and its attributes
    fill it exactly."""
    for type_, _, _, payload in messages(datagram):
        if type_ == NLMSG_ERROR and len(payload) < 4:
            raise XfrmDecodeError("an error message is cut short")
        entry = CLASSES.get(Message(type_))
        if entry is None:
            continue
        if len(payload) < entry[1]:
            raise XfrmDecodeError(
                f"{Message(type_).name} needs {entry[1]} octets and has {len(payload)}"
            )
        for _ in structs.iterate_attributes(payload, (entry[1] + 3) & ~3):
            pass
