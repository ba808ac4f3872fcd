"""Reading inventory files: TOML to a checked :class:`InventoryFile`, or a ConfigError with the
line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from pydantic import ValidationError

from dsmip_ipsec import toml_checks
from dsmip_ipsec.ike.private_files import read_file
from dsmip_ipsec.node.inventory_models import X509, EapAkaTable, EapMd5, InventoryFile
from dsmip_ipsec.toml_checks import Problem

KIND = toml_checks.Kind(InventoryFile, "an inventory", "docs/render.md")
HOME_AGENT = "ha"  # the home agent's directory and file names
CA, SECRETS = "ca", "secrets"  # directories beside the nodes'

_CHANGE = "change one of them"
_UNICAST = "name a unicast address that others can reach"
_ROUTED = "name a unicast prefix that is routed to the home agent"

# Reserved (RFC 1122 §3.2.1.3, RFC 1112 §4), or no IPv6 host's (RFC 4291 §2.5.5).
_NOBODYS: dict[int, tuple[IPv4Network | IPv6Network, ...]] = {
    4: (IPv4Network("0.0.0.0/8"), IPv4Network("240.0.0.0/4")),
    6: (IPv6Network("::/96"), IPv6Network("::ffff:0:0/96")),
}

_Home = tuple[IPv6Address, IPv4Address | None]


@dataclass(frozen=True, slots=True)
class Inventory:
    """A checked inventory. ``homes``: the home addresses of each mobile node, pools dealt out;
    ``base``: the directory that the file names in it are relative to."""

    file: InventoryFile
    homes: dict[str, _Home]
    base: Path


def load(path: Path) -> Inventory:
    """Read and check an inventory.

    :raises ConfigError: the file can't be read, isn't TOML, has an unknown key or a wrong value,
        or things in it don't fit together; with the line where it is.
    """
    return parse(toml_checks.decoded(read_file(path, "the inventory"), path), path)


def parse(text: str, path: Path) -> Inventory:
    """:func:`load` for a text. :raises ConfigError: as :func:`load`."""
    data, lines = toml_checks.parsed(text, path, KIND)
    try:
        file = InventoryFile.model_validate(data)
    except ValidationError as error:
        raise toml_checks.validation_error(error, KIND, data, lines, path) from None
    homes: dict[str, _Home] = {}
    problems = [*_deal(file, homes), *_check(file, homes)]
    if problems:
        raise toml_checks.first_of(problems, lines, path)
    return Inventory(file, homes, path.parent)


def _deal(file: InventoryFile, homes: dict[str, _Home]) -> Iterator[Problem]:
    nodes = file.mobile_nodes
    taken: set[object] = {file.home_agent.ipv6, file.home_agent.ipv4}
    for node in nodes.values():
        taken |= {node.home_address, node.ipv4_home_address}
    ipv6, ipv4 = _free(file.pools.ipv6, taken), _free(file.pools.ipv4, taken)
    for name, node in nodes.items():
        home6 = node.home_address or next(ipv6, None)
        if not isinstance(home6, IPv6Address):
            where = "is used up" if file.pools.ipv6 is not None else "isn't there"
            yield (
                ("mobile_nodes", name),
                f"{name} has no home_address, and the pool for one {where}",
                "add home_address, or widen pools.ipv6",
            )
            continue
        home4 = node.ipv4_home_address
        if home4 is None and file.pools.ipv4 is not None:
            dealt = next(ipv4, None)
            if not isinstance(dealt, IPv4Address):
                yield (
                    ("mobile_nodes", name),
                    f"the pool has no IPv4 home address left for {name}",
                    "widen pools.ipv4, or name ipv4_home_address",
                )
                continue
            home4 = dealt
        homes[name] = (home6, home4)


def _free(
    pool: IPv6Network | IPv4Network | None, taken: set[object]
) -> Iterator[IPv6Address | IPv4Address]:
    return iter(()) if pool is None else (host for host in pool.hosts() if host not in taken)


def _usable(address: IPv6Address | IPv4Address) -> bool:
    """A unicast address that isn't for one host or one link alone."""
    return not (
        address.is_multicast
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or any(address in network for network in _NOBODYS[address.version])
    )


