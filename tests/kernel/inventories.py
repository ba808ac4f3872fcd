"""Inventories at random, and what a charon that read what was rendered of them must have.

What is expected is told from the inventory and docs/render.md alone, not from the templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import strategies as st

HOSTILE = (
    '"', "'", "\\", "{", "}", "}\n}\nsecrets {", "\n", "\r", "a\nb", "#", "a # b", "=", "a = b",
    ":", ";", ",", "a,b", "$x", "%any", "*", "*@example.org", "include /etc/passwd", "include",
    "../x", "/etc/passwd", "x/../../y", "é.example.org", "\u202emoc", "\x00", "a\x00b", "x" * 300,
    "x" * 5000, " ", "", "\t", "0x00", "fqdn:x", "email:a@b", "asn1dn:CN=*", "@#c0ffee",
    "%fromfile", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "fe80::1", "::1",
    "127.0.0.1", "::ffff:192.0.2.1", "fe80::1%eth0", "-1", "1e9", "ca", "secrets", "ha",
    "aes128-sha257-ecp256", "aes128", "null-sha256", "true", "${IFS}", "`id`", "$(id)",
)  # fmt: skip

# Keywords (docs.strongswan.org) and what charon prints of them.
CIPHERS = {
    "aes": "AES_CBC_128", "aes192": "AES_CBC_192", "aes256": "AES_CBC_256",
    "aes128ctr": "AES_CTR_128", "camellia256": "CAMELLIA_CBC_256", "3des": "3DES_CBC",
}  # fmt: skip
AEAD = {
    "aes128gcm16": "AES_GCM_16_128", "aes256gcm": "AES_GCM_16_256", "aes192ccm64": "AES_CCM_8_192",
    "aes256gcm12": "AES_GCM_12_256", "chacha20poly1305": "CHACHA20_POLY1305",
}  # fmt: skip
INTEGRITY = {
    "sha1": "HMAC_SHA1_96", "sha256": "HMAC_SHA2_256_128", "sha2_384": "HMAC_SHA2_384_192",
    "sha512": "HMAC_SHA2_512_256",
}  # fmt: skip
# Without a PRF of its own, a classic IKE proposal has the integrity algorithm's.
PRF_OF = {
    "sha1": "PRF_HMAC_SHA1", "sha256": "PRF_HMAC_SHA2_256", "sha2_384": "PRF_HMAC_SHA2_384",
    "sha512": "PRF_HMAC_SHA2_512",
}  # fmt: skip
PRFS = {"prfsha256": "PRF_HMAC_SHA2_256", "prfsha384": "PRF_HMAC_SHA2_384"}
GROUPS = {
    "modp2048": "MODP_2048", "modp4096": "MODP_4096", "ecp256": "ECP_256", "ecp521": "ECP_521",
    "ecp256bp": "ECP_256_BP", "x25519": "CURVE_25519", "curve448": "CURVE_448",
    "modp2048s256": "MODP_2048_256",
}  # fmt: skip
DEFAULTS = {"ike": "aes128gcm16-prfsha256-ecp256", "esp": "aes128gcm16-ecp256"}


def _label(size: int) -> st.SearchStrategy[str]:
    return st.from_regex(rf"[a-z0-9]([a-z0-9-]{{0,{size}}}[a-z0-9])?", fullmatch=True)


def _identity() -> st.SearchStrategy[str]:
    domain = st.lists(_label(12), min_size=1, max_size=3).map(".".join)
    local = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._+-]{0,20}[A-Za-z0-9])?", fullmatch=True)
    return st.one_of(domain, st.builds("{}@{}".format, local, domain))


@st.composite
def _proposal(draw: st.DrawFn, use: str) -> str:
    def some(table: dict[str, str], least: int, most: int) -> list[str]:
        return draw(
            st.lists(st.sampled_from(sorted(table)), min_size=least, max_size=most, unique=True)
        )

    ike = use == "ike"
    groups = some(GROUPS, 1 if ike else 0, 2)
    if draw(st.booleans()):
        prfs = some(PRFS, 1, 2) if ike else []
        return "-".join([*some(AEAD, 1, 2), *prfs, *groups])
    prfs = some(PRFS, 0, 1) if ike else []
    return "-".join([*some(CIPHERS, 1, 2), *some(INTEGRITY, 1, 2), *prfs, *groups])


def printed(proposal: str, use: str) -> str:
    """As charon prints it: by kind of algorithm."""
    words = proposal.split("-")
    algorithms = [
        table[word] for table in (AEAD, CIPHERS, INTEGRITY, PRFS) for word in words if word in table
    ]
    if use == "ike" and not any(word in PRFS for word in words):
        algorithms += [PRF_OF[word] for word in words if word in PRF_OF]
    algorithms += [GROUPS[word] for word in words if word in GROUPS]
    if use == "esp":
        algorithms.append("NO_EXT_SEQ")
    return f"{use.upper()}:{'/'.join(algorithms)}"


_seconds = st.sampled_from([0, 1, 59, 3600, 86399, 30 * 86400])
_PSK = {"kind": "psk"}


@st.composite
def _credentials(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["psk", "x509", "eap-md5", "eap-aka"]))
    table: dict[str, Any] = {"kind": kind}
    if kind == "x509":
        table["key_type"] = draw(st.sampled_from(["ecdsa", "ed25519"]))
    if kind.startswith("eap") and draw(st.booleans()):
        table["eap_identity"] = draw(_identity())
    if kind == "eap-aka":
        table["file"] = "usim"
    if kind in ("psk", "eap-md5") and draw(st.booleans()):
        table["file"] = draw(st.sampled_from(["secret", "below/secret with space"]))
    return table


@st.composite
def inventories(draw: st.DrawFn) -> dict[str, Any]:
    """Such as somebody may mean; render may still refuse them, for clashes."""

    def maybe(table: dict[str, Any], key: str, values: st.SearchStrategy[Any]) -> None:
        if draw(st.booleans()):
            table[key] = draw(values)

    agent: dict[str, Any] = {
        "identity": "ha.example.org" if draw(st.booleans()) else draw(_identity()),
        "ipv6": "2001:db8:100::1",
        "ipv4": "203.0.113.2",
    }
    interface = st.from_regex(r"[a-z][a-z0-9._-]{0,14}", fullmatch=True)
    maybe(agent, "ike_over", st.sampled_from(["ipv4", "ipv6", "dual"]))
    maybe(agent, "outer_ipv4", st.sampled_from(["198.51.100.7", "192.0.2.200"]))
    maybe(agent, "interfaces", st.lists(interface, min_size=1, max_size=3))
    names = draw(st.lists(
        st.one_of(st.sampled_from(["mn1", "mn1-ipv6", "mn1-ipv4", "data", "x"]),
                  st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)),
        min_size=1, max_size=3, unique=True,
    ))  # fmt: skip
    nodes = {}
    for index, name in enumerate(names):
        node: dict[str, Any] = {"identity": draw(_identity())}
        maybe(node, "home_address", st.just(f"2001:db8:100:0:{index + 1:x}::{index:x}"))
        maybe(node, "ipv4_home_address", st.just(f"203.0.113.{10 + index}"))
        maybe(node, "mobile_network_prefixes", st.lists(
            st.sampled_from([f"2001:db8:{0x800 + index:x}::/48", "2001:db8:beef::/64"]),
            max_size=2, unique=True,
        ))  # fmt: skip
        maybe(node, "credentials", _credentials())
        maybe(node, "interfaces", st.lists(interface, max_size=2))
        nodes[name] = node
    ike: dict[str, Any] = {}
    for use in ("ike", "esp"):
        maybe(ike, f"{use}_proposals", st.lists(_proposal(use), min_size=1, max_size=3))
    maybe(ike, "mobility_mode", st.sampled_from(["mobike", "k-bit", "renegotiate"]))
    for key in ("rekey_time_s", "child_rekey_time_s", "reauth_time_s"):
        maybe(ike, key, _seconds)
    maybe(ike, "dpd_delay_s", st.sampled_from([1, 4, 3600]))
    maybe(ike, "revocation", st.sampled_from(["strict", "relaxed"]))
    for key in ("configuration_payload", "prefix_discovery", "return_routability"):
        maybe(ike, key, st.booleans())
    inventory: dict[str, Any] = {
        "home_agent": agent,
        "mobile_nodes": nodes,
        "pools": {"ipv6": "2001:db8:100::100/120"},
        "ike": ike,
    }
    maybe(inventory["pools"], "ipv4", st.just("203.0.113.128/26"))
    maybe(
        inventory,
        "data",
        st.fixed_dictionaries({key: st.booleans() for key in ("protected", "copy_df")}),
    )
    maybe(inventory, "ca", st.fixed_dictionaries({"name": st.text(min_size=1, max_size=30)}))
    return inventory


# Every option that the templates have, none of them at its default.
EVERYTHING: dict[str, Any] = {
    "home_agent": {
        "identity": "home.agent@example.org", "ipv6": "2001:db8:100::1", "ipv4": "203.0.113.2",
        "ike_over": "dual", "outer_ipv4": "198.51.100.7", "interfaces": ["eth0", "wlan0.1"],
    },
    "mobile_nodes": {
        "psk": {"identity": "a@x.org", "credentials": {"kind": "psk", "file": "secret"}},
        "cert": {"identity": "b.x.org", "credentials": {"kind": "x509", "key_type": "ed25519"},
                 "mobile_network_prefixes": ["2001:db8:beef::/64", "2001:db8:cafe::/48"]},
        "eap": {"identity": "c", "credentials": {"kind": "eap-md5", "eap_identity": "d@x.org"}},
        "aka": {"identity": "e", "credentials": {"kind": "eap-aka", "file": "usim"}},
    },
    "pools": {"ipv6": "2001:db8:100::100/120", "ipv4": "203.0.113.128/26"},
    "ike": {
        "ike_proposals": ["aes256-sha2_384-modp2048", "chacha20poly1305-prfsha256-x25519"],
        "esp_proposals": ["aes256gcm-ecp521", "aes-sha1"], "mobility_mode": "renegotiate",
        "rekey_time_s": 7200, "child_rekey_time_s": 1200, "reauth_time_s": 86399,
        "dpd_delay_s": 17, "revocation": "strict", "configuration_payload": True,
        "prefix_discovery": True,
    },
    "data": {"protected": True, "copy_df": False},
}  # fmt: skip


@st.composite
def with_something_hostile(draw: st.DrawFn) -> dict[str, Any]:
    """An inventory with one of its strings (a name, a key, a value) replaced."""
    inventory = draw(inventories())
    places = list(_places(inventory))
    table, key, is_key = places[draw(st.integers(0, len(places) - 1))]
    value = draw(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)))
    if is_key:
        table[value] = table.pop(key)
    else:
        table[key] = value
    return inventory


def _places(value: Any) -> Any:
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        if isinstance(inner, str):
            yield value, key, False
        elif isinstance(inner, dict | list):
            yield from _places(inner)
        if isinstance(value, dict):
            yield value, key, True


# What charon must have of it ---------------------------------------------------------------------

Reading = dict[str, Any]


def homes(inventory: dict[str, Any]) -> dict[str, list[str]]:
    """Home addresses: given, or dealt out of the pools in order, without those given elsewhere."""
    nodes, agent = inventory["mobile_nodes"], inventory["home_agent"]
    taken = {agent["ipv6"], agent["ipv4"]}
    for node in nodes.values():
        taken |= {node.get("home_address"), node.get("ipv4_home_address")}
    ipv6 = (str(IPv6Address("2001:db8:100::100") + i) for i in range(1, 256))
    ipv4 = (str(IPv4Address("203.0.113.128") + i) for i in range(1, 62))
    dealt = {}
    for name, node in nodes.items():
        six = node.get("home_address") or next(a for a in ipv6 if a not in taken)
        four = node.get("ipv4_home_address")
        if four is None and "ipv4" in inventory["pools"]:
            four = next(a for a in ipv4 if a not in taken)
        dealt[name] = [str(IPv6Address(six)), *([four] if four else [])]
    return dealt


def expected(inventory: dict[str, Any], node: str | None) -> dict[str, Reading]:
    """The connections of a node (None: the home agent): as charon prints them."""
    found, agent = {}, inventory["home_agent"]
    for index, name in enumerate(inventory["mobile_nodes"]):
        if node in (None, name):
            reading = _connection(inventory, index, name, at_home_agent=node is None)
            over = agent.get("ike_over", "dual")
            if node is None or over != "ipv6":
                found[name] = reading
            if node is not None and over != "ipv4":
                found[f"{name}-ipv6"] = {**reading, "remote_addrs": agent["ipv6"], "encap": "0"}
    return found


def _connection(
    inventory: dict[str, Any], index: int, name: str, *, at_home_agent: bool
) -> Reading:
    agent, node = inventory["home_agent"], inventory["mobile_nodes"][name]
    ike, data = inventory["ike"], inventory.get("data", {})
    mobike = ike.get("mobility_mode", "mobike") == "mobike"
    home = homes(inventory)[name]
    own = {
        "ipv4": agent["ipv4"],
        "ipv6": agent["ipv6"],
        "dual": f"{agent['ipv4']}, {agent['ipv6']}",
    }
    kind = node.get("credentials", _PSK)["kind"]
    hands_out = ike.get("configuration_payload", False)
    rekey = ike.get("rekey_time_s", 14400)
    ends = _ends(inventory, name)
    host = [f"{a}/{128 if ':' in a else 32}" for a in home]
    host += node.get("mobile_network_prefixes", [])
    world = ["::/0", "0.0.0.0/0"][: len(home)]
    children = {}
    for child, mode, reqid, mine, theirs in _children(inventory, home, host, world):
        if at_home_agent:
            mine, theirs = theirs, mine
        time = ike.get("child_rekey_time_s", 3600)
        children[child] = {
            "mode": mode,
            "policies": "0",
            "local_ts": " ".join(mine),
            "remote_ts": " ".join(theirs),
            # From 55501 on, ten apart for each mobile node.
            "reqid": str(reqid + 10 * index),
            "copy_df": "0" if child == "data" and not data.get("copy_df", True) else "1",
            "rekey_time": str(time),
            "dpd_action": "none",
            "start_action": "none",
            "close_action": "none",
            "mark_in": "0/0",
            "mark_out": "0/0",
            "if_id_in": "0",
            "updown": "(null)",
            "proposals": ", ".join(
                printed(each, "esp") for each in ike.get("esp_proposals", [DEFAULTS["esp"]])
            ),
        }
    return {
        "version": "2",
        "local_addrs": own[agent.get("ike_over", "dual")] if at_home_agent else "%any",
        "remote_addrs": "%any" if at_home_agent else agent.get("outer_ipv4", agent["ipv4"]),
        "local_port": "4500",
        "remote_port": "4500",
        "mobike": str(int(mobike)),
        "encap": str(int(not at_home_agent and not mobike)),
        "dpd_delay": str(ike.get("dpd_delay_s", 4)),
        "unique": "UNIQUE_REPLACE" if mobike else "UNIQUE_NO",
        "childless": "0",
        "keyingtries": "1",
        "send_cert": "CERT_ALWAYS_SEND"
        if (kind == "x509" or (kind != "psk" and at_home_agent))
        else "CERT_SEND_IF_ASKED",
        "rekey_time": str(rekey),
        "reauth_time": str(ike.get("reauth_time_s", 0)),
        "proposals": ", ".join(
            printed(each, "ike") for each in ike.get("ike_proposals", [DEFAULTS["ike"]])
        ),
        "vips": ["%any6", "%any"][: len(home)] if hands_out and not at_home_agent else [],
        "local": ends[0 if at_home_agent else 1],
        "remote": _judged(ends[1 if at_home_agent else 0], ike),
        "children": children,
    }


def _children(
    inventory: dict[str, Any], home: list[str], host: list[str], world: list[str]
) -> Iterator[tuple[str, str, int, list[str], list[str]]]:
    """(name, mode, reqid, selectors of the mobile node's end, and of the other end)."""
    ike, agent = inventory["ike"], inventory["home_agent"]["ipv6"]
    protected = inventory.get("data", {}).get("protected", True)

    def between(*protocols: int) -> tuple[list[str], list[str]]:
        return (
            [f"{home[0]}/128[{each}]" for each in protocols],
            [f"{agent}/128[{each}]" for each in protocols],
        )

    yield ("signalling", "TRANSPORT_PROXY", 55501, *between(135))
    yield ("signalling-tunnel", "TUNNEL", 55501, *between(135, 59))
    if protected:
        yield "data", "TUNNEL", 55503, host, world
    if ike.get("prefix_discovery", False):
        yield ("prefix-discovery", "TRANSPORT_PROXY", 55504, *between(58))
        yield ("prefix-discovery-tunnel", "TUNNEL", 55504, *between(58, 59))
    if ike.get("return_routability", False) and not protected:
        yield "return-routability", "TUNNEL", 55505, between(135)[0], ["::/0[135]"]


# What a revocation list has to say of the peer's certificate; charon says nothing for "relaxed".
REVOCATION = {"strict": "GOOD"}


def _judged(end: Reading, ike: dict[str, Any]) -> Reading:
    if end["class"] != "public key":
        return end
    return {**end, "revocation": REVOCATION.get(ike.get("revocation", "relaxed"))}


def _ends(inventory: dict[str, Any], name: str) -> tuple[Reading, Reading]:
    """(home agent, mobile node): who proves what how."""
    agent, node = inventory["home_agent"], inventory["mobile_nodes"][name]
    credentials = node.get("credentials", _PSK)
    kind = credentials["kind"]
    if kind == "psk":
        return (
            {"id": agent["identity"], "class": "pre-shared key"},
            {"id": node["identity"], "class": "pre-shared key"},
        )
    first = {"id": agent["identity"], "class": "public key"}
    if kind == "x509":
        return first, {"id": node["identity"], "class": "public key"}
    return first, {
        "id": node["identity"],
        "class": "EAP",
        "eap-type": kind.upper().replace("-", "_"),
        "eap_id": credentials.get("eap_identity", node["identity"]),
    }


def shown_identities(inventory: dict[str, Any], node: str | None) -> dict[str, set[str]]:
    """By connection: the names of the certificates that this end shows there."""
    shown = {}
    for connection, reading in expected(inventory, node).items():
        names = set()
        if reading["local"]["class"] == "public key":
            # X.520 ends a common name after 64 characters; the whole one is beside it.
            names = {f"O=dsmip-ipsec, CN={reading['local']['id'][:64]}"}
        shown[connection] = names
    return shown


def pools(inventory: dict[str, Any], node: str | None) -> dict[str, str]:
    """A pool for each home address, at the home agent, if IKE hands them out."""
    if node is not None or not inventory["ike"].get("configuration_payload", False):
        return {}
    return {
        f"{name}-ipv{6 if ':' in address else 4}": address
        for name, addresses in homes(inventory).items()
        for address in addresses
    }


def secrets(inventory: dict[str, Any], node: str | None) -> set[str]:
    """What the node shares with its peers, by the names of its sections."""
    kinds = {
        name: each.get("credentials", _PSK)["kind"]
        for name, each in inventory["mobile_nodes"].items()
        if node in (None, name)
    }
    return {
        f"{'ike' if kind == 'psk' else 'eap'}-{name}"
        for name, kind in kinds.items()
        if kind != "x509"
    }
