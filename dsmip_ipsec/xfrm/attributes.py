"""XFRM attributes as pyroute2 ``nla`` classes, and the fields of the structures of linux/xfrm.h.

Structures within structures are flattened with a prefix (``sel_daddr``). Addresses are the 16
octets of xfrm_address_t: their family stands elsewhere. Keys are wrapped, so that a message's
repr doesn't show them; octets are accepted too.
"""

from __future__ import annotations

import struct
from typing import Any

from dsmip_ipsec.xfrm._pyroute2 import nla, nla_string
from dsmip_ipsec.xfrm.types import Key

Fields = tuple[tuple[str, str], ...]


def _prefixed(prefix: str, fields: Fields) -> Fields:
    return tuple((f"{prefix}{name.lstrip('_')}", layout) for name, layout in fields)


def _defaults(fields: Fields) -> dict[str, Any]:
    """pyroute2's default is 0, which isn't good for octets."""
    return {name: bytes(int(layout[:-1])) for name, layout in fields if layout.endswith("s")}


def _pad(name: str, octets: int) -> tuple[str, str]:
    return name, f"{octets}x"


SELECTOR: Fields = (
    ("daddr", "16s"),
    ("saddr", "16s"),
    ("dport", ">H"),
    ("dport_mask", ">H"),
    ("sport", ">H"),
    ("sport_mask", ">H"),
    ("family", "H"),
    ("prefixlen_d", "B"),
    ("prefixlen_s", "B"),
    ("proto", "B"),
    _pad("pad", 3),
    ("ifindex", "i"),
    ("user", "I"),
)
ID: Fields = (("daddr", "16s"), ("spi", ">I"), ("proto", "B"), _pad("pad", 3))
LIFETIME_CFG: Fields = (
    ("soft_byte_limit", "Q"),
    ("hard_byte_limit", "Q"),
    ("soft_packet_limit", "Q"),
    ("hard_packet_limit", "Q"),
    ("soft_add_expires_seconds", "Q"),
    ("hard_add_expires_seconds", "Q"),
    ("soft_use_expires_seconds", "Q"),
    ("hard_use_expires_seconds", "Q"),
)
LIFETIME_CUR: Fields = (("bytes", "Q"), ("packets", "Q"), ("add_time", "Q"), ("use_time", "Q"))
USERSA_INFO: Fields = (
    *_prefixed("sel_", SELECTOR),
    *_prefixed("id_", ID),
    ("saddr", "16s"),
    *_prefixed("lft_", LIFETIME_CFG),
    *_prefixed("curlft_", LIFETIME_CUR),
    ("stats_replay_window", "I"),
    ("stats_replay", "I"),
    ("stats_integrity_failed", "I"),
    ("seq", "I"),
    ("reqid", "I"),
    ("family", "H"),
    ("mode", "B"),
    ("replay_window", "B"),
    ("flags", "B"),
    _pad("pad", 7),
)
USERSA_ID: Fields = (("daddr", "16s"), ("spi", ">I"), ("family", "H"), ("proto", "B"), _pad("p", 1))
USERPOLICY_INFO: Fields = (
    *_prefixed("sel_", SELECTOR),
    *_prefixed("lft_", LIFETIME_CFG),
    *_prefixed("curlft_", LIFETIME_CUR),
    ("priority", "I"),
    ("index", "I"),
    ("dir", "B"),
    ("action", "B"),
    ("flags", "B"),
    ("share", "B"),
    _pad("pad", 4),
)
USERPOLICY_ID: Fields = (
    *_prefixed("sel_", SELECTOR),
    ("index", "I"),
    ("dir", "B"),
    _pad("pad", 3),
)
TEMPLATE: Fields = (
    *_prefixed("id_", ID),
    ("family", "H"),
    _pad("pad", 2),
    ("saddr", "16s"),
    ("reqid", "I"),
    ("mode", "B"),
    ("share", "B"),
    ("optional", "B"),
    _pad("pad2", 1),
    ("aalgos", "I"),
    ("ealgos", "I"),
    ("calgos", "I"),
)
MIGRATE: Fields = (
    ("old_daddr", "16s"),
    ("old_saddr", "16s"),
    ("new_daddr", "16s"),
    ("new_saddr", "16s"),
    ("proto", "B"),
    ("mode", "B"),
    ("reserved", "H"),
    ("reqid", "I"),
    ("old_family", "H"),
    ("new_family", "H"),
)


