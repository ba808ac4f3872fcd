"""Bindings as JSON, for status answers; the run record has the same fields."""

from __future__ import annotations

from typing import Any

from dsmip_ipsec.mobility.types import Binding


def binding_dict(binding: Binding, *, seen: bool = True) -> dict[str, Any]:
    """A binding as plain JSON values.

    ``outer_*`` are V4ADDR and Z of RFC 5555 §5.2.1, which only the home agent sees: null with
    ``seen`` false.
    """
    ipv4_home = binding.ipv4_home_address
    outer = binding.outer if seen else None
    return {
        "home_address": str(binding.home_address),
        "ipv4_home_address": str(ipv4_home.ip) if ipv4_home is not None else None,
        "care_of_address": str(binding.care_of_address),
        "outer_address": str(outer.address) if outer is not None else None,
        "outer_port": outer.port if outer is not None else None,
        "nat_detected": binding.nat_detected,
        "udp_encapsulation": binding.udp_encapsulation,
        "k_bit": binding.key_mobility,
        "sequence": binding.sequence,
        "lifetime_s": binding.lifetime,
    }
