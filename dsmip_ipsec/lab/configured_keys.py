"""Keys for user-space IPsec: made for one run, and, where the user asked for them, told again for
the Wireshark export."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.node.config import HomeAgentConfig, load
from dsmip_ipsec.node.configured_sas import associations
from dsmip_ipsec.wire.esp import SPI_RESERVED_MAX

# AES-GCM with 128 bits: the kernel's labs negotiate it, too.
_CIPHER = "rfc4106(gcm(aes))"
_KEY_AND_SALT = 16 + 4
_ICV_BITS = 128


def fresh_keys(mobile_nodes: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The ``associations`` sections of each mobile node: one SA for each use and direction, with a
    key that was never used before."""
    spis = count(SPI_RESERVED_MAX + 1 + secrets.randbits(24))
    return {
        node: [
            {
                "use": use,
                "to": to,
                "spi": next(spis),
                "fresh_key": True,
                "aead": {
                    "name": _CIPHER,
                    "key": secrets.token_hex(_KEY_AND_SALT),
                    "icv_bits": _ICV_BITS,
                },
            }
            for use in ("signalling", "data")
            for to in ("home_agent", "mobile_node")
        ]
        for node in mobile_nodes
    }


def configured(daemon_config: Path) -> tuple[SecurityAssociation, ...]:
    """The SAs, with keys, of a home agent's daemon. Raises ConfigError."""
    config = load(daemon_config, HomeAgentConfig)
    return tuple(
        association
        for peering, node in zip(config.peerings(), config.mobile_nodes, strict=True)
        for association in associations(peering, node.associations)
    )
