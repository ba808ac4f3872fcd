"""The parts of a guest that need none: output, init script, visibility, share, keeper."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.kernel.probe_tries import TRIES
from dsmip_ipsec.kernel.probes import Capabilities, Capability, Status
from dsmip_ipsec.lab import guest, guest_code, guest_kernel, guest_pytest
from dsmip_ipsec.lab.guest_init import InitSpec, Mount, is_shadowed, render_init
from dsmip_ipsec.lab.guest_keeper import KeeperConfig
from dsmip_ipsec.lab.guest_output import MAX_LINE, OutputLines

NONCE = "0123456789abcdef"
NOBODY = (65534, 65534)


def lines_of(chunks: list[bytes]) -> tuple[list[str], int | None]:
    got: list[str] = []
    output = OutputLines(NONCE, got.append)
    for chunk in chunks:
        output.feed(chunk)
    return got, output.status


def test_output_is_the_same_however_it_is_cut() -> None:
    stream = "eins\n\nzw\u00f6lf\r\nunfinished".encode() + f"{NONCE} 42\n".encode()
    want = (["eins", "", "zw\u00f6lf", "unfinished"], 42)
    assert lines_of([stream]) == want
    assert lines_of([stream[i : i + 1] for i in range(len(stream))]) == want
    generator = random.Random(1)
    for _ in range(200):
        cuts = sorted(generator.sample(range(len(stream)), 4))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        assert lines_of(pieces) == want


def test_output_after_the_status_is_ignored_and_other_nonces_are_text() -> None:
    assert lines_of([f"{NONCE[::-1]} 1\n{NONCE} 0\nlate\n".encode()]) == ([f"{NONCE[::-1]} 1"], 0)
    assert lines_of([f"{NONCE} 1 trailing\n".encode()]) == ([f"{NONCE} 1 trailing"], None)


def test_endless_line_is_delivered_in_pieces() -> None:
    got, status = lines_of([b"x" * 1000] * 200)
    assert status is None
    assert [len(line) for line in got] == [MAX_LINE] * 3


def test_bytes_that_are_no_text_do_not_fail() -> None:
    assert lines_of([b"\xff\xfe\n"]) == (["\ufffd\ufffd"], None)


NASTY = ["it's", 'a "b" $HOME `id`', "\\", "", "new\nline", "-x", "ünï", "*;&|<>"]


def test_init_script_is_valid_and_quotes_everything() -> None:
    mount = Mount(Path("/stage/it's 0"), Path("/closed/a b"), cover=Path("/closed"))
    spec = InitSpec(
        argv=["printf", "%s\\0", *NASTY],
        share=Path("/tmp/sh are"),
        nonce=NONCE,
        env={"NASTY": NASTY[1], "PATH": "/usr/bin:/bin"},
        mounts=[mount],
    )
    script = render_init(spec)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    command = script.split("\n/usr/bin/setsid -w ")[1].split(" >&3")[0]
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == NASTY
    # The directory that nobody may look into is covered before anything is mounted below it.
    assert script.index("tmpfs /closed") < script.index("hostfs -o ro,nosuid,'/stage/it")
    assert shlex.quote("/closed/a b") in script


@pytest.mark.parametrize(
    ("path", "shadowed"),
    [
        ("/tmp", True),
        ("/tmp/x/y", True),
        ("/tmpx", False),
        ("/run/user/1", True),
        ("/var/lib/jenkins", False),
        ("/home/me/clone", False),
    ],
)
def test_what_the_guests_own_file_systems_hide(path: str, shadowed: bool) -> None:
    assert is_shadowed(Path(path)) == shadowed


def test_keeper_config_survives_json() -> None:
    config = KeeperConfig(["a"], {"b": "c"}, 1, (2, 3), ["/d"], {"out": "/e"}, ["/f"], ["/g"], [4])
    assert KeeperConfig.from_json(config.to_json()) == config


def test_roots_are_named_once_and_the_system_is_not_among_them(tmp_path: Path) -> None:
    inner = guest_code.project_dir() / "labs"
    roots = guest_code.code_roots([inner, tmp_path, Path("/usr/bin"), Path("/")])
    assert tmp_path in roots
    assert not {inner, Path("/usr"), Path("/usr/bin"), Path("/")} & set(roots)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "pkg" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("never staged")
    (root / "pkg" / "plain.py").write_text("plain")
    (root / "pkg" / "closed.py").write_text("closed")
    (root / "pkg" / "closed.py").chmod(0o600)
    (root / "pkg" / "tool").write_text("tool")
    (root / "pkg" / "tool").chmod(0o4755)
    (root / "pkg" / "link").symlink_to("plain.py")
    (root / "pkg" / "dirlink").symlink_to("deep")
    (root / "pkg" / "deep").chmod(0o700)
    os.mkfifo(root / "pkg" / "pipe")
    return root


def test_staged_copy_is_readable_and_complete(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    guest_code.stage(tree, copy)
    names = sorted(str(p.relative_to(copy)) for p in copy.rglob("*"))
    assert names == ["pkg"] + [
        f"pkg/{n}" for n in ("closed.py", "deep", "dirlink", "link", "plain.py", "tool")
    ]
    assert (copy / "pkg" / "closed.py").stat().st_mode & 0o7777 == 0o644
    assert (copy / "pkg" / "tool").stat().st_mode & 0o7777 == 0o755
    assert (copy / "pkg" / "deep").stat().st_mode & 0o777 == 0o755
    assert os.readlink(copy / "pkg" / "link") == "plain.py"
    assert (copy / "pkg" / "plain.py").read_text() == "plain"
    # The original keeps its mode: what is linked must not be changed.
    assert (tree / "pkg" / "closed.py").stat().st_mode & 0o7777 == 0o600


@pytest.mark.as_root
def test_unreadable_is_judged_as_the_other_user(tree: Path) -> None:
    assert guest_code.first_unreadable([tree], None) is None
    # tmp_path itself lies below a directory of mode 0700.
    assert guest_code.first_unreadable([tree], NOBODY) == tree
    assert not guest_code.reaches(tree, NOBODY)
    assert guest_code.reaches(Path("/usr"), NOBODY)
    assert guest_code.first_unreadable([Path("/usr/bin/env")], NOBODY) is None


@pytest.mark.as_root
def test_closed_root_is_staged_and_covered_at_its_own_path(tmp_path: Path) -> None:
    closed = Path("/var/lib") / f"dsmip-test-{os.getpid()}"
    root = closed / "clone"
    root.mkdir(parents=True)
    try:
        closed.chmod(0o700)
        (root / "file").write_text("x")
        [mount] = guest_code.make_visible([root], NOBODY, tmp_path)
        assert mount == Mount(tmp_path / "0", root, closed)
        assert (mount.source / "file").read_text() == "x"
        closed.chmod(0o755)
        assert guest_code.make_visible([root], NOBODY, tmp_path) == []
    finally:
        (root / "file").unlink()
        root.rmdir()
        closed.rmdir()


def test_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="doesn't exist"):
        guest_code.make_visible([tmp_path / "none"], None, tmp_path)


def test_console_log_must_be_out_of_the_guests_reach(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="share"):
        guest.UmlGuest(share=tmp_path / "s", console_log=tmp_path / "s" / "console.log")


def test_missing_kernel_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(LabError) as error:
        guest.find_uml()
    assert "user-mode-linux" in error.value.hint


@pytest.mark.as_root
def test_share_of_somebody_else_is_not_taken_over() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        share = Path(name, "share")
        share.mkdir()
        guest.prepare_share(share)
        assert share.stat().st_uid == 65534
        mine = Path(name, "mine")
        mine.mkdir()
        (mine / "file").touch()
        with pytest.raises(LabError, match="another user"):
            guest.prepare_share(mine)
        assert mine.stat().st_uid == 0
        Path(name).chmod(0o700)
        with pytest.raises(LabError, match="can't reach"):
            guest.prepare_share(share)


def test_links_left_in_the_share_are_not_followed(tmp_path: Path) -> None:
    share, secret, out = tmp_path / "share", tmp_path / "secret", tmp_path / "out"
    (share / "sub").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").write_text("secret")
    (share / "sub" / "good").write_text("good")
    (share / "sub" / "good").chmod(0o600)
    (share / "link").symlink_to(secret / "key")
    (share / "dirlink").symlink_to(secret)
    os.mkfifo(share / "pipe")
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "good").write_text("older, for all to read")
    assert guest.collect_share(share, out) == [Path("sub/good")]
    assert (out / "sub" / "good").read_text() == "good"
    assert (out / "sub" / "good").stat().st_mode & 0o777 == 0o600
    assert guest.collect_share(share / "dirlink", out / "more") == []
    assert sorted(p.name for p in out.rglob("*")) == ["good", "sub"]


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        ([], ["tests/kernel"]),
        (["-x"], ["tests/kernel"]),
        (["-k", "migrate"], ["tests/kernel"]),
        (["tests/kernel/test_probes.py::test_labs_can_run_here"], []),
    ],
)
def test_kernel_tests_are_what_runs_by_default(arguments: list[str], added: list[str]) -> None:
    command = guest_pytest.pytest_command(arguments)
    assert command[command.index("no:cacheprovider") + 1 :] == arguments + added


def test_host_kernel_is_refused_to_who_cannot_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="need root"):
        guest_kernel.choose_kernel("host")
    with pytest.raises(LabError, match="unknown kernel"):
        guest_kernel.choose_kernel("vax")
    monkeypatch.setattr(guest_kernel, "find_uml", lambda: "/usr/bin/linux.uml")
    assert guest_kernel.choose_kernel("auto") == "uml"


def test_user_space_ipsec_asks_less_of_the_host_and_no_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def host(*missing: str) -> Callable[[], Capabilities]:
        """A kernel without ESP and netem, and without ``missing``."""
        lacking = {"esp4", "esp6", "esp_in_udp", "netem", "mh_socket", *missing}
        results = tuple(
            Capability(name, name, Status.MISSING if name in lacking else Status.OK, "why")
            for name in TRIES
        )
        return lambda: Capabilities("6.1", "x86_64", "user namespace", results)

    monkeypatch.setattr(guest_kernel, "find_uml", lambda: "/usr/bin/linux.uml")
    for uid in (0, 1000):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        choose = partial(guest_kernel.choose_kernel, ipsec="userspace")
        for requested in ("auto", "host"):
            assert choose(requested, probe_host=host()) == "host"
        assert guest_kernel.in_user_namespace("host") is (uid != 0)
        assert not guest_kernel.in_user_namespace("uml")
        assert choose("auto", probe_host=host("tun")) == "uml"
        assert choose("auto", probe_host=host("nat_iptables")) == "host", "nftables is there"
        assert choose("auto", probe_host=host("nat_iptables", "nat_nft")) == "uml"
        with pytest.raises(LabError, match=r"lacks: tun \(why\)"):
            choose("host", probe_host=host("tun"))
        assert guest_kernel.choose_kernel("auto", probe_host=host()) == "uml", "ESP by the kernel"
