"""A fresh user's way: one inventory, `dsmip-ipsec render`, and the commands of the READMEs that it
writes, with stock charons, on this kernel."""

from __future__ import annotations

import subprocess

import pytest
from rendered_nodes import Nodes, care_of, until

pytestmark = pytest.mark.kernel

THREE = """
[mobile_nodes.mn1]
identity = "mn1@example.org"
credentials = { kind = "psk" }

[mobile_nodes.mn2]
identity = "mn2.example.org"
credentials = { kind = "x509" }

[mobile_nodes.mn3]
identity = "mn3@example.org"
credentials = { kind = "eap-md5", eap_identity = "user3@example.net" }
"""
NAMES = ("mn1", "mn2", "mn3")


def test_one_psk_one_certificate_one_eap_are_three_secured_bindings() -> None:
    with Nodes(THREE, NAMES) as nodes:
        for name in ("ha", *NAMES):
            nodes.start_charon(name)
            nodes.start_daemon(name)
        for name in NAMES:
            nodes.attach(name)
        bindings = nodes.status("ha")["bindings"]
        assert sorted(each["home_address"] for each in bindings) == [
            f"2001:db8:100::10{i}" for i in (1, 2, 3)
        ]
        for index, name in enumerate(NAMES):
            (binding,) = nodes.status(name)["bindings"]
            assert binding["care_of_address"] == f"198.51.{index}.2"
            # Payload of both home addresses passes, which it can through ESP only: the network
            # between has no route to either target.
            for home_address, target in (
                (f"2001:db8:100::10{index + 1}", "2001:db8:100::99"),
                (f"203.0.113.{129 + index}", "192.0.2.99"),
            ):
                nodes.shell(name, f"ping -c 1 -W 5 -I {home_address} {target}")
        states = nodes.shell("ha", "ip xfrm state")
        assert states.count("proto esp") == 3 * 4
        # No secret is in a log, nor readable by others.
        secret = (nodes.out / "secrets" / "mn1.psk").read_text().strip()
        logs = list(nodes.out.rglob("*.log"))
        assert len(logs) >= 8
        assert not any(secret in path.read_text(errors="replace") for path in logs)
        kept = [p for p in nodes.out.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]
        assert not any(
            b"PRIVATE KEY" in p.read_bytes() or secret.encode() in p.read_bytes() for p in kept
        )


def test_a_revoked_certificate_is_refused_and_a_renewed_one_taken() -> None:
    with Nodes(THREE, NAMES) as nodes:
        for name in ("ha", "mn2"):
            nodes.start_charon(name)
        assert nodes.initiate("mn2", "data") == ""
        list(nodes.vici("mn2").terminate({"ike": "mn2"}))
        command = str(nodes.directory / "bin" / "dsmip-ipsec")
        ca = str(nodes.out / "ca")
        subprocess.run([command, "ca", "revoke", ca, "mn2.example.org"], check=True)
        assert "revoked" in nodes.render()
        nodes.load("ha")
        assert "AUTHENTICATION_FAILED" in nodes.initiate("mn2", "data")
        assert "certificate was revoked" in nodes.log("ha")
        subprocess.run([command, "ca", "renew", ca, "mn2.example.org"], check=True)
        nodes.render()
        for name in ("ha", "mn2"):
            nodes.load(name)
        assert nodes.initiate("mn2", "data") == ""


