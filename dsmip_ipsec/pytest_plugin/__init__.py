"""pytest plugin: labs as fixtures, snapshots of IPsec state, failures with the message ladder.

pytest finds it by the entry point ``pytest11``; docs/pytest.md is its manual. Only what every run
of pytest needs is imported here: a test suite that doesn't use labs shouldn't pay for them.
"""

from __future__ import annotations

from dsmip_ipsec.pytest_plugin.fixtures import (
    cn,
    dsmip_kernel,
    dsmip_lab,
    dsmip_mobility,
    dsmip_start,
    ha,
    mn,
    snapshot_dsmip,
)
from dsmip_ipsec.pytest_plugin.hooks import (
    pytest_addoption,
    pytest_assertrepr_compare,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
    pytest_runtest_makereport,
)

__all__ = [
    "cn",
    "dsmip_kernel",
    "dsmip_lab",
    "dsmip_mobility",
    "dsmip_start",
    "ha",
    "mn",
    "pytest_addoption",
    "pytest_assertrepr_compare",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_makereport",
    "snapshot_dsmip",
]
