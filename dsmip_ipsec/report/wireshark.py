"""Export of a run's keys as a ready ``WIRESHARK_CONFIG_DIR``.

The directory that :func:`export` fills makes ``tshark -r CAPTURE`` (and Wireshark) show what
is inside ESP and IKEv2, with no further options:

``esp_sa``                   keys of ESP SAs
``ikev2_decryption_table``   keys of IKE_SAs
``preferences``              ESP decryption and ICV check switched on
``decode_as_entries``        UDP port 4191 carries bare IP packets (RFC 5555 §4.1)

The formats are Wireshark's "user accessible tables": one record a line, fields separated by
commas, text in quotes, comments after ``#``. All names and lengths here were tried on tshark
4.0.17. It drops a *whole table* from the first bad line on, so every field is checked before
it is written, and what Wireshark can't decrypt is reported as skipped instead of written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.ike.keylog import IkeKeys

if TYPE_CHECKING:
    from dsmip_ipsec.ipsec.model import SecurityAssociation

UDP_ENCAPSULATION_PORT = 4191  # RFC 5555 §9: "DSMIPv6"

# Kernel (crypto API) names on the left, Wireshark's on the right. Key lengths in octets.
_AES_LENGTHS = (16, 24, 32)
_GCM_LENGTHS = (20, 28, 36)  # with four octets of salt at the end, RFC 4106 §8.1
_ESP_CIPHERS = {"cbc(aes)": ("AES-CBC [RFC3602]", _AES_LENGTHS)}
_ESP_NULL_CIPHERS = frozenset({"ecb(cipher_null)", "cipher_null"})
# The plain "AES-GCM [RFC4106]" of tshark 4.0 decrypts nothing; these three do.
_ESP_GCM = {
    64: "AES-GCM with 8 octet ICV [RFC4106]",
    96: "AES-GCM with 12 octet ICV [RFC4106]",
    128: "AES-GCM with 16 octet ICV [RFC4106]",
}
_ESP_MACS = {
    ("hmac(sha1)", 96): "HMAC-SHA-1-96 [RFC2404]",
    ("hmac(sha256)", 128): "HMAC-SHA-256-128 [RFC4868]",
    ("hmac(sha384)", 192): "HMAC-SHA-384-192 [RFC4868]",
    ("hmac(sha512)", 256): "HMAC-SHA-512-256 [RFC4868]",
}
_ESP_NULL_MACS = frozenset({"", "digest_null"})
_ESP_OTHER_MAC_BITS = frozenset({64, 96, 128, 192, 256})

# Names of charon's proposals, then Wireshark's and the length of SK_e* or SK_a* in octets.
# Unlike ESP's, this table knows ciphers by key length, and its keys are bare hex digits.
_IKE_CIPHERS = {
    **{
        f"AES_GCM_{icv}_{bits}": (
            f"AES-GCM-{bits} with {icv} octet ICV [RFC5282]",
            bits // 8 + 4,  # with the salt, RFC 5282 §7.1
        )
        for icv in (8, 12, 16)
        for bits in (128, 192, 256)
    },
    **{f"AES_CBC_{b}": (f"AES-CBC-{b} [RFC3602]", b // 8) for b in (128, 192, 256)},
}
_IKE_MACS = {
    "HMAC_SHA1_96": ("HMAC_SHA1_96 [RFC2404]", 20),
    "HMAC_SHA2_256_128": ("HMAC_SHA2_256_128 [RFC4868]", 32),
    "HMAC_SHA2_384_192": ("HMAC_SHA2_384_192 [RFC4868]", 48),
    "HMAC_SHA2_512_256": ("HMAC_SHA2_512_256 [RFC4868]", 64),
}


class UnsupportedByWireshark(DsmipError):
    """Wireshark has no way to decrypt this SA. ``what`` names it, ``why`` says what it lacks."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"{what}: {why}",
            hint="negotiate AES-GCM, or AES-CBC with HMAC-SHA2, to read it in Wireshark",
        )
        self.what = what
        self.why = why


