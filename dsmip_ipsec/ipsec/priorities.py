"""Our policies live in one priority band: the band is how we know them again after a crash, and
it lies below (is stronger than) every priority that strongSwan computes for its own."""

PRIORITY_SIGNALLING = 55550
PRIORITY_HOME_AGENT = 55551
PRIORITY_STAYING = 55551  # none of its packets is one of the above's
PRIORITY_PAYLOAD = 55552
PRIORITY_RETURN_ROUTABILITY = 55553
PRIORITY_BAND = range(55550, 55560)
