"""A CA in a directory, by its command; OpenSSL judges certificates and revocation lists."""

from __future__ import annotations

import datetime
import os
import subprocess
import threading
from pathlib import Path

import pytest

from dsmip_ipsec.cli.main import main
from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike.ca_store import CaStore
from dsmip_ipsec.ike.pki import KeyType

NOW = datetime.datetime.now(datetime.UTC)


def openssl(*arguments: object) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def judged(store: CaStore, certificate: Path) -> str:
    return openssl(
        "verify", "-crl_check", "-CAfile", store.certificate_file,
        "-CRLfile", store.revocation_list_file, certificate,
    )  # fmt: skip


@pytest.mark.parametrize("key_type", list(KeyType))
def test_openssl_refuses_what_was_revoked_and_nothing_else(
    tmp_path: Path, key_type: KeyType
) -> None:
    ca = str(tmp_path / "ca")
    kind = f"--key-type={key_type.value}"
    assert main(["ca", "create", ca, kind]) == 0
    for identity in ("mn1.example.org", "mn2@example.org"):
        assert main(["ca", "issue", ca, identity, kind]) == 0
    store = CaStore(tmp_path / "ca")
    one, two = (store.certificate_of(i) for i in ("mn1.example.org", "mn2@example.org"))
    assert judged(store, one).endswith("OK\n")
    assert main(["ca", "revoke", ca, "MN1.example.org"]) == 0
    assert "certificate revoked" in judged(store, one)
    assert judged(store, two).endswith("OK\n")
    assert main(["ca", "renew", ca, "mn1.example.org"]) == 0
    assert judged(store, one).endswith("OK\n")  # the new one


def test_private_keys_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        store = CaStore(tmp_path / "ca")
        store.create(now=NOW)
        store.issue("mn1.example.org", now=NOW)
    finally:
        os.umask(previous)
    private = [
        path for path in store.directory.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]  # fmt: skip
    assert {path.name for path in private} == {"ca-key.pem", "mn1.example.org.pem"}
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert (store.directory / "private").stat().st_mode & 0o777 == 0o700


def test_keys_are_not_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = str(tmp_path / "ca")
    main(["ca", "create", ca])
    main(["ca", "issue", ca, "mn1.example.org"])
    store = CaStore(tmp_path / "ca")
    keys = store.key_file.read_bytes(), store.key_of("mn1.example.org").read_bytes()
    assert main(["ca", "create", ca]) == 1
    assert main(["ca", "issue", ca, "mn1.example.org"]) == 1
    assert "--force" in capsys.readouterr().err
    assert keys == (store.key_file.read_bytes(), store.key_of("mn1.example.org").read_bytes())
    assert main(["ca", "issue", ca, "mn1.example.org", "--force"]) == 0
    assert keys[1] != store.key_of("mn1.example.org").read_bytes()


def test_each_list_has_a_larger_number_than_the_one_before(tmp_path: Path) -> None:
    store = CaStore(tmp_path / "ca")
    store.create(now=NOW)
    numbers = []
    for _ in range(3):
        store.renew_revocation_list(now=NOW)
        text = openssl("crl", "-in", store.revocation_list_file, "-noout", "-crlnumber")
        numbers.append(int(text.strip().removeprefix("crlNumber=0x"), 16))
    assert numbers == sorted(set(numbers))


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    store = CaStore(tmp_path / "ca")
    store.create(now=NOW)
    names = [f"mn{i}.example.org" for i in range(12)]
    threads = [
        threading.Thread(target=lambda n=name: CaStore(store.directory).issue(n, now=NOW))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.identity for each in store.certificates()) == sorted(names)


@pytest.mark.parametrize(
    "arguments",
    [
        ["issue", "../../etc/x"],
        ["issue", "mn1.example.org/../x"],
        ["issue", ".hidden"],
        ["issue", "mn\n.example.org"],
        ["issue", "mn1.example.org", "--days", "0"],
        ["renew", "nobody.example.org"],
        ["revoke", "nobody.example.org"],
        ["revoke", "0123"],
    ],
)
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ca = str(tmp_path / "ca")
    main(["ca", "create", ca])
    before = sorted(tmp_path.rglob("*"))
    action, *rest = arguments
    assert main(["ca", action, ca, *rest]) == 1
    assert capsys.readouterr().err.startswith("dsmip-ipsec: error: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"crl_number": 1, "certificates": [{"serial": "x"}]}', "[" * 99999]
)
def test_a_broken_index_is_a_typed_error(tmp_path: Path, index: str) -> None:
    store = CaStore(tmp_path / "ca")
    store.create(now=NOW)
    (store.directory / "index.json").write_text(index)
    with pytest.raises(ConfigError, match="index is broken"):
        store.issue("mn1.example.org", now=NOW)


def test_without_a_ca(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="CA"):
            CaStore(directory).issue("mn1.example.org", now=NOW)


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    store = CaStore(tmp_path / "ca")
    store.create(now=NOW)
    issued = store.issue("mn1.example.org", now=NOW, days=1)
    found = store.newest("mn1.example.org", NOW)
    assert found is not None
    assert found[1] == issued
    assert found[0].revoked_at is None
    assert store.newest("mn2.example.org", NOW) is None
    assert store.newest("mn1.example.org", NOW + datetime.timedelta(days=2)) is None
    store.revoke("mn1.example.org", now=NOW)
    found = store.newest("mn1.example.org", NOW)
    assert found is not None
    assert found[0].revoked_at == NOW
