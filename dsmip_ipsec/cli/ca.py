"""``dsmip-ipsec ca``: a small certification authority in a directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

KEY_TYPES = ("ecdsa", "rsa", "ed25519")


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "ca",
        help="a certification authority: create, issue, renew, revoke",
        description="A small certification authority in a directory, for a home agent and its "
        "mobile nodes. Private keys are readable by their owner only and never overwritten "
        "unless --force is given.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, help_text: str, *, days: int = 0, identity: bool = False) -> Any:
        sub = actions.add_parser(name, help=help_text, description=help_text + ".")
        sub.add_argument("directory", type=Path, metavar="DIR", help="the CA's directory")
        if identity:
            sub.add_argument("identity", help="mn1.example.org or mn1@example.org")
        if days:
            sub.add_argument("--days", type=int, default=days, help=f"valid for ({days})")
        sub.set_defaults(run=run)
        return sub

    create = action("create", "make a new CA", days=3650)
    create.add_argument("--name", default="dsmip-ipsec CA", help="its common name")
    issue = action("issue", "issue a certificate with a new key", days=365, identity=True)
    for sub in (create, issue):
        sub.add_argument("--key-type", choices=KEY_TYPES, default="ecdsa", help="(ecdsa)")
        sub.add_argument("--force", action="store_true", help="overwrite keys that are there")
    renew = action("renew", "issue a successor with a new key", days=365, identity=True)
    renew.add_argument("--revoke-old", action="store_true", help="the old one isn't valid any more")
    revoke = action("revoke", "revoke a certificate and write a new revocation list")
    revoke.add_argument("identity", metavar="WHO", help="an identity (all its certificates) or a "
                        "serial number from `ca list`")  # fmt: skip
    action("crl", "write a fresh revocation list", days=30)
    action("list", "list what was issued")


def run(arguments: argparse.Namespace) -> int:
    """Do what ``arguments.action`` says. Raises ConfigError."""
    import datetime

    from dsmip_ipsec.ike.ca_store import CaStore
    from dsmip_ipsec.ike.pki import KeyType

    now = datetime.datetime.now(datetime.UTC)
    store = CaStore(arguments.directory)
    if arguments.action == "create":
        store.create(
            name=arguments.name,
            key_type=KeyType(arguments.key_type),
            days=arguments.days,
            now=now,
            force=arguments.force,
        )
        print(store.certificate_file)
    elif arguments.action == "issue":
        store.issue(
            arguments.identity,
            key_type=KeyType(arguments.key_type),
            days=arguments.days,
            now=now,
            force=arguments.force,
        )
        print(store.certificate_of(arguments.identity))
    elif arguments.action == "renew":
        store.renew(
            arguments.identity, days=arguments.days, now=now, revoke_old=arguments.revoke_old
        )
        print(store.certificate_of(arguments.identity))
    elif arguments.action == "revoke":
        for each in store.revoke(arguments.identity, now=now):
            print(f"revoked {each.serial:x} of {each.identity}")
        print(f"bring {store.revocation_list_file} to every node's x509crl/, then on each node:")
        # Without the second, charon goes on to use the older list from its cache.
        print("  swanctl --load-creds && swanctl --flush-certs")
    elif arguments.action == "crl":
        store.renew_revocation_list(days=arguments.days, now=now)
        print(store.revocation_list_file)
    else:
        for each in store.certificates():
            state = (
                f"revoked {each.revoked_at:%Y-%m-%d %H:%M}"
                if each.revoked_at is not None
                else f"valid until {each.not_after:%Y-%m-%d}"
                if each.valid(now)
                else f"expired {each.not_after:%Y-%m-%d}"
            )
            print(f"{each.serial:040x}  {each.key_type.value:8}{state:28}{each.identity}")
    return 0
