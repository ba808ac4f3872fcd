"""The doctor's verdicts, and its probes on whatever kernel this is."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from dsmip_ipsec.cli import doctor
from dsmip_ipsec.cli.doctor import PROGRAMS, Found, judge, userspace_labs
from dsmip_ipsec.errors import GuestError, KernelError
from dsmip_ipsec.kernel import probes
from dsmip_ipsec.kernel.probe_tries import TRIES, CantTry, NotThere, Try
from dsmip_ipsec.kernel.probes import LAB_NEEDS, Capabilities, Capability, Status, probe


def kernel(*missing: str) -> Capabilities:
    return Capabilities(
        "6.1.0",
        "x86_64",
        "root",
        tuple(
            Capability(n, t.title, Status.MISSING, "not there", "EOPNOTSUPP")
            if n in missing
            else Capability(n, t.title, Status.OK)
            for n, t in TRIES.items()
        ),
    )


def programs(*missing: str, closed: str = "") -> list[Found]:
    return [
        Found(p, "", "missing")
        if p.name in missing
        else Found(p, f"/bin/{p.name}", "may not be run" if p.name == closed else "")
        for p in PROGRAMS
    ]


def test_able_host_and_root_run_in_place() -> None:
    verdict = judge(root=True, programs=programs("linux.uml"), host=kernel(), guest=None)
    assert (verdict.labs, verdict.text) == ("host", "labs run in place")


def test_either_nat_will_do() -> None:
    found = programs()
    assert judge(root=True, programs=found, host=kernel("nat_nft"), guest=None).labs == "host"
    both = judge(root=True, programs=found, host=kernel("nat_nft", "nat_iptables"), guest=None)
    assert both.labs == "none"


@pytest.mark.parametrize("names", LAB_NEEDS, ids=lambda n: n[0])
def test_each_need_sends_the_labs_to_the_guest(names: tuple[str, ...]) -> None:
    host = kernel(*names)
    verdict = judge(root=True, programs=programs(), host=host, guest=kernel())
    assert (verdict.labs, verdict.text) == ("uml", "labs run in the UML guest")
    assert verdict.reasons == [f"this kernel lacks {host[names[0]].title}: not there"]
    worse = judge(root=True, programs=programs(), host=host, guest=host)
    assert worse.labs == "none"
    assert len(worse.reasons) == 2


def test_users_get_the_guest_even_on_an_able_kernel() -> None:
    verdict = judge(root=False, programs=programs(), host=kernel(), guest=kernel())
    assert verdict.labs == "uml"
    assert verdict.reasons == ["labs on this kernel need root"]


def test_missing_programs_are_named_by_package_once() -> None:
    verdict = judge(root=True, programs=programs("ip", "tc", "swanctl"), host=kernel(), guest=None)
    assert (verdict.labs, verdict.text) == ("none", "install iproute2 strongswan-swanctl")
    no_guest = judge(root=True, programs=programs("linux.uml"), host=kernel("esp4"), guest=None)
    assert (no_guest.labs, no_guest.text) == ("none", "install user-mode-linux")


def test_optional_programs_may_be_missing() -> None:
    verdict = judge(root=True, programs=programs("nft", "tshark"), host=kernel(), guest=None)
    assert verdict.labs == "host"


def test_what_user_space_ipsec_needs_is_less() -> None:
    host = kernel("esp4", "esp6", "esp_in_udp", "netem", "mh_socket", "rcvmark", "nat_nft")
    assert userspace_labs(host, root=True) == ["with --ipsec userspace, labs run in place"]
    assert userspace_labs(host, root=False)[0].endswith("in place without root")
    for missing in (("tun",), ("veth",), ("nat_nft", "nat_iptables")):
        assert userspace_labs(kernel(*missing), root=True) == []
    assert userspace_labs(None, root=True) == []


def test_program_closed_to_the_guests_user_matters_for_the_guest_only() -> None:
    found = programs(closed="charon-systemd")
    assert judge(root=True, programs=found, host=kernel(), guest=None).labs == "host"
    verdict = judge(root=True, programs=found, host=kernel("esp4"), guest=None)
    assert verdict.labs == "none"
    assert "/bin/charon-systemd" in verdict.text


def test_a_guest_needs_its_own_programs_only() -> None:
    found = programs("qemu-system-x86_64", "busybox")
    host = kernel("esp4")
    assert judge(root=True, programs=found, host=host, guest=kernel()).labs == "uml"
    verdict = judge(root=True, programs=found, host=host, guest=None, kind="qemu")
    assert (verdict.labs, verdict.text) == ("none", "install busybox-static qemu-system-x86")
    found = programs("linux.uml")
    verdict = judge(root=True, programs=found, host=None, guest=kernel(), kind="qemu")
    assert (verdict.labs, verdict.text) == ("qemu", "labs run in the QEMU guest")


def test_guest_that_does_not_start_is_told() -> None:
    verdict = judge(
        root=True, programs=programs(), host=kernel("esp4"), guest=None, guest_error="it died"
    )
    assert verdict.labs == "none"
    assert verdict.reasons[-1] == "it died"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    return parser.parse_args(["doctor", *words])


def test_json_and_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_programs", programs)
    monkeypatch.setattr(doctor, "probe", lambda: kernel("esp4"))
    monkeypatch.setattr(doctor, "probe_guest", lambda kind: kernel())
    args = arguments("--json")
    assert args.run(args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "dsmip-ipsec/doctor/1"
    assert document["verdict"]["labs"] == "uml"
    assert Capabilities.from_dict(document["kernels"]["host"]) == kernel("esp4")
    assert Capabilities.from_dict(document["kernels"]["uml"]) == kernel()

    def dead(kind: str) -> Capabilities:
        raise GuestError("it died", console_log="/x/console.log")

    monkeypatch.setattr(doctor, "probe_guest", dead)
    assert args.run(args) == 1
    assert "/x/console.log" in capsys.readouterr().out


def test_table_shows_each_capability_and_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "find_programs", lambda: programs("swanctl"))
    monkeypatch.setattr(doctor, "probe", lambda: kernel("esp4"))
    args = arguments("--kernel", "host")
    assert args.run(args) == 1
    shown = capsys.readouterr().out
    for item in TRIES.values():
        assert item.title in shown
    for program in PROGRAMS:
        assert program.package in shown
    assert "missing  EOPNOTSUPP not there" in shown
    assert "Verdict: install strongswan-swanctl" in shown


# -- the probes, on this kernel as this user


def test_probing_always_answers_for_everything() -> None:
    capabilities = probe()
    assert [item.name for item in capabilities] == list(TRIES)
    for item in capabilities:
        assert (item.reason == "") == (item.status is Status.OK), item
    if os.geteuid() == 0:
        assert capabilities.by == "root"
    else:
        assert capabilities.by in ("user namespace", "user")


@pytest.mark.as_root
def test_what_iproute2_can_make_here_is_found() -> None:
    """Third party: ip's own success or failure in a namespace, for the links."""
    kinds = ["veth", "dummy", "bridge", "sit", "ipip", "ip6tnl"]
    capabilities = probe(kinds)
    for kind in kinds:
        command = ["unshare", "-n", "ip", "link", "add", "x0", "type", kind]
        made = subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert capabilities.ok(kind) == made, kind


