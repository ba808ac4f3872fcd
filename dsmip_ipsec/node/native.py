"""Who sees to Mobile IPv6's extension headers: the kernel, where it can."""

from __future__ import annotations

import logging
from functools import cache

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.kernel.extension_states import kernel_has_extension_states
from dsmip_ipsec.node.config import HomeAgentConfig, MobileNodeConfig

log = logging.getLogger(__name__)


@cache
def kernel_has_them() -> bool:
    """Whether the kernel's MIPv6 is there.

    Asked once, for whatever is forked from this process, too (lab.nursery): it is the kernel that
    answers, and the question takes a network namespace.
    """
    return kernel_has_extension_states()


def kernel_headers(config: MobileNodeConfig | HomeAgentConfig) -> bool:
    """Whether the kernel's MIPv6 is to be used. Raises ConfigError when it is asked for and isn't
    there."""
    if config.ipsec == "userspace" or config.native_signalling == "own":
        return False
    there = kernel_has_them()
    if config.native_signalling == "kernel" and not there:
        raise ConfigError(
            'native_signalling = "kernel", but this kernel has no MIPv6',
            hint="load the module mip6, or leave out the setting",
        )
    log.info("home address option and type 2 routing header: %s", "kernel" if there else "own")
    return there