class structure(nla):
    """An attribute that is one C structure."""


class composed(nla_string):
    """An attribute whose value is more than its fields: ``setvalue`` keeps it whole."""

    def setvalue(self, value: Any) -> composed:
        self.value = value
        return self


class structures(composed):
    """An attribute that is an array of C structures: a list of dictionaries."""

    layout: Fields = ()

    def decode(self) -> None:
        nla_string.decode(self)
        raw = bytes(self["value"])
        size = _size(self.layout)
        self.value = [_read(self.layout, raw, at) for at in range(0, len(raw) - size + 1, size)]

    def encode(self) -> None:
        self["value"] = b"".join(_write(self.layout, item) for item in self.value)
        nla_string.encode(self)


class algorithm(composed):
    """struct xfrm_algo and its kin: a dictionary with alg_name, alg_key and what is between."""

    between: Fields = ()

    def decode(self) -> None:
        nla_string.decode(self)
        raw = bytes(self["value"])
        head: Fields = (("alg_name", "64s"), ("alg_key_len", "I"), *self.between)
        value = _read(head, raw, 0)
        value["alg_name"] = value["alg_name"].split(b"\0", 1)[0].decode("ascii", "replace")
        at = _size(head)
        value["alg_key"] = Key(raw[at : at + (value["alg_key_len"] + 7) // 8])
        # the generic decoder keeps the octets in 'value', which a repr would show
        self["value"] = self.value = value

    def encode(self) -> None:
        value = dict(self.value)
        key = value["alg_key"]
        octets = key.reveal() if isinstance(key, Key) else bytes(key)
        value["alg_name"] = value["alg_name"].encode("ascii")
        value.setdefault("alg_key_len", 8 * len(octets))
        head: Fields = (("alg_name", "64s"), ("alg_key_len", "I"), *self.between)
        self["value"] = _write(head, value) + octets
        nla_string.encode(self)
        self["value"] = self.value = {**self.value, "alg_key": Key(octets)}


def _size(fields: Fields) -> int:
    return sum(struct.calcsize(layout) for _, layout in fields)


def _read(fields: Fields, raw: bytes, at: int) -> dict[str, Any]:
    out = {}
    for name, layout in fields:
        if not layout.endswith("x"):
            (out[name],) = struct.unpack_from(layout, raw, at)
        at += struct.calcsize(layout)
    return out


def _write(fields: Fields, values: dict[str, Any]) -> bytes:
    defaults = _defaults(fields)
    parts = []
    for name, layout in fields:
        if layout.endswith("x"):
            parts.append(struct.pack(layout))
        else:
            parts.append(struct.pack(layout, values.get(name, defaults.get(name, 0))))
    return b"".join(parts)


class xfrm_attributes:
    """The attributes of XFRM messages (enum xfrm_attr_type_t), to mix into messages."""

    prefix = "XFRMA_"
    nla_map = (
        ("XFRMA_UNSPEC", "none"),
        ("XFRMA_ALG_AUTH", "alg"),
        ("XFRMA_ALG_CRYPT", "alg"),
        ("XFRMA_ALG_COMP", "alg"),
        ("XFRMA_ENCAP", "encap"),
        ("XFRMA_TMPL", "tmpl"),
        ("XFRMA_SA", "sa"),
        ("XFRMA_POLICY", "policy"),
        ("XFRMA_SEC_CTX", "cdata"),
        ("XFRMA_LTIME_VAL", "lifetime_cur"),
        ("XFRMA_REPLAY_VAL", "replay"),
        ("XFRMA_REPLAY_THRESH", "uint32"),
        ("XFRMA_ETIMER_THRESH", "uint32"),
        ("XFRMA_SRCADDR", "cdata"),
        ("XFRMA_COADDR", "cdata"),
        ("XFRMA_LASTUSED", "uint64"),
        ("XFRMA_POLICY_TYPE", "policy_type"),
        ("XFRMA_MIGRATE", "migrate"),
        ("XFRMA_ALG_AEAD", "alg_aead"),
        ("XFRMA_KMADDRESS", "kmaddress"),
        ("XFRMA_ALG_AUTH_TRUNC", "alg_auth"),
        ("XFRMA_MARK", "mark"),
        ("XFRMA_TFCPAD", "uint32"),
        ("XFRMA_REPLAY_ESN_VAL", "replay_esn"),
        ("XFRMA_SA_EXTRA_FLAGS", "uint32"),
        ("XFRMA_PROTO", "uint8"),
        ("XFRMA_ADDRESS_FILTER", "address_filter"),
        ("XFRMA_PAD", "none"),
        ("XFRMA_OFFLOAD_DEV", "offload"),
        ("XFRMA_SET_MARK", "uint32"),
        ("XFRMA_SET_MARK_MASK", "uint32"),
        ("XFRMA_IF_ID", "uint32"),
        ("XFRMA_MTIMER_THRESH", "uint32"),
    )

    class alg(algorithm):
        pass

    class alg_aead(algorithm):
        between = (("alg_icv_len", "I"),)

    class alg_auth(algorithm):
        between = (("alg_trunc_len", "I"),)

    class tmpl(structures):
        layout = TEMPLATE

    class migrate(structures):
        layout = MIGRATE

    class encap(structure):
        fields = (
            ("encap_type", "H"),
            ("encap_sport", ">H"),
            ("encap_dport", ">H"),
            _pad("pad", 2),
            ("encap_oa", "16s"),
        )
        defaults = _defaults(fields)

    class sa(structure):
        fields = USERSA_INFO
        defaults = _defaults(fields)

    class policy(structure):
        fields = USERPOLICY_INFO
        defaults = _defaults(fields)

    class lifetime_cur(structure):
        fields = LIFETIME_CUR

    class replay(structure):
        fields = (("oseq", "I"), ("seq", "I"), ("bitmap", "I"))

    class replay_esn(composed):
        """struct xfrm_replay_state_esn: a dictionary; ``bmp`` is a tuple of 32-bit words."""

        layout: Fields = (
            ("bmp_len", "I"),
            ("oseq", "I"),
            ("seq", "I"),
            ("oseq_hi", "I"),
            ("seq_hi", "I"),
            ("replay_window", "I"),
        )

        def decode(self) -> None:
            nla_string.decode(self)
            raw = bytes(self["value"])
            value = _read(self.layout, raw, 0)
            value["bmp"] = struct.unpack_from(f"{(len(raw) - 24) // 4}I", raw, 24)
            self.value = value

        def encode(self) -> None:
            words = tuple(self.value.get("bmp", ()))
            value = {"bmp_len": len(words), **self.value}
            self["value"] = _write(self.layout, value) + struct.pack(f"{len(words)}I", *words)
            nla_string.encode(self)

    class policy_type(structure):
        fields = (
            ("type", "B"),
            _pad("pad", 1),
            ("reserved1", "H"),
            ("reserved2", "B"),
            _pad("p", 1),
        )

    class kmaddress(structure):
        fields = (
            ("local", "16s"),
            ("remote", "16s"),
            ("reserved", "I"),
            ("family", "H"),
            _pad("pad", 2),
        )
        defaults = _defaults(fields)

    class mark(structure):
        fields = (("v", "I"), ("m", "I"))

    class address_filter(structure):
        fields = (
            ("saddr", "16s"),
            ("daddr", "16s"),
            ("family", "H"),
            ("splen", "B"),
            ("dplen", "B"),
        )
        defaults = _defaults(fields)

    class offload(structure):
        fields = (("ifindex", "i"), ("flags", "B"), _pad("pad", 3))
