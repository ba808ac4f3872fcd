"""Certificates, judged by OpenSSL's own verification."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography.x509.oid import NameOID

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike.inventory import Certificate
from dsmip_ipsec.ike.pki import CertificateAuthority, KeyType

NOW = datetime.datetime.now(datetime.UTC)


def openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("key_type", list(KeyType))
@pytest.mark.parametrize(
    ("identity", "alternative_name"),
    [("mn.example.org", "DNS:mn.example.org"), ("mn@example.org", "email:mn@example.org")],
)
def test_openssl_verifies_what_we_issue(
    tmp_path: Path, key_type: KeyType, identity: str, alternative_name: str
) -> None:
    ca = CertificateAuthority.create(now=NOW, key_type=key_type)
    issued = ca.issue(identity, now=NOW, key_type=key_type)
    for name, pem in (("ca", issued.ca_certificate), ("end", issued.certificate)):
        (tmp_path / name).write_bytes(pem)
    (tmp_path / "key").write_bytes(issued.private_key)
    end = str(tmp_path / "end")
    assert openssl("verify", "-x509_strict", "-CAfile", str(tmp_path / "ca"), end).endswith("OK\n")
    text = openssl("x509", "-in", end, "-noout", "-text")
    assert alternative_name in text
    assert "CA:FALSE" in text
    assert openssl("pkey", "-in", str(tmp_path / "key"), "-pubout") == openssl(
        "x509", "-in", end, "-noout", "-pubkey"
    )
    # Another CA of the same name doesn't verify it.
    (tmp_path / "ca").write_bytes(CertificateAuthority.create(now=NOW).certificate_pem)
    assert "OK" not in openssl("verify", "-CAfile", str(tmp_path / "ca"), end)


def test_an_end_certificate_can_not_issue(tmp_path: Path) -> None:
    ca = CertificateAuthority.create(now=NOW)
    end = ca.issue("mn.example.org", now=NOW)
    with pytest.raises(ConfigError, match="not a CA's"):
        CertificateAuthority.from_pem(end.certificate, end.private_key)


def test_ca_survives_storage() -> None:
    ca = CertificateAuthority.create(now=NOW)
    again = CertificateAuthority.from_pem(ca.certificate_pem, ca.private_key_pem)
    assert again.certificate == ca.certificate
    assert again.private_key_pem == ca.private_key_pem


def test_broken_ca_files_are_typed_errors_without_their_content() -> None:
    ca, other = (CertificateAuthority.create(now=NOW) for _ in range(2))
    key = ca.private_key_pem
    for certificate, private_key in (
        (b"junk", key),
        (ca.certificate_pem, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"),
        (ca.certificate_pem, other.private_key_pem),
        (b"", b""),
    ):
        with pytest.raises(ConfigError) as caught:
            CertificateAuthority.from_pem(certificate, private_key)
        assert "c2VjcmV0" not in str(caught.value)


def test_keys_do_not_show() -> None:
    ca = CertificateAuthority.create(now=NOW)
    issued = ca.issue("mn.example.org", now=NOW)
    line = issued.private_key.splitlines()[1].decode()
    assert line not in repr(issued)
    assert "PrivateKey" not in repr(ca)


def test_validity() -> None:
    ca = CertificateAuthority.create(now=NOW, days=2)
    assert ca.certificate.not_valid_before_utc < NOW
    assert ca.certificate.not_valid_after_utc - NOW < datetime.timedelta(days=2)
    for days in (0, -1, 10**6):
        with pytest.raises(ConfigError):
            ca.issue("mn.example.org", now=NOW, days=days)
    with pytest.raises(ConfigError):
        ca.issue("*.example.org", now=NOW)


def test_credentials_must_be_pem() -> None:
    with pytest.raises(ConfigError, match="private_key is not PEM"):
        Certificate(
            certificate=b"-----BEGIN CERTIFICATE-----",
            ca_certificate=b"-----BEGIN CERTIFICATE-----",
            private_key=b"0000",
        )


def test_a_long_name_ends_within_x520s_octets() -> None:
    authority = CertificateAuthority.create("x" + 40 * "é", now=NOW)
    (attribute,) = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert attribute.value == "x" + 31 * "é"
