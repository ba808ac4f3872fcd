"""A certification authority in a directory: what it issued, what it revoked.

::

    ca.pem                    the CA's certificate
    ca-key.pem                its private key, 0600
    index.json                every certificate that it issued, with its state
    crl.pem                   the certificate revocation list
    certificates/IDENTITY.pem the newest certificate of each identity
    private/IDENTITY.pem      its private key, 0600

No private key is ever written over one that is there unless the caller says ``force``.
"""

from __future__ import annotations

import datetime
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import quoting
from dsmip_ipsec.ike.inventory import Certificate
from dsmip_ipsec.ike.pki import CertificateAuthority, KeyType, Revocation
from dsmip_ipsec.ike.private_files import make_directory, read_file, replace_file


@dataclass(frozen=True, slots=True)
class Issued:
    """One line of the index. Times are aware; ``revoked_at`` None: not revoked."""

    serial: int
    identity: str
    key_type: KeyType
    not_after: datetime.datetime
    revoked_at: datetime.datetime | None = None

    def valid(self, now: datetime.datetime) -> bool:
        return self.revoked_at is None and now < self.not_after


@dataclass(frozen=True, slots=True)
class _Index:
    crl_number: int
    issued: tuple[Issued, ...]


class CaStore:
    """The CA in ``directory``. Each method reads the directory anew, under a lock: two commands
    at the same time don't lose each other's work."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # Files -----------------------------------------------------------------------------------

    @property
    def certificate_file(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def key_file(self) -> Path:
        return self.directory / "ca-key.pem"

    @property
    def revocation_list_file(self) -> Path:
        return self.directory / "crl.pem"

    @property
    def _index_file(self) -> Path:
        return self.directory / "index.json"

    def certificate_of(self, identity: str) -> Path:
        """Where the newest certificate of an identity is. :raises ConfigError: not an identity."""
        return self.directory / "certificates" / f"{_checked(identity)}.pem"

    def key_of(self, identity: str) -> Path:
        """Where the private key of that certificate is. :raises ConfigError: not an identity."""
        return self.directory / "private" / f"{_checked(identity)}.pem"

    def exists(self) -> bool:
        return self.certificate_file.exists() or self.key_file.exists()

    # What it does ------------------------------------------------------------------------------

    def create(
        self,
        *,
        name: str = "dsmip-ipsec CA",
        key_type: KeyType = KeyType.ECDSA,
        days: int = 3650,
        now: datetime.datetime,
        force: bool = False,
    ) -> None:
        """A new CA with an empty revocation list.

        :raises ConfigError: there is one and ``force`` isn't given, or it can't be written.
        """
        authority = CertificateAuthority.create(name, now=now, key_type=key_type, days=days)
        for path, mode in (
            (self.directory, 0o755),
            (self.directory / "certificates", 0o755),
            (self.directory / "private", 0o700),
        ):
            make_directory(path, mode)
        with self._locked():
            if self.exists() and not force:
                raise ConfigError(
                    f"there is a CA in {self.directory}",
                    hint="use it, choose another directory, or say --force to lose its key and "
                    "with it every certificate that it issued",
                )
            replace_file(self.key_file, authority.private_key_pem)
            replace_file(self.certificate_file, authority.certificate_pem, 0o644)
            self._write(authority, _Index(0, ()), now)

    def issue(
        self,
        identity: str,
        *,
        key_type: KeyType = KeyType.ECDSA,
        days: int = 365,
        now: datetime.datetime,
        force: bool = False,
    ) -> Certificate:
        """A certificate and a private key for an identity.

        :raises ConfigError: it has a valid one (and no ``force``), or can't be written.
        """
        with self._locked():
            authority, index = self._read()
            held = [each for each in index.issued if _same(each, identity) and each.valid(now)]
            if not force and (held or self.key_of(identity).exists()):
                raise ConfigError(
                    f"{identity} has a certificate or key of this CA",
                    hint="renew it (`dsmip-ipsec ca renew`), or say --force for a new one",
                )
            return self._issue(authority, index, identity, key_type, days, now)

    def renew(
        self, identity: str, *, days: int = 365, now: datetime.datetime, revoke_old: bool = False
    ) -> Certificate:
        """A new certificate with a new key of the same type. The old one stays valid until it
        ends, so that the new one can be brought to its node first; or not (``revoke_old``).

        :raises ConfigError: the identity never had one.
        """
        with self._locked():
            authority, index = self._read()
            held = [each for each in index.issued if _same(each, identity)]
            if not held:
                raise ConfigError(
                    f"{identity} has no certificate of this CA", hint=_known(index, identity)
                )
            if revoke_old:
                index = _revoked(index, {each.serial for each in held}, now)
            return self._issue(authority, index, identity, held[-1].key_type, days, now)

    def revoke(self, who: str, *, now: datetime.datetime) -> tuple[Issued, ...]:
        """Revoke all certificates of an identity, or the one with a serial number (hexadecimal),
        and write a new revocation list. Returns what was revoked now.

        :raises ConfigError: there is no such certificate, or it is revoked already.
        """
        with self._locked():
            authority, index = self._read()
            matching = [
                each
                for each in index.issued
                if _same(each, who) or f"{each.serial:040x}" == who.lower().zfill(40)
            ]
            if not matching:
                raise ConfigError(
                    f"{who!r} is neither an identity nor a serial number of this CA",
                    hint=_known(index, who),
                )
            serials = {each.serial for each in matching if each.revoked_at is None}
            if not serials:
                raise ConfigError(f"{who} is revoked already")
            index = _revoked(index, serials, now)
            self._write(authority, index, now)
            return tuple(each for each in index.issued if each.serial in serials)

    def renew_revocation_list(self, *, days: int = 30, now: datetime.datetime) -> bytes:
        """A fresh revocation list, valid for ``days``. :raises ConfigError: as all of these."""
        with self._locked():
            authority, index = self._read()
            return self._write(authority, index, now, days)

    def certificates(self) -> tuple[Issued, ...]:
        """Every certificate, oldest first. :raises ConfigError: no CA, or a broken index."""
        with self._locked():
            return self._read()[1].issued

    def newest(self, identity: str, now: datetime.datetime) -> tuple[Issued, Certificate] | None:
        """The newest certificate of an identity with its key, unless it has expired. It may be
        revoked: its line tells.

        :raises ConfigError: a file that should be there can't be read.
        """
        with self._locked():
            _, index = self._read()
            held = [each for each in index.issued if _same(each, identity)]
            if not held or held[-1].not_after <= now:
                return None
            return held[-1], Certificate(
                certificate=read_file(self.certificate_of(identity), "a certificate"),
                ca_certificate=read_file(self.certificate_file, "the CA's certificate"),
                private_key=read_file(self.key_of(identity), "a private key"),
            )

    # How ---------------------------------------------------------------------------------------

    def _issue(
        self,
        authority: CertificateAuthority,
        index: _Index,
        identity: str,
        key_type: KeyType,
        days: int,
        now: datetime.datetime,
    ) -> Certificate:
        issued = authority.issue(identity, now=now, key_type=key_type, days=days)
        parsed = x509.load_pem_x509_certificate(issued.certificate)
        line = Issued(parsed.serial_number, identity, key_type, parsed.not_valid_after_utc)
        # First the index: a certificate that isn't in it could never be revoked.
        self._write(authority, replace(index, issued=(*index.issued, line)), now)
        replace_file(self.key_of(identity), issued.private_key)
        replace_file(self.certificate_of(identity), issued.certificate, 0o644)
        return issued

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with (self.directory / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ConfigError(
                f"no CA can be used in {self.directory}: {error.strerror}",
                hint="make one with `dsmip-ipsec ca create`",
            ) from error

    def _read(self) -> tuple[CertificateAuthority, _Index]:
        if not self.exists():
            raise ConfigError(
                f"there is no CA in {self.directory}",
                hint="make one with `dsmip-ipsec ca create`",
            )
        authority = CertificateAuthority.from_pem(
            read_file(self.certificate_file, "the CA's certificate"),
            read_file(self.key_file, "the CA's private key"),
        )
        text = read_file(self._index_file, "the CA's index", limit=1 << 26)
        try:
            index = _index_from(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                "the CA's index is broken",
                path=self._index_file,
                hint="take it from a backup: without it nothing can be revoked",
            ) from error
        return authority, index

    def _write(
        self,
        authority: CertificateAuthority,
        index: _Index,
        now: datetime.datetime,
        days: int = 30,
    ) -> bytes:
        index = replace(index, crl_number=index.crl_number + 1)
        revoked = [
            Revocation(each.serial, each.revoked_at)
            for each in index.issued
            if each.revoked_at is not None
        ]
        revocation_list = authority.revocation_list(
            revoked, number=index.crl_number, now=now, days=days
        )
        text = json.dumps(_index_to(index), indent=1) + "\n"
        replace_file(self._index_file, text.encode(), 0o644)
        replace_file(self.revocation_list_file, revocation_list, 0o644)
        return revocation_list


def _checked(identity: str) -> str:
    # An identity can't have a slash, nor begin with a dot: it is safe as a file's name.
    return quoting.identity(identity, "identity").lower()


def _same(issued: Issued, identity: str) -> bool:
    return issued.identity.lower() == identity.lower()


def _known(index: _Index, asked_for: str) -> str:
    known = sorted({each.identity for each in index.issued})
    return f"it issued to: {', '.join(known) or 'nobody yet'}" if asked_for else ""


def _revoked(index: _Index, serials: set[int], now: datetime.datetime) -> _Index:
    return replace(
        index,
        issued=tuple(
            replace(each, revoked_at=now)
            if each.serial in serials and each.revoked_at is None
            else each
            for each in index.issued
        ),
    )


def _index_to(index: _Index) -> dict[str, Any]:
    return {
        "crl_number": index.crl_number,
        "certificates": [
            {
                "serial": f"{each.serial:x}",
                "identity": each.identity,
                "key_type": each.key_type.value,
                "not_after": each.not_after.isoformat(),
                "revoked_at": each.revoked_at.isoformat() if each.revoked_at else None,
            }
            for each in index.issued
        ],
    }


def _index_from(raw: Any) -> _Index:
    return _Index(
        int(raw["crl_number"]),
        tuple(
            Issued(
                int(each["serial"], 16),
                quoting.identity(each["identity"], "identity"),
                KeyType(each["key_type"]),
                _time(each["not_after"]),
                _time(each["revoked_at"]) if each["revoked_at"] is not None else None,
            )
            for each in raw["certificates"]
        ),
    )


def _time(text: str) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    return time
