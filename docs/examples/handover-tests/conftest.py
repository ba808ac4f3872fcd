"""A lab for all tests of a module: it stands up once."""

import pytest


@pytest.fixture(scope="module")
def roaming(dsmip_start):
    """A lab whose mobile node is in the public network. Tests must leave it there."""
    with dsmip_start("nat-handover") as lab:
        lab.move("mn", "visited-b", binding=True, sad_consistent=True)
        yield lab
