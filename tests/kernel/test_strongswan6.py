"""What is rendered loads in the strongSwan 6 of Debian's next release, and is read as it was meant.

``make test-strongswan6`` fetches that strongSwan before the guest boots, which has no network.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inventories
import pytest
from charon_judge import Judge

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    root = os.environ.get("DSMIP_STRONGSWAN6", "")
    if not root:
        pytest.fail("$DSMIP_STRONGSWAN6 names no tree: run `make test-strongswan6`", pytrace=False)
    with (
        tempfile.TemporaryDirectory(prefix="dsmip-", dir="/tmp") as directory,
        Judge(Path(directory), Path(root)).running() as found,
    ):
        yield found


def test_it_is_strongswan_6(judge: Judge) -> None:
    assert judge.session().version()["version"].decode().startswith("6.")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["mobike", "k-bit", "renegotiate"])
def test_every_option_is_read_as_it_was_meant(judge: Judge, mode: str, seed: int) -> None:
    """The home agent, and a mobile node with each kind of credentials."""
    everything = inventories.EVERYTHING
    inventory: dict[str, Any] = {**everything, "ike": {**everything["ike"], "mobility_mode": mode}}
    judge.accepted = 0
    judge.judge(inventory, seed)
    assert judge.accepted == 1


def test_the_defaults_are_read_as_they_were_meant(judge: Judge) -> None:
    """And, with unprotected payload, what only then there is."""
    for seed, ike, data in ((0, {}, {}), (1, {"return_routability": True}, {"protected": False})):
        inventory = {**inventories.EVERYTHING, "ike": ike, "data": data}
        judge.accepted = 0
        judge.judge(inventory, seed)
        assert judge.accepted == 1


def test_it_still_tells_no_alerts(judge: Judge) -> None:
    """When this fails, ``ike/refusals.py`` need not read charon's words any more."""
    import asyncio

    from dsmip_ipsec.ike import vici_session
    from dsmip_ipsec.ike.errors import IkeError

    async def register() -> None:
        async with vici_session.connect(judge.files.vici_socket) as connection:
            await connection.register("alert")

    with pytest.raises(IkeError, match="no VICI event 'alert'"):
        asyncio.run(register())
