"""Which values may enter a strongSwan configuration file.

strongSwan's parser has quotes, escapes, sections, comments, includes and references. Instead of
following all of its rules, a value is let in only if it consists of characters that none of
them touches; anything else is refused by name.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from dsmip_ipsec.errors import ConfigError

_SECTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_FQDN = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_LOCAL_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_PLAIN = re.compile(r"[A-Za-z0-9 ._:/@%+,=~\[\]-]*")


def _refuse(value: str, what: str, hint: str) -> ConfigError:
    shown = value if len(value) <= 60 else value[:57] + "..."
    return ConfigError(f"{what} {shown!r} can't stand in a configuration", hint=hint)


def section_name(value: str, what: str) -> str:
    """A name of a connection or child: a letter, then letters, digits, ``_`` and ``-``."""
    if not _SECTION.fullmatch(value) or value.lower() == "include":
        raise _refuse(
            value, what, "use 1 to 32 letters, digits, '-' and '_', beginning with a letter"
        )
    return value


def identity(value: str, what: str) -> str:
    """An IKE identity: a domain name or ``user@domain``.

    Wildcards, ``%any`` and strongSwan's type prefixes are refused: they would let one peer match
    another's entry in the PAD (RFC 4301 §4.4.3).
    """
    local, at, domain = value.rpartition("@")
    if at and not _LOCAL_PART.fullmatch(local):
        domain = ""
    if not _FQDN.fullmatch(domain if at else value):
        raise _refuse(value, what, "use a domain name (mn.example.org) or user@domain")
    return value


def typed_identity(value: str) -> str:
    """The same identity with strongSwan's explicit type, so that no guessing takes place."""
    identity(value, "identity")
    return f"email:{value}" if "@" in value else f"fqdn:{value}"


def interface(value: str) -> str:
    """A network interface's name (at most 15 octets, as the kernel has it)."""
    if not _INTERFACE.fullmatch(value):
        raise _refuse(value, "interface", "use an interface name of 1 to 15 plain characters")
    return value


def quoted(value: object) -> str:
    """``value`` in double quotes.

    :raises ConfigError: it has quotes, backslashes, braces, line ends, comment signs or anything
        else beyond plain text.
    """
    text = str(value)
    if not _PLAIN.fullmatch(text):
        raise _refuse(
            text, "the value", "leave out quotes, backslashes, braces, '#', '$' and line ends"
        )
    return f'"{text}"'


def address(value: object) -> str:
    """An IPv4 or IPv6 address without scope."""
    text = str(value)
    try:
        parsed = ip_address(text)
    except ValueError as error:
        raise _refuse(text, "the address", "use an IPv4 or IPv6 address") from error
    if "%" in text:
        raise _refuse(text, "the address", "leave the interface out")
    return str(parsed)
