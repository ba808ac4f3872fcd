"""From credentials to what swanctl.conf says about them: who proves what to whom, and how.

On the home agent this is the PAD (RFC 4301 §4.4.3, RFC 4877 §4.2): each mobile node's connection
accepts one IKE identity, one EAP identity, one way to authenticate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsmip_ipsec.ike.inventory import (
    Certificate,
    Deployment,
    EapAka,
    EapPassword,
    HomeAgent,
    MobileNode,
    PresharedKey,
)

CA_FILE = "ca.pem"

# What EAP takes beside the plugins of every charon. Debian 12 has these in libcharon-extra-plugins;
# eap-aka-3gpp (Milenage) is in none of its packages.
_EAP_MD5_PLUGINS = ("eap-identity", "eap-md5")
_EAP_AKA_PLUGINS = ("fips-prf", "eap-identity", "eap-aka", "eap-aka-3gpp")


@dataclass(frozen=True, slots=True)
class Round:
    """A ``local`` or ``remote`` section. ``certificate`` and ``ca_certificate`` are file names."""

    identity: str
    auth: str
    certificate: str | None = None
    ca_certificate: str | None = None
    eap_identity: str | None = None


@dataclass(frozen=True, slots=True)
class Secret:
    """A section of ``secrets``: of kind "ike" between two identities, of kind "eap" of one."""

    kind: str
    name: str
    identities: tuple[tuple[str, str], ...]
    secret_hex: str


def rounds(ha: HomeAgent, mn: MobileNode) -> tuple[Round, Round]:
    """(the home agent's, the mobile node's): how each proves to be who it is."""
    credentials = mn.credentials
    if isinstance(credentials, PresharedKey):
        return Round(ha.identity, "psk"), Round(mn.identity, "psk")
    by_certificate = Round(ha.identity, "pubkey", "ha.pem", CA_FILE)
    if isinstance(credentials, Certificate):
        return by_certificate, Round(mn.identity, "pubkey", f"{mn.name}.pem", CA_FILE)
    method = "eap-md5" if isinstance(credentials, EapPassword) else "eap-aka"
    # A fixed EAP identity: the home agent doesn't ask for one, so a mobile node can't name
    # another's there.
    return by_certificate, Round(mn.identity, method, eap_identity=credentials.identity)


def secrets(deployment: Deployment, node: str | None) -> Iterator[Secret]:
    """The secrets that the home agent (None) or a mobile node has to know."""
    ha = deployment.home_agent
    for mn in deployment.mobile_nodes:
        credentials = mn.credentials
        if node not in (None, mn.name) or isinstance(credentials, Certificate):
            continue
        if isinstance(credentials, PresharedKey):
            local, remote = (ha, mn) if node is None else (mn, ha)
            ends = (("id-local", local.identity), ("id-remote", remote.identity))
            yield Secret("ike", mn.name, ends, credentials.secret.hex())
            continue
        # eap-aka-3gpp takes K and OPc as one secret.
        secret = (
            credentials.password
            if isinstance(credentials, EapPassword)
            else credentials.key + credentials.opc
        )
        identities: tuple[tuple[str, str], ...] = (("id", credentials.identity),)
        if node is not None and mn.identity.lower() != credentials.identity.lower():
            # As peer, charon looks its secret up by its IKE identity when it isn't asked for
            # another; the home agent knows it by the EAP identity alone.
            identities += (("id-ike", mn.identity),)
        yield Secret("eap", mn.name, identities, secret.hex())


def own_certificate(deployment: Deployment, node: str | None) -> Certificate | None:
    """The certificate that a node (None: the home agent) has to show, if any."""
    if node is not None:
        credentials = deployment.mobile_node(node).credentials
        return credentials if isinstance(credentials, Certificate) else None
    shown = any(not isinstance(mn.credentials, PresharedKey) for mn in deployment.mobile_nodes)
    return deployment.home_agent.certificate if shown else None


def ca_certificate(deployment: Deployment, node: str | None) -> bytes | None:
    """The CA certificate that a node (None: the home agent) checks its peers against, if any."""
    if node is None:
        certificate = own_certificate(deployment, None)
        return certificate.ca_certificate if certificate is not None else None
    credentials = deployment.mobile_node(node).credentials
    return None if isinstance(credentials, PresharedKey) else credentials.ca_certificate


def plugins(deployment: Deployment, node: str | None) -> tuple[str, ...]:
    """The plugins of charon that a node's credentials need beside the usual ones."""
    needed: dict[str, None] = {}
    for mn in deployment.mobile_nodes:
        if node in (None, mn.name):
            if isinstance(mn.credentials, EapPassword):
                needed.update(dict.fromkeys(_EAP_MD5_PLUGINS))
            elif isinstance(mn.credentials, EapAka):
                needed.update(dict.fromkeys(_EAP_AKA_PLUGINS))
    return tuple(needed)
