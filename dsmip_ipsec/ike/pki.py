"""A small certification authority, enough for a home agent and its mobile nodes.

The identity that IKE checks stands in the subjectAltName (RFC 4945 §5.1.3.1): a domain name as
dNSName, ``user@domain`` as rfc822Name.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import quoting
from dsmip_ipsec.ike.inventory import Certificate

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

# Clocks of lab guests and of small devices are wrong by minutes more often than not.
_CLOCK_SKEW = datetime.timedelta(hours=1)


class KeyType(enum.Enum):
    """Private keys that charon's openssl plugin takes. ECDSA is on P-256, RSA has 2048 bits."""

    ECDSA = "ecdsa"
    RSA = "rsa"
    ED25519 = "ed25519"


def generate_key(key_type: KeyType) -> PrivateKey:
    """A new private key."""
    if key_type is KeyType.ECDSA:
        return ec.generate_private_key(ec.SECP256R1())
    if key_type is KeyType.RSA:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ed25519.Ed25519PrivateKey.generate()


def private_key_pem(key: PrivateKey) -> bytes:
    """PKCS#8, unencrypted: for a file of mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _signature_hash(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _name(common_name: str) -> x509.Name:
    # X.520 limits a common name to 64 characters, which are counted in octets; the identity itself
    # is the subjectAltName.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "dsmip-ipsec"),
            x509.NameAttribute(
                NameOID.COMMON_NAME, common_name.encode()[:64].decode(errors="ignore")
            ),
        ]
    )


@dataclass(frozen=True, slots=True)
class Revocation:
    """A certificate that must no longer be trusted, and since when (an aware datetime)."""

    serial: int
    revoked_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A CA: its certificate and its private key (never shown)."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    @classmethod
    def create(
        cls,
        name: str = "dsmip-ipsec CA",
        *,
        now: datetime.datetime,
        key_type: KeyType = KeyType.ECDSA,
        days: int = 3650,
    ) -> CertificateAuthority:
        """A new self-signed CA, valid for ``days`` from ``now`` (an aware datetime).

        :raises ConfigError: an empty name, or a lifetime below one day.
        """
        if not name.strip():
            raise ConfigError("a CA needs a name")
        key = generate_key(key_type)
        subject = _name(name)
        builder = (
            _builder(subject, subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
        )
        return cls(builder.sign(key, _signature_hash(key)), key)

    @classmethod
    def from_pem(cls, certificate: bytes, private_key: bytes) -> CertificateAuthority:
        """A stored CA. :raises ConfigError: not PEM, not a CA, or not its key."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            key = serialization.load_pem_private_key(private_key, password=None)
            constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            # The library's words may quote what it read: keep them out of messages.
            raise ConfigError(
                "the CA's certificate or private key can't be read",
                hint="both have to be PEM, the key unencrypted PKCS#8",
            ) from error
        if not isinstance(
            key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
        ):
            raise ConfigError("the CA's key is neither ECDSA, RSA nor Ed25519")
        if not constraints.value.ca:
            raise ConfigError(
                "the certificate is not a CA's", hint="use the CA's certificate, not an end's"
            )
        if key.public_key() != parsed.public_key():
            raise ConfigError("the CA's private key doesn't belong to its certificate")
        return cls(parsed, key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def private_key_pem(self) -> bytes:
        return private_key_pem(self.key)

    def issue(
        self,
        identity: str,
        *,
        now: datetime.datetime,
        key_type: KeyType = KeyType.ECDSA,
        days: int = 365,
    ) -> Certificate:
        """A certificate and key for the IKE identity ``identity``.

        :param identity: a domain name or ``user@domain``.
        :raises ConfigError: another kind of identity.
        """
        quoting.identity(identity, "identity")
        key = generate_key(key_type)
        name: x509.GeneralName = (
            x509.RFC822Name(identity) if "@" in identity else x509.DNSName(identity)
        )
        builder = (
            _builder(_name(identity), self.certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.IPSEC_IKE]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        certificate = builder.sign(self.key, _signature_hash(self.key))
        return Certificate(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            ca_certificate=self.certificate_pem,
            private_key=private_key_pem(key),
        )

    def revocation_list(
        self,
        revoked: Iterable[Revocation],
        *,
        number: int,
        now: datetime.datetime,
        days: int = 30,
    ) -> bytes:
        """A certificate revocation list, PEM (RFC 5280 §5).

        :param number: larger than that of every list before (§5.2.3); charon takes the largest.
        :param days: until the next list is due. What charon does with an overdue one depends on
            its ``revocation`` policy.
        :raises ConfigError: a number or lifetime that a list can't have.
        """
        if not 0 <= number < 1 << 159:
            raise ConfigError(f"a revocation list can't have the number {number}")
        _check_days(days, "revocation list")
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _CLOCK_SKEW)
            .next_update(now + datetime.timedelta(days=days))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(each.serial)
                .revocation_date(each.revoked_at)
                .build()
            )
        signed = builder.sign(self.key, _signature_hash(self.key))
        return signed.public_bytes(serialization.Encoding.PEM)


def _check_days(days: int, what: str) -> None:
    if not 1 <= days <= 36500:
        raise ConfigError(
            f"a {what} can't be valid for {days} days", hint="1 to 36500 days are possible"
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    _check_days(days, "certificate")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