@pytest.mark.rfc("5555-5-4")
@pytest.mark.parametrize("thief", NAMES)
def test_another_ones_home_address_is_refused_and_logged(thief: str) -> None:
    """RFC 4877 §4.2: whatever a mobile node proves to be, it gets SAs for what is its own."""
    victim = {"mn1": "mn2", "mn2": "mn3", "mn3": "mn1"}[thief]
    numbers = {name: name[-1] for name in NAMES}
    with Nodes(THREE, NAMES) as nodes:
        # The thief asks for the victim's addresses under its own identity ...
        own = nodes.out / thief / "swanctl.conf"
        text = own.read_text()
        for old, new in (
            (f"2001:db8:100::10{numbers[thief]}", f"2001:db8:100::10{numbers[victim]}"),
            (f"203.0.113.{128 + int(numbers[thief])}", f"203.0.113.{128 + int(numbers[victim])}"),
        ):
            assert old in text
            text = text.replace(old, new)
        own.write_text(text)
        for name in ("ha", thief):
            nodes.start_charon(name)
        nodes.start_daemon("ha")
        for child in ("data", "signalling"):
            assert "TS_UNACCEPTABLE" in nodes.initiate(thief, child)
        source = care_of(NAMES.index(thief))
        until(lambda: len(nodes.status("ha")["refused"]) >= 2, "both are in its status")
        refused = nodes.status("ha")["refused"]
        assert {(r["reason"], r["connection"], r["source"]) for r in refused} == {
            ("traffic selectors", thief, source)
        }
        own_log = (nodes.out / "ha" / "daemon.log").read_text()
        assert f"refused {thief} from {source}: traffic selectors " in own_log
        assert "traffic selectors" in nodes.log("ha")
        assert "unacceptable" in nodes.log("ha")
        assert "proto esp" not in nodes.shell("ha", "ip xfrm state")
        list(nodes.vici(thief).terminate({"ike": thief}))
        # ... and then under the victim's, with what it has to prove its own.
        identity = {"mn2": "mn2.example.org"}.get(thief, f"{thief}@example.org")
        other = {"mn2": "fqdn:mn2.example.org"}.get(victim, f"email:{victim}@example.org")
        kind = "fqdn" if thief == "mn2" else "email"
        assert f"{kind}:{identity}" in text
        own.write_text(text.replace(f"{kind}:{identity}", other))
        nodes.load(thief)
        said = nodes.initiate(thief, "data")
        assert said, "it got the victim's SAs"
        assert (
            "AUTH_FAILED" in nodes.log("ha")
            or "AUTHENTICATION_FAILED" in nodes.log("ha")
            or ("no private key" in said)
        ), said
        assert "proto esp" not in nodes.shell("ha", "ip xfrm state")
        if "no private key" not in said:
            reasons = {r["reason"]: r for r in nodes.status("ha")["refused"]}
            last = reasons.get("authentication") or reasons["peer"]
            assert last["source"] == source
            assert victim in last["connection"] + last["identity"]


def test_an_eap_user_cannot_use_anothers_password() -> None:
    inventory = "".join(
        f"""
        [mobile_nodes.mn{i}]
        identity = "mn{i}@example.org"
        credentials = {{ kind = "eap-md5", eap_identity = "user{i}@example.net" }}
        """
        for i in (1, 2)
    )
    with Nodes(inventory, ("mn1", "mn2")) as nodes:
        own = nodes.out / "mn1" / "swanctl.conf"
        text = own.read_text()
        for name in ("ha", "mn1"):
            nodes.start_charon(name)
        assert nodes.initiate("mn1", "data") == ""
        list(nodes.vici("mn1").terminate({"ike": "mn1"}))
        # IDi is the victim's, the EAP identity and the password are the thief's own.
        own.write_text(text.replace("email:mn1@example.org", "email:mn2@example.org"))
        nodes.load("mn1")
        assert nodes.initiate("mn1", "data")
        assert "EAP method EAP_MD5 failed for peer mn2@example.org" in nodes.log("ha")
        assert "proto esp" not in nodes.shell("ha", "ip xfrm state")


def test_eap_aka_loads_and_fails_for_want_of_a_usim() -> None:
    """docs/render.md: neither Debian 12 nor 13 has a backend of it."""
    inventory = """
[mobile_nodes.mn1]
identity = "mn1@example.org"
credentials = { kind = "eap-aka", file = "usim" }
"""
    with Nodes(inventory, ("mn1",), files={"usim": "0123456789abcdef" * 4}) as nodes:
        for name in ("ha", "mn1"):
            nodes.start_charon(name)
        for name in ("ha", "mn1"):
            assert nodes.connections(name)["mn1"]["children"].keys() >= {"data", "signalling"}
            assert "eap-aka-3gpp" in nodes.log(name)
        assert "EAP_FAILURE" in nodes.initiate("mn1", "data")
        assert "tried 0 SIM providers, but none had a quintuplet for " in nodes.log("ha")
        assert "EAP method EAP_AKA failed for peer mn1@example.org" in nodes.log("ha")
        assert "proto esp" not in nodes.shell("ha", "ip xfrm state")


def test_configuration_payloads_hand_out_the_home_addresses() -> None:
    inventory = THREE + "\n[ike]\nconfiguration_payload = true\n"
    with Nodes(inventory, NAMES) as nodes:
        for name in ("ha", *NAMES):
            nodes.start_charon(name)
        pools = nodes.vici("ha").get_pools({})
        assert {name: pool["base"].decode() for name, pool in pools.items()} == {
            f"mn{i}-ipv{v}": base.format(i)
            for i in (1, 2, 3)
            for v, base in ((6, "2001:db8:100::10{}"), (4, ""))
            if base
        } | {f"mn{i}-ipv4": f"203.0.113.{128 + i}" for i in (1, 2, 3)}
        for index, name in enumerate(NAMES, 1):
            assert nodes.initiate(name, "data") == ""
            (sa,) = (each[name] for each in nodes.vici(name).list_sas())
            assert sorted(v.decode() for v in sa["local-vips"]) == sorted(
                [f"2001:db8:100::10{index}", f"203.0.113.{128 + index}"]
            )
            # The kernel's addresses are the daemon's business.
            assert f"::10{index}" not in nodes.shell(name, "ip addr")
