import pytest


@pytest.mark.dsmip_scenario("nat-handover")
def test_keys_stay(dsmip_lab, mn, ha, snapshot_dsmip):
    mn.move("visited-a")
    before = ha.sad.spis
    assert ha.sad.data.udp_encapsulated
    mn.move("visited-b")
    assert ha.sad.spis == before
    assert not ha.sad.data.udp_encapsulated
    snapshot_dsmip()


def test_both_ends_have_the_same_keys(roaming):
    assert roaming["mn"].sad.spis == roaming["ha"].sad.spis


def test_the_home_address_answers(roaming):
    """Wherever the mobile node is: the answer comes through the tunnel."""
    roaming["cn"].run("ping", "-c", "1", "-W", "5", "203.0.113.200")
    assert roaming["ha"].binding.care_of_address == roaming["mn"].binding.care_of_address
