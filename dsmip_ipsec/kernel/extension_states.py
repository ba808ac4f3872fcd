"""Whether the kernel's MIPv6 is there: states for the two extension headers can be added.

Tried by each daemon when it starts, so without a process: probes.py, which tries everything and
must survive whatever a kernel does, forks and starts `ip` for the same.
"""

from __future__ import annotations

import ctypes
import threading
from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.model import Extension, ExtensionState
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.xfrm import requests
from dsmip_ipsec.xfrm.errors import XfrmError
from dsmip_ipsec.xfrm.socket import XfrmSocket

_CLONE_NEWNET = 0x40000000
# RFC 3849: documentation.
_ADDRESSES = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), IPv6Address("2001:db8::3")


def kernel_has_extension_states() -> bool:
    """Add a state of each kind in a network namespace that goes with the try.

    False, too, for whoever may not have a network namespace.
    """
    there: list[bool] = []

    def attempt() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            return
        try:
            with XfrmSocket() as xfrm:
                states = (
                    ExtensionState(extension, *_ADDRESSES, reqid=0) for extension in Extension
                )
                results = xfrm.request_all(
                    requests.add_state(translate.extension(state)) for state in states
                )
        except XfrmError:
            return
        there.extend(result.ok for result in results)

    # A namespace is a thread's: this one's end is the namespace's.
    thread = threading.Thread(target=attempt, name="extension-states")
    thread.start()
    thread.join()
    return bool(there) and all(there)
