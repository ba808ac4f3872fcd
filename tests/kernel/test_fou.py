"""What stands in the way of leaving unprotected payload in UDP to the kernel's FOU and GUE
(docs/decisions.md, 24). A test here fails once a kernel takes that obstacle away."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from xfrm_netns import fresh_netns, ip

PORT = 4191
HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def _netns() -> Iterator[None]:
    subprocess.run(["modprobe", "fou"], check=True)
    with fresh_netns():
        ip(f"address add {HERE}/32 dev lo")
        yield


def refused(arguments: str) -> str:
    """What ``ip ARGUMENTS`` complains about."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        ip(arguments)
    return str(caught.value.stderr)


def bind() -> socket.socket:
    """The signalling socket, as willing to share its port as a socket can be."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            udp.setsockopt(socket.SOL_SOCKET, option, 1)
        udp.bind((HERE, PORT))
    except OSError:
        udp.close()
        raise
    return udp


@pytest.mark.usefixtures("_netns")
def test_fou_takes_one_protocol_a_port_and_gue_both_families() -> None:
    """RFC 5555 §4.2 has both behind one port, told apart by their first four bits."""
    ip(f"fou add port {PORT} ipproto 4")
    assert "Address already in use" in refused(f"fou add port {PORT} ipproto 41")
    ip(f"fou del port {PORT}")
    ip(f"fou add port {PORT} gue")


@pytest.mark.usefixtures("_netns")
@pytest.mark.parametrize("where", ["", f" local {HERE}"])
def test_a_listener_and_the_signalling_socket_exclude_each_other(where: str) -> None:
    """RFC 5555 §4.2: binding updates and payload come to the same port, from the same one."""
    ip(f"fou add port {PORT} gue{where}")
    with pytest.raises(OSError, match="Address already in use"):
        bind()
    ip(f"fou del port {PORT}{where}")
    with bind():
        assert "Address already in use" in refused(f"fou add port {PORT} gue{where}")


@pytest.mark.usefixtures("_netns")
def test_two_mobile_nodes_behind_one_nat_cannot_both_have_a_kernel_tunnel() -> None:
    """A tunnel is known by its two addresses; the ports, which differ, don't count."""
    for number in (1, 2):
        make = (
            f"link add mn{number} type sit mode any local {HERE} remote {THERE} "
            f"ttl 64 encap none encap-sport {PORT} encap-dport {5000 + number}"
        )
        if number == 1:
            ip(make)
        else:
            assert "File exists" in refused(make)
