"""The prefixes of a mobile node's home link, as its home agent advertised them (RFC 6275 §11.4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.types import HomePrefix, HomePrefixesLearned

log = logging.getLogger(__name__)


class HomePrefixes:
    """Asked for by ``solicit``, unless ``bound`` says no. ``reqid``: of the SAs for it, 0 for none
    (RFC 4877 §4.3: the messages MUST be protected)."""

    def __init__(self, solicit: Callable[[], None], bound: Callable[[], bool], reqid: int) -> None:
        self._solicit = solicit
        self._bound = bound
        self._reqid = reqid
        self._prefixes: tuple[HomePrefix, ...] = ()

    def learn(self, advertised: HomePrefixesLearned) -> None:
        self._prefixes = advertised.prefixes
        log.info("home prefixes: %s", ", ".join(self.describe()))

    def describe(self) -> list[str]:
        return [str(each.prefix) for each in self._prefixes]

    async def command(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """``solicit_prefixes``: ask now; the status tells the answer. Raises MobilityError."""
        if not self._reqid:
            raise MobilityError(
                "mobile prefix discovery has no SAs", hint="configure prefix_discovery_reqid"
            )
        if not self._bound():
            raise MobilityError("there is no binding", hint="attach to a network first")
        self._solicit()
        return {}