def test_unknown_probe_is_an_error() -> None:
    with pytest.raises(KernelError, match="no probe is called"):
        probe(["esp5"])


def attempt(monkeypatch: pytest.MonkeyPatch, error: BaseException, by: str) -> Capability:
    def run() -> None:
        raise error

    monkeypatch.setitem(TRIES, "fake", Try("fake", "Fake", run))
    return probes._attempt("fake", by)


def test_refusals_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = NotThere("Operation not supported", errno.EOPNOTSUPP)
    as_root = attempt(monkeypatch, refused, "root")
    assert (as_root.status, as_root.errno) == (Status.MISSING, "EOPNOTSUPP")
    # The module may just not be loaded, and only root can load it.
    monkeypatch.setattr(probes, "has_modules", lambda: True)
    assert attempt(monkeypatch, refused, "user namespace").status is Status.UNTESTED
    monkeypatch.setattr(probes, "has_modules", lambda: False)
    assert attempt(monkeypatch, refused, "user namespace").status is Status.MISSING
    not_allowed = attempt(monkeypatch, PermissionError(errno.EPERM, "No"), "root")
    assert not_allowed.status is Status.UNTESTED
    assert attempt(monkeypatch, CantTry("no program"), "root").reason == "no program"
    broken = attempt(monkeypatch, ValueError("oops"), "root")
    assert broken.status is Status.UNTESTED
    assert "oops" in broken.reason


def test_probe_that_kills_or_hangs_its_process_loses_only_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TRIES, "fine", Try("fine", "Fine", lambda: None))
    monkeypatch.setitem(TRIES, "dies", Try("dies", "Dies", lambda: os._exit(9)))
    result = probe(["fine", "dies", "tun"])
    if result.by == "user":  # no user namespaces here: nothing was tried at all
        assert "needs root" in result["fine"].reason
        return
    assert result.ok("fine")
    assert result["dies"].reason == result["tun"].reason == "the trying process died"
    monkeypatch.setitem(TRIES, "hangs", Try("hangs", "Hangs", _hang))
    result = probe(["fine", "hangs"], deadline_s=1.5)
    assert result.ok("fine")
    assert result["hangs"].reason == "the trying process hung"
    # It was killed before probe() returned; until it is gone it is still listed.
    deadline = time.monotonic() + 5
    while marks := [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"86413" in _read(p)]:
        assert time.monotonic() < deadline, f"left behind: {marks}"


def _hang() -> None:
    subprocess.run(["sleep", "86413"], check=False)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_missing_program_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(CantTry, match="iproute2"):
        TRIES["esp4"].run()


@pytest.mark.parametrize("data", [None, [], {}, {"results": 1}, {"results": [{"status": "x"}]}])
def test_broken_results_are_a_typed_error(data: object) -> None:
    with pytest.raises(KernelError):
        Capabilities.from_dict(data)
