"""Which policies a step's ``policies`` counts."""

from __future__ import annotations

import pytest

from dsmip_ipsec.lab.expectations import Observation, judge
from dsmip_ipsec.lab.record import NodeState, Policy
from dsmip_ipsec.lab.spec import Expect

SIGNALLING = "2001:db8::100/128 -> 2001:db8::1/128 proto mh"
DATA = "2001:db8::100/128 -> ::/0"
BLOCKED = Policy(direction="in", selector=SIGNALLING, template="block", priority=55550)
CHECKED = BLOCKED.model_copy(update={"template": "esp transport any reqid 55502"})
LEFT = Policy(direction="fwd", selector=DATA, template="block", priority=55552)


@pytest.mark.parametrize(
    ("mobile", "agent", "passed"),
    [
        ((), (), True),
        ((), (BLOCKED,), True),  # the home agent takes no BU without ESP, ever
        ((), (CHECKED,), False),
        ((), (BLOCKED, LEFT), False),
        ((BLOCKED,), (BLOCKED,), False),  # a mobile node lets go of everything
    ],
)
def test_after_a_deregistration(
    mobile: tuple[Policy, ...], agent: tuple[Policy, ...], passed: bool
) -> None:
    seen = Observation(
        mobile_node=NodeState(policies=mobile),
        home_agent=NodeState(policies=agent),
        care_of_addresses=frozenset(),
        flows=(),
        after=(),
        exchanges={},
        rtt_ms=40,
    )
    (found,) = judge(Expect(policies=0), seen)
    assert found.passed is passed
