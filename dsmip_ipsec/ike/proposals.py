"""Which algorithm proposals charon takes, checked before it sees them.

charon refuses a whole configuration for one misspelt word, and says no more than "invalid value
for: proposals". The keywords are strongSwan's (docs.strongswan.org, "IKEv2 Cipher Suites"); of
these, the ones that the plugins we load provide. ``tests/kernel/test_inventory_fuzz.py`` has a real
charon judge the tables and the rules.
"""

from __future__ import annotations

import re
from typing import Literal

from dsmip_ipsec.errors import ConfigError

Use = Literal["IKE", "ESP"]

DEFAULT = "default"  # charon's own

_SIZES = ("128", "192", "256")
_ICVS = ("8", "12", "16", "64", "96", "128", "")  # octets, or bits; none: 16 octets

CIPHERS = frozenset(
    {"aes", "3des", "camellia"}
    | {f"{cipher}{size}" for cipher in ("aes", "camellia") for size in _SIZES}
    | {f"{cipher}{size}ctr" for cipher in ("aes", "camellia") for size in _SIZES}
)
AEAD_CIPHERS = frozenset(
    {"chacha20poly1305"}
    | {f"aes{size}{mode}{icv}" for size in _SIZES for mode in ("ccm", "gcm") for icv in _ICVS}
)
INTEGRITY = frozenset(
    {"sha", "sha1", "sha256", "sha2_256", "sha384", "sha2_384", "sha512", "sha2_512"}
)
PRFS = frozenset({"prfsha1", "prfsha256", "prfsha384", "prfsha512"})
GROUPS = frozenset(
    {f"modp{bits}" for bits in ("1024", "1536", "2048", "3072", "4096", "6144", "8192")}
    | {"modp1024s160", "modp2048s224", "modp2048s256"}
    | {f"ecp{bits}" for bits in ("192", "224", "256", "384", "521")}
    | {f"ecp{bits}bp" for bits in ("224", "256", "384", "512")}
    | {"curve25519", "x25519", "curve448", "x448"}
)
NULL_CIPHER = frozenset({"null"})  # integrity only (RFC 2410)
SEQUENCE_NUMBERS = frozenset({"esn", "noesn"})

_WORD = re.compile(r"[a-z0-9_]+")


def check(proposal: str, use: Use, what: str) -> str:
    """``proposal`` itself, such as ``aes128gcm16-prfsha256-ecp256``.

    :raises ConfigError: charon wouldn't take it for IKE or for ESP.
    """
    if proposal == DEFAULT:
        return proposal
    words = proposal.split("-")
    known = CIPHERS | AEAD_CIPHERS | INTEGRITY | GROUPS
    known |= PRFS if use == "IKE" else NULL_CIPHER | SEQUENCE_NUMBERS
    for word in words:
        if not _WORD.fullmatch(word) or word not in known:
            raise _refuse(proposal, what, f"{_shown(word)} is no algorithm of it", use)
    if repeated := [word for word in words if words.count(word) > 1]:
        raise _refuse(proposal, what, f"'{repeated[0]}' is there twice", use)
    given = frozenset(words)
    combined, classic = given & AEAD_CIPHERS, given & (CIPHERS | NULL_CIPHER)
    if combined and classic:
        # RFC 7296 §3.3: they go into proposals of their own.
        raise _refuse(proposal, what, "it mixes AEAD and other ciphers", use)
    if not combined and not classic:
        raise _refuse(proposal, what, "it has no cipher", use)
    if classic and not given & INTEGRITY:
        raise _refuse(proposal, what, "it has a cipher without integrity algorithm", use)
    if combined and given & INTEGRITY:
        # charon would leave it out (ESP) or take a PRF from it (IKE): not what it says.
        raise _refuse(proposal, what, "an AEAD cipher needs no integrity algorithm", use)
    if use == "IKE" and combined and not given & PRFS:
        raise _refuse(proposal, what, "an AEAD cipher needs a PRF beside it in IKE", use)
    if use == "IKE" and not given & GROUPS:
        raise _refuse(proposal, what, "it has no Diffie-Hellman group, which IKE needs", use)
    return proposal


def _shown(word: str) -> str:
    return repr(word if len(word) <= 40 else word[:37] + "...")


def _refuse(proposal: str, what: str, why: str, use: Use) -> ConfigError:
    example = "aes256-sha256-modp2048" if use == "IKE" else "aes256-sha256"
    return ConfigError(
        f"{what} {_shown(proposal)}: {why}",
        hint=f"write it like {example!r} or 'default', with strongSwan's keywords "
        "(docs.strongswan.org, IKEv2 Cipher Suites)",
    )