@dataclass(frozen=True, slots=True)
class SaKeys:
    """An ESP SA with its keys, as the kernel has them. Keys never print.

    ``encryption`` and ``authentication`` are the kernel's algorithm names; an AEAD such as
    ``rfc4106(gcm(aes))`` stands in ``encryption``, with its salt at the end of the key.
    ``icv_bits`` is the length of the ICV, of the AEAD or of the truncated MAC.
    ``encapsulation`` (UDP ports) and ``note`` are for the reader of the file only. An SA with
    extended sequence numbers decodes, but Wireshark, which has none, calls its ICV wrong.
    """

    spi: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    encryption: str
    encryption_key: bytes = field(repr=False)
    icv_bits: int
    authentication: str = ""
    authentication_key: bytes = field(default=b"", repr=False)
    mode: str = ""
    encapsulation: tuple[int, int] | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The SA in words, without keys."""
        text = f"spi 0x{self.spi:08x} {self.source} -> {self.destination}"
        if self.mode:
            text += f" {self.mode}"
        if self.encapsulation is not None:
            text += " UDP {} -> {}".format(*self.encapsulation)
        return text + (f" {self.note}" if self.note else "")

    @classmethod
    def of(cls, sa: SecurityAssociation, *, note: str = "") -> SaKeys:
        """The export of an SA of :mod:`dsmip_ipsec.ipsec.model`, keys revealed."""
        cipher = sa.aead or sa.encryption
        mac = sa.authentication
        return cls(
            spi=sa.spi,
            source=sa.source,
            destination=sa.destination,
            encryption=cipher.name if cipher else "cipher_null",
            encryption_key=cipher.key.reveal() if cipher else b"",
            icv_bits=sa.aead.icv_bits if sa.aead else mac.icv_bits if mac else 0,
            authentication=mac.name if mac else "",
            authentication_key=mac.key.reveal() if mac else b"",
            mode=sa.mode.value,
            encapsulation=(
                (sa.encapsulation.source_port, sa.encapsulation.destination_port)
                if sa.encapsulation
                else None
            ),
            note=note,
        )


@dataclass(frozen=True, slots=True)
class Export:
    """What :func:`export` did: how many SAs of each kind are in the files, which couldn't be."""

    directory: Path
    esp_sas: int
    ike_sas: int
    skipped: tuple[UnsupportedByWireshark, ...]


def esp_algorithms(sa: SaKeys) -> tuple[str, str]:
    """Wireshark's names of the SA's encryption and authentication.

    Raises UnsupportedByWireshark for algorithms and key lengths that it doesn't have.
    """
    if not 0 < sa.spi <= 0xFFFFFFFF:
        raise UnsupportedByWireshark(sa.name, "the SPI isn't one")
    if sa.encryption == "rfc4106(gcm(aes))":
        if sa.icv_bits not in _ESP_GCM:
            raise UnsupportedByWireshark(sa.name, f"AES-GCM has no ICV of {sa.icv_bits} bits")
        _check_key(sa.name, sa.encryption, sa.encryption_key, _GCM_LENGTHS)
        # With any authentication but NULL, Wireshark refuses to look at AES-GCM at all.
        return _ESP_GCM[sa.icv_bits], "NULL"
    if sa.encryption in _ESP_NULL_CIPHERS:
        cipher = "NULL"
    elif sa.encryption in _ESP_CIPHERS:
        cipher, lengths = _ESP_CIPHERS[sa.encryption]
        _check_key(sa.name, sa.encryption, sa.encryption_key, lengths)
    else:
        raise UnsupportedByWireshark(sa.name, f"Wireshark can't decrypt {sa.encryption}")
    if sa.authentication in _ESP_NULL_MACS:
        return cipher, "NULL"
    mac = _ESP_MACS.get((sa.authentication, sa.icv_bits))
    if mac is None:
        # It needs no more than the ICV's length to find the end of the ciphertext.
        if sa.icv_bits not in _ESP_OTHER_MAC_BITS:
            raise UnsupportedByWireshark(
                sa.name, f"Wireshark has no ICV of {sa.icv_bits} bits for {sa.authentication}"
            )
        mac = f"ANY {sa.icv_bits} bit authentication [no checking]"
    return cipher, mac


def esp_sa_lines(sa: SaKeys, *, any_address: bool = True) -> list[str]:
    """Lines of ``esp_sa`` for one SA: one with its addresses and, with ``any_address``, one for
    each family with any addresses.

    Wireshark finds an SA by family, addresses and SPI of the packet. Addresses alone won't do:
    a NAT rewrites them between two captures, a handover moves the SA to others (even of the
    other family), and behind a home address option or type 2 routing header Wireshark looks
    for the home address. The SPI survives all of that.

    Raises UnsupportedByWireshark.
    """
    cipher, mac = esp_algorithms(sa)
    source, destination = (type(a)(int(a)) for a in (sa.source, sa.destination))  # no zone
    addresses = [(f"IPv{source.version}", str(source), str(destination))]
    if any_address:
        addresses += [("IPv6", "*", "*"), ("IPv4", "*", "*")]
    encryption_key = f"0x{sa.encryption_key.hex()}" if cipher != "NULL" else ""
    authentication_key = f"0x{sa.authentication_key.hex()}" if mac.startswith("HMAC") else ""
    return [
        _record(*address, f"0x{sa.spi:08x}", cipher, encryption_key, mac, authentication_key)
        for address in addresses
    ]


