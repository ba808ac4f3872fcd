"""IKE keys out of charon's key log, for those who asked for their export.

Debian's 5.9.8 has no save-keys plugin. charon prints the keys at log level 4 of the group "ike"
(strongswan.conf.j2 sends that to a file of mode 0600 on request only)::

    08[CFG] <mn|1> selected proposal: IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/ECP_256
    08[IKE] <mn|1> Sk_ei secret => 20 bytes @ 0x6400ba70
    08[IKE] <mn|1>    0: B9 1C 6B 51 B5 80 4D 3A D9 12 FD 87 5A 79 CB D4  ..kQ..M:....Zy..
    08[IKE] <mn|1>   16: 68 24 95 F9                                      h$..
    08[MGR] <mn|1> checkin IKEv2 SA mn[1] with SPIs 941eabc62300ce38_i 3b40655668d4347e_r

A thread works on one IKE_SA at a time, and the first one that it checks in after deriving keys
(with both SPIs, and not known yet) is the one that they belong to; lines of other threads may
stand in between. A responder chooses the proposal in one thread and derives the keys of the first
IKE_SA in another, when IKE_AUTH arrives; there the number in <> ties them together. When an
IKE_SA is rekeyed, that is the old one's number, but both happen in one go.

The log also has the pre-shared keys: it is not for handing out, the table is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_LINE = re.compile(r"(\d+)\[(\w{3})\](?: <(?:[^>|]*\|)?(\d+)>)? (.*)")
_SECRET = re.compile(r"Sk_(ai|ar|ei|er) secret => (\d+) bytes @ \S+")
_DUMP = re.compile(r"\s*(\d+): ((?:[0-9A-F]{2} ?){1,16})(?: |$)")
_PROPOSAL = re.compile(r"selected proposal: IKE:(\S+)")
_CHECKIN = re.compile(
    r"checkin IKEv2 SA (\S+)\[(\d+)\] with SPIs ([0-9a-f]{16})_i ([0-9a-f]{16})_r"
)
_MAX_KEY = 1024
_NO_SPI = "0" * 16


@dataclass(frozen=True, slots=True)
class IkeKeys:
    """The keys of one IKE_SA (RFC 7296 §2.14). With AEAD algorithms ``sk_ai`` and ``sk_ar`` are
    empty, and ``sk_ei``, ``sk_er`` end with the salt (RFC 5282 §7.1). Keys never show in a repr.

    ``proposal`` is charon's: encryption, integrity (without AEAD), PRF and group.
    """

    name: str
    uniqueid: int
    initiator_spi: int
    responder_spi: int
    proposal: tuple[str, ...]
    sk_ei: bytes = field(repr=False)
    sk_er: bytes = field(repr=False)
    sk_ai: bytes = field(repr=False, default=b"")
    sk_ar: bytes = field(repr=False, default=b"")

    @property
    def encryption(self) -> str:
        return self.proposal[0] if self.proposal else ""

    @property
    def integrity(self) -> str:
        return (
            next((p for p in self.proposal[1:] if not p.startswith("PRF_")), "")
            if (self.sk_ai)
            else ""
        )


class _Thread:
    """What a worker thread of charon has said since its last IKE_SA."""

    def __init__(self) -> None:
        self.proposal: tuple[str, ...] = ()
        self.keys: dict[str, bytes] = {}
        self.open: tuple[str, int] | None = None

    def drop_half(self) -> None:
        """A dump that broke off: half a key is none."""
        if self.open is not None:
            del self.keys[self.open[0]]
            self.open = None


def parse(lines: Iterable[str]) -> list[IkeKeys]:
    """The keys of every IKE_SA in a key log, in the order of their derivation.

    What is cut off or damaged is left out; there is no input that raises an error.
    """
    threads: dict[str, _Thread] = {}
    proposals: dict[str, tuple[str, ...]] = {}
    known: set[tuple[str, str]] = set()
    found: list[IkeKeys] = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        thread = threads.setdefault(match[1], _Thread())
        group, number, text = match[2], match[3], match[4]
        if group == "IKE":
            _ike_line(thread, text)
        elif group == "CFG":
            if selected := _PROPOSAL.match(text):
                thread.proposal = tuple(selected[1].split("/"))
                if number:
                    proposals[number] = thread.proposal
        elif group == "MGR" and (checkin := _CHECKIN.match(text)):
            spis = (checkin[3], checkin[4])
            thread.drop_half()
            if not thread.keys or _NO_SPI in spis or spis in known:
                thread.proposal = ()
                continue
            known.add(spis)
            keys, thread.keys = thread.keys, {}
            proposal, thread.proposal = thread.proposal or proposals.get(checkin[2], ()), ()
            if "ei" in keys and "er" in keys:
                found.append(
                    IkeKeys(
                        name=checkin[1],
                        uniqueid=int(checkin[2]),
                        initiator_spi=int(spis[0], 16),
                        responder_spi=int(spis[1], 16),
                        proposal=proposal,
                        sk_ei=keys["ei"],
                        sk_er=keys["er"],
                        sk_ai=keys.get("ai", b""),
                        sk_ar=keys.get("ar", b""),
                    )
                )
    return found


def _ike_line(thread: _Thread, text: str) -> None:
    if secret := _SECRET.match(text):
        thread.drop_half()
        length = int(secret[2])
        if length <= _MAX_KEY:
            thread.open = (secret[1], length)
            thread.keys[secret[1]] = b""
        return
    if thread.open is None:
        return
    which, length = thread.open
    dump = _DUMP.match(text)
    have = thread.keys[which]
    if dump is None or int(dump[1]) != len(have):
        thread.drop_half()
        return
    # The printable characters follow the hex digits; a short last row can run into them.
    have += bytes.fromhex(dump[2])[: length - len(have)]
    thread.keys[which] = have
    if len(have) >= length:
        thread.open = None
