"""SAs by configuration (RFC 4301 §4.5.1: manual techniques), for user-space IPsec without IKE.

Both ends name the same SAs with the same keys. Care-of addresses aren't written anywhere: a data
SA is moved to where each binding says, like one that IKE made.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_network
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ipsec.esp_ciphers import esp_cipher
from dsmip_ipsec.ipsec.esp_errors import EspError
from dsmip_ipsec.ipsec.model import (
    Address,
    Algorithm,
    Mode,
    SecretKey,
    SecurityAssociation,
    Selector,
)
from dsmip_ipsec.ipsec.peering import Peering
from dsmip_ipsec.wire.esp import SPI_RESERVED_MAX
from dsmip_ipsec.wire.ip import IPPROTO_MH

_NOWHERE = IPv4Address(0)
_REPLAY_WINDOW = 64


class AlgorithmSection(BaseModel):
    """An algorithm by its name in the kernel's crypto API; ``key`` in hexadecimal digits (an
    AEAD's ends with its salt), ``icv_bits`` for AEADs and MACs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    key: SecretStr = SecretStr("")
    icv_bits: int = Field(default=0, ge=0, le=512)

    def algorithm(self) -> Algorithm:
        """Raises ConfigError."""
        try:
            key = bytes.fromhex(self.key.get_secret_value())
        except ValueError:
            raise ConfigError(f"the key of {self.name} isn't hexadecimal") from None
        return Algorithm(self.name, SecretKey(key), self.icv_bits)


class AssociationSection(BaseModel):
    """One SA. ``use``: signalling (BU and BA, RFC 5555 §5.2.1) or data (§5.2.2).

    ``fresh_key``: this key was made for this one start of both daemons. AES-GCM and
    ChaCha20-Poly1305 need that: sequence numbers, hence IVs, start at 1 again with the daemon, and
    an IV used twice with one key breaks them (RFC 4106 §2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: Literal["signalling", "data"]
    to: Literal["home_agent", "mobile_node"]
    spi: int = Field(gt=SPI_RESERVED_MAX, le=0xFFFFFFFF)
    aead: AlgorithmSection | None = None
    encryption: AlgorithmSection | None = None
    authentication: AlgorithmSection | None = None
    fresh_key: bool = False


def associations(
    peering: Peering, sections: Sequence[AssociationSection]
) -> tuple[SecurityAssociation, ...]:
    """The SAs of ``peering``. Raises ConfigError: unusable algorithms, an SA that is missing or
    there twice, a key that mustn't be configured."""
    wanted = ["signalling"] + ["data"] * peering.protect_data
    needed = {(use, to) for use in wanted for to in ("home_agent", "mobile_node")}
    given: list[tuple[str, str]] = [(section.use, section.to) for section in sections]
    for use, to in sorted(needed | set(given)):
        count = given.count((use, to))
        if count != ((use, to) in needed):
            raise ConfigError(
                f"{count} {use} SAs to the {to.replace('_', ' ')} of {peering.home_address}",
                hint="user-space IPsec has no IKE: configure one SA for each use and direction "
                "(no data SAs with protect_data = false)",
            )
    if len({section.spi for section in sections}) != len(sections):
        raise ConfigError(
            f"an SPI of {peering.home_address} is there twice", hint="give each SA its own"
        )
    return tuple(_association(peering, section) for section in sections)


def _algorithm(section: AlgorithmSection | None) -> Algorithm | None:
    return None if section is None else section.algorithm()


def _association(peering: Peering, section: AssociationSection) -> SecurityAssociation:
    up = section.to == "home_agent"
    mobile: Address = peering.home_address
    agent: Address = peering.home_agent
    mode, reqid = Mode.TRANSPORT, peering.reqids.signalling
    if section.use == "data":
        # Where the mobile node is, its binding will tell.
        mobile, agent = _NOWHERE, peering.home_agent_ipv4
        mode, reqid = Mode.TUNNEL, peering.reqids.data
    source, destination = (mobile, agent) if up else (agent, mobile)
    selector = None
    if section.use == "signalling":
        selector = Selector(ip_network(source), ip_network(destination), IPPROTO_MH)
    where = f"SA 0x{section.spi:08x}"
    try:
        association = SecurityAssociation(
            section.spi,
            source,
            destination,
            mode,
            reqid,
            aead=_algorithm(section.aead),
            encryption=_algorithm(section.encryption),
            authentication=_algorithm(section.authentication),
            selector=selector,
            replay_window=_REPLAY_WINDOW,
        )
        cipher = esp_cipher(association)
    except (EspError, ConfigError) as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
    if not cipher.integrity:
        raise ConfigError(f"{where} has no integrity", hint="add an authentication algorithm")
    if section.aead is not None and not section.fresh_key:
        raise ConfigError(
            f"{where}: {section.aead.name} with a configured key",
            hint="use cbc(aes) with hmac(sha256), or, for a key that was made for this one start "
            "of both daemons, say fresh_key = true",
        )
    return association