def ikev2_line(ike: IkeKeys) -> str:
    """The line of ``ikev2_decryption_table`` for one IKE_SA. Raises UnsupportedByWireshark."""
    what = _ike_name(ike)
    for spi in (ike.initiator_spi, ike.responder_spi):
        if not 0 < spi < 1 << 64:
            raise UnsupportedByWireshark(what, "an SPI isn't one")
    if ike.encryption not in _IKE_CIPHERS:
        raise UnsupportedByWireshark(
            what, f"Wireshark can't decrypt {ike.encryption or 'an unknown cipher'}"
        )
    cipher, length = _IKE_CIPHERS[ike.encryption]
    for key in (ike.sk_ei, ike.sk_er):
        _check_key(what, ike.encryption, key, (length,))
    if ike.encryption.startswith("AES_GCM"):
        mac, integrity_keys = "NONE [RFC4306]", ("", "")
    elif ike.integrity in _IKE_MACS:
        mac, length = _IKE_MACS[ike.integrity]
        for key in (ike.sk_ai, ike.sk_ar):
            _check_key(what, ike.integrity, key, (length,))
        integrity_keys = (ike.sk_ai.hex(), ike.sk_ar.hex())
    else:
        raise UnsupportedByWireshark(
            what, f"Wireshark can't check {ike.integrity or 'a cipher without integrity'}"
        )
    spis = f"{ike.initiator_spi:016x}", f"{ike.responder_spi:016x}"
    encryption = ike.sk_ei.hex(), ike.sk_er.hex(), f'"{cipher}"'
    return ",".join((*spis, *encryption, *integrity_keys, f'"{mac}"'))


def _ike_name(ike: IkeKeys) -> str:
    spis = f"{ike.initiator_spi:016x}_i {ike.responder_spi:016x}_r"
    return f"IKE_SA {ike.name}[{ike.uniqueid}] {spis}"


def export(
    directory: Path,
    sas: Iterable[SaKeys],
    ike_sas: Iterable[IkeKeys] = (),
    *,
    udp_port: int = UDP_ENCAPSULATION_PORT,
) -> Export:
    """Fill ``directory`` (made if need be, 0700) with the four files (0600 each).

    ``sas`` may name an SA several times, once for each place that it had; that is the normal
    case after a handover. Where one SPI stands for different keys (two receivers may choose
    the same), its lines carry addresses only.

    Raises LabError if the directory can't be written.
    """
    skipped: list[UnsupportedByWireshark] = []
    esp_lines, esp_count = _esp_table(list(sas), skipped)
    ike_lines: list[str] = []
    for ike in dict.fromkeys(ike_sas):
        try:
            ike_lines += [_comment(_ike_name(ike)), ikev2_line(ike)]
        except UnsupportedByWireshark as error:
            skipped.append(error)
            ike_lines.append(_comment(f"skipped: {error}"))
    files = {
        "esp_sa": esp_lines,
        "ikev2_decryption_table": ike_lines,
        "preferences": [
            "esp.enable_encryption_decode: TRUE",
            "esp.enable_authentication_check: TRUE",
        ],
        "decode_as_entries": [f"decode_as_entry: udp.port,{udp_port},(none),IPv4"],
    }
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, lines in files.items():
            _write_private(directory / name, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise LabError(
            f"the keys can't be exported to {directory}: {error.strerror}",
            hint="check that the directory is yours and has room",
        ) from error
    return Export(
        directory=directory,
        esp_sas=esp_count,
        ike_sas=sum(not line.startswith("#") for line in ike_lines),
        skipped=tuple(skipped),
    )


_Material = tuple[str, bytes, int, str, bytes]


def _esp_table(
    sas: Sequence[SaKeys], skipped: list[UnsupportedByWireshark]
) -> tuple[list[str], int]:
    """Lines of ``esp_sa``, and how many SAs (SPI and keys) they hold."""
    by_spi: dict[int, set[_Material]] = {}
    for sa in sas:
        by_spi.setdefault(sa.spi, set()).add(_material(sa))
    exact: list[str] = []
    anywhere: dict[str, None] = {}
    exported: set[tuple[int, _Material]] = set()
    for sa in dict.fromkeys(sas):
        try:
            first, *rest = esp_sa_lines(sa, any_address=len(by_spi[sa.spi]) == 1)
        except UnsupportedByWireshark as error:
            skipped.append(error)
            exact.append(_comment(f"skipped: {error}"))
            continue
        if first not in exact:
            exact += [_comment(sa.name), first]
        anywhere.update(dict.fromkeys(rest))
        exported.add((sa.spi, _material(sa)))
    if anywhere:
        exact.append(_comment("the same, wherever a NAT or a handover takes them"))
    return exact + list(anywhere), len(exported)


def _material(sa: SaKeys) -> _Material:
    cipher = sa.encryption, sa.encryption_key, sa.icv_bits
    return *cipher, sa.authentication, sa.authentication_key


def _check_key(what: str, algorithm: str, key: bytes, lengths: Sequence[int]) -> None:
    if len(key) not in lengths:
        raise UnsupportedByWireshark(
            what,
            f"{algorithm} takes a key of {' or '.join(map(str, lengths))} octets, "
            f"this one has {len(key)}",
        )


def _record(*fields: str) -> str:
    # No field of ours can hold a quote: names come from the tables above, the rest is hex
    # digits and addresses.
    return ",".join(f'"{field}"' for field in fields)


def _comment(text: str) -> str:
    """A comment line; whatever a note holds, it stays one line."""
    return "# " + "".join(c if c.isprintable() else "?" for c in text)


def _write_private(path: Path, text: str) -> None:
    """Replace ``path`` at once; mkstemp makes the new file 0600 before the first octet."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
