"""Protocol constants of the mobility engines, each in this one place.

Times are in seconds unless a name says otherwise. What belongs to a format stands with it: the
DSMIPv6 port in :mod:`dsmip_ipsec.wire.ip`, the unit of lifetimes and the binding statuses in
:mod:`dsmip_ipsec.wire.mobility`, the refresh time of all ones and the IPv4 statuses in
:mod:`dsmip_ipsec.wire.options`.
"""

from __future__ import annotations

from typing import Final

# RFC 6275 §6.1.7: sixteen bits.
MAX_LIFETIME_UNITS: Final = 0xFFFF

# RFC 6275 §9.5.1: sequence numbers are compared modulo 2**16.
SEQUENCE_MODULUS: Final = 1 << 16
SEQUENCE_WINDOW: Final = 1 << 15

# RFC 6275 §12.
INITIAL_BINDACK_TIMEOUT: Final = 1.0
MAX_BINDACK_TIMEOUT: Final = 32.0
MAX_DELETE_BCE_TIMEOUT: Final = 10.0
MAX_UPDATE_RATE: Final = 3  # messages of one type to one node within a second

# RFC 6275 §13: a default that has to be configurable.
INITIAL_BINDACK_TIMEOUT_FIRST_REG: Final = 1.5

# RFC 5555 §6.
NATKATIMEOUT: Final = 110

# RFC 5555 §3.2.2: a refresh time of zero says nothing.
REFRESH_TIME_IGNORE: Final = 0

# RFC 5555 §4.4.1: unanswered binding updates from an IPv6 care-of address before IPv4 is tried.
IPV6_ATTEMPTS: Final = 3

# RFC 6275 §11.7.1 wants a refresh "well before" the binding expires; the fraction is ours. It
# leaves room for seven retransmissions of a binding of ten minutes.
REFRESH_FRACTION: Final = 0.75

# Answers to malformed messages within a second (RFC 6275 §9.2 and §9.3.3 want them limited, the
# number is ours).
MAX_ERROR_RATE: Final = 10

# RFC 6275 §12, of the mobile node's discoveries.
DHAAD_RETRIES: Final = 4
INITIAL_DHAAD_TIMEOUT: Final = 3.0
INITIAL_SOLICIT_TIMER: Final = 3.0
MAX_TOKEN_LIFETIME: Final = 210
MAX_RR_BINDING_LIFETIME: Final = 420
MAX_RO_FAILURE: Final = 3

# RFC 6275 §12 and §13, of the home agent's prefix advertisements.
PREFIX_ADV_RETRIES: Final = 3
PREFIX_ADV_TIMEOUT: Final = 3.0
MAX_MOB_PFX_ADV_INTERVAL: Final = 86_400
MIN_MOB_PFX_ADV_INTERVAL: Final = 600

# How long a home agent waits for its driver's duplicate address detection (the time is ours: a
# good deal more than RFC 4862 needs; then the mobile node's next transmission starts another).
DAD_ANSWER_TIMEOUT: Final = 10.0

# IPv4 prefixes that one mobile node may be given from a pool (the number is ours).
MAX_LEASED_IPV4_PREFIXES: Final = 4