def _check(file: InventoryFile, homes: dict[str, _Home]) -> Iterator[Problem]:
    agent = file.home_agent
    if not isinstance(agent.credentials, X509):
        yield (
            ("home_agent", "credentials", "kind"),
            f"a home agent can't have credentials of kind '{agent.credentials.kind}'",
            "leave the table out: mobile nodes' pre-shared keys are the home agent's as well",
        )
    identities = {agent.identity.lower(): HOME_AGENT}
    eap: dict[str, str] = {}
    addresses: dict[object, str] = {agent.ipv6: HOME_AGENT, agent.ipv4: HOME_AGENT}
    if agent.outer_ipv4 is not None:
        addresses[agent.outer_ipv4] = HOME_AGENT
    for key in ("ipv6", "ipv4", "outer_ipv4"):
        if (address := getattr(agent, key)) is not None and not _usable(address):
            # 0.0.0.0 and :: would even mean "any" to charon.
            yield ("home_agent", key), f"{address} can't be a home agent's address", _UNICAST
    if agent.outer_ipv4 == agent.ipv4:
        yield (
            ("home_agent", "outer_ipv4"),
            "outer_ipv4 is ipv4",
            "leave it out, unless a NAPT stands before the home agent",
        )
    taken = {HOME_AGENT: "the home agent's", CA: "the CA's", SECRETS: "the secrets'"}
    for name, node in file.mobile_nodes.items():
        loc = ("mobile_nodes", name)
        if name in taken:
            yield loc, f"'{name}' is {taken[name]} directory", "choose another name"
        if name == "include":
            yield loc, "'include' is strongSwan's word for another file", "choose another name"
        owner = identities.setdefault(node.identity.lower(), name)
        if owner != name:
            yield (*loc, "identity"), f"{owner} and {name} have the same identity", _CHANGE
        if isinstance(node.credentials, EapMd5 | EapAkaTable):
            own = (node.credentials.eap_identity or node.identity).lower()
            other = eap.setdefault(own, name)
            if other != name:
                yield (
                    (*loc, "credentials"), f"{other} and {name} have the same EAP identity", _CHANGE
                )  # fmt: skip
        for key, address in zip(
            ("home_address", "ipv4_home_address"), homes.get(name, ()), strict=False
        ):
            if address is None:
                continue
            owner = addresses.setdefault(address, name)
            if owner != name:
                yield (
                    (*loc, key),
                    f"{owner} and {name} have the same address {address}",
                    "change one",
                )
            elif not _usable(address):
                yield (*loc, key), f"{address} can't be a home address", _UNICAST
    yield from _check_networks(file, addresses)
    for name in file.overrides:
        if name != HOME_AGENT and name not in file.mobile_nodes:
            known = ", ".join((HOME_AGENT, *file.mobile_nodes))
            yield ("overrides", name), f"'{name}' is no node", f"nodes: {known}"
    holders: list[tuple[tuple[str, ...], object]] = [
        (("home_agent", "credentials"), agent.credentials)
    ]
    holders += [
        (("mobile_nodes", name, "credentials"), node.credentials)
        for name, node in file.mobile_nodes.items()
    ]
    for place, credentials in holders:
        if isinstance(credentials, X509):
            files = (
                credentials.certificate_file,
                credentials.private_key_file,
                credentials.ca_certificate_file,
            )
            if any(files) and not all(files):
                yield (
                    place,
                    "certificate_file, private_key_file and ca_certificate_file go together",
                    "name all three, or none",
                )


def _check_networks(file: InventoryFile, addresses: dict[object, str]) -> Iterator[Problem]:
    """Of mobile routers; ``addresses``: home addresses and the home agent's, and whose they are.
    A node's own network may hold its home address (RFC 3963 §2), and nobody else's."""
    known: list[tuple[IPv6Network, str]] = []
    for name, node in file.mobile_nodes.items():
        for number, network in enumerate(node.mobile_network_prefixes):
            loc = ("mobile_nodes", name, "mobile_network_prefixes", number)
            if not _usable(network.network_address):
                yield loc, f"{network} can't be a mobile network's prefix", _ROUTED
            for other, owner in known:
                if network.overlaps(other):
                    yield loc, f"{network} overlaps with {other} of {owner}", _CHANGE
            for address, owner in addresses.items():
                if owner != name and address in network:
                    yield loc, f"{network} holds {address} of {owner}", _CHANGE
            known.append((network, name))
