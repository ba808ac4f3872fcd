"""Any inventory that `render` takes loads into a real charon, and charon has of it what was meant;
any other is refused with a typed error that names what is wrong."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inventories
import pytest
from charon_judge import Judge
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import proposals

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with (
        tempfile.TemporaryDirectory(prefix="dsmip-", dir="/tmp") as directory,
        Judge(Path(directory)).running() as found,
    ):
        yield found


EXAMPLES = int(os.environ.get("DSMIP_FUZZ_EXAMPLES", "10"))
FUZZ = settings(
    deadline=None,
    database=None,
    derandomize=True,
    # Each try asks a real charon: a smaller example isn't worth the minutes that it costs.
    phases=[Phase.explicit, Phase.generate],
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_what_render_takes_charon_has_as_it_was_meant(judge: Judge) -> None:
    judge.accepted = judge.refused = 0

    @FUZZ
    # The home agent, and a mobile node with each kind of credentials.
    @example(inventories.EVERYTHING, 0)
    @example(inventories.EVERYTHING, 1)
    @example(inventories.EVERYTHING, 2)
    @example(inventories.EVERYTHING, 3)
    @example(inventories.EVERYTHING, 4)
    @example({**inventories.EVERYTHING, "ike": {}}, 0)
    @given(inventories.inventories(), st.integers(0, 11))
    def each(inventory: dict[str, Any], seed: int) -> None:
        judge.judge(inventory, seed)

    each()
    # Most are taken: else this would have shown nothing.
    assert judge.accepted > judge.refused


def test_hostile_values_are_refused_by_name_or_are_only_themselves(judge: Judge) -> None:
    judge.accepted = judge.refused = 0

    @settings(FUZZ, max_examples=2 * EXAMPLES)
    @given(inventories.with_something_hostile(), st.integers(0, 11))
    def each(inventory: dict[str, Any], seed: int) -> None:
        judge.judge(inventory, seed)

    each()
    assert judge.refused > judge.accepted


USES: tuple[proposals.Use, ...] = ("IKE", "ESP")
TABLES = {
    "cipher": sorted(proposals.CIPHERS),
    "null": sorted(proposals.NULL_CIPHER),
    "aead": sorted(proposals.AEAD_CIPHERS),
    "integrity": sorted(proposals.INTEGRITY),
    "prf": sorted(proposals.PRFS),
    "group": sorted(proposals.GROUPS),
    "esn": sorted(proposals.SEQUENCE_NUMBERS),
    "none": ["sha257", "aes512", "gcm", "prf", "modp", "x"],
}
# Stricter than charon, which would take something else than what is written, or, for ESP, nothing
# for integrity (RFC 8221 §4).
STRICTER = ("is there twice", "needs no integrity", "without integrity")


def test_proposals_are_refused_when_charon_refuses_them(judge: Judge) -> None:
    words = st.lists(
        st.sampled_from(sorted(TABLES)).flatmap(lambda kind: st.sampled_from(TABLES[kind])),
        min_size=1,
        max_size=4,
    ).map("-".join)
    verdicts = set()

    @settings(FUZZ, max_examples=15 * EXAMPLES)
    @given(st.sampled_from(USES), words)
    def each(use: proposals.Use, proposal: str) -> None:
        by_charon, refusal = judge.takes(use, proposal), ""
        try:
            proposals.check(proposal, use, "the proposal")
        except ConfigError as error:
            refusal = str(error)
        # A PRF for ESP, say, is left out by charon.
        elsewhere = "no algorithm of it" in refusal and not any(
            word in TABLES["none"] for word in proposal.split("-")
        )
        if not elsewhere and not any(why in refusal for why in STRICTER):
            assert bool(by_charon) == (not refusal), (proposal, by_charon, refusal)
            verdicts.add(bool(by_charon))

    each()
    assert verdicts == {True, False}


def test_charon_has_every_algorithm_that_a_proposal_may_name(judge: Judge) -> None:
    has = {
        name for kind in judge.session().get_algorithms().values() for name in map(str, kind)
    } | {"NO_EXT_SEQ"}
    for use, kind, template in (
        ("IKE", "cipher", "{}-sha256-modp2048"),
        ("IKE", "aead", "{}-prfsha256-modp2048"),
        ("IKE", "integrity", "aes256-{}-modp2048"),
        ("IKE", "prf", "aes128gcm-{}-modp2048"),
        ("IKE", "group", "aes128gcm-prfsha256-{}"),
        ("ESP", "null", "{}-sha256"),
    ):
        for word in TABLES[kind]:
            printed = judge.takes(use, template.format(word))  # type: ignore[arg-type]
            algorithms = printed.partition(":")[2].split("/")
            assert len(algorithms) >= 2, word
            for algorithm in algorithms:
                # With the size of its key, where it has one.
                assert algorithm in has or algorithm.rpartition("_")[0] in has, (word, algorithm)
