"""docs/examples/handover-tests in somebody else's CI: what its workflow and container file say is
run, literally, in a new Debian of its own (debootstrap). Root, a Debian mirror and minutes are
needed for it: ``make test-examples``.

What isn't as there: no container's limits on system calls, and Python packages come from a
directory of wheels made on this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

pytestmark = pytest.mark.as_root

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "docs" / "examples" / "handover-tests"
WORKFLOW = EXAMPLE / ".github" / "workflows" / "handover.yml"
# None: debootstrap's own.
MIRROR = [url] if (url := os.environ.get("DSMIP_DEBIAN_MIRROR")) else []
# Everything that is downloaded and run, on a busy machine.
LIMIT_S = 1500.0


class Debian:
    """A root file system, and commands in it: with its own mounts and processes, and the machine's
    network."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root = root
        self.wheels = wheels
        self.env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/wheels",
        }

    def run(self, script: str, *, cwd: str, user: str = "root", shell: str = "/bin/sh") -> None:
        """Raises AssertionError, with what it said, when it fails."""
        root, wheels = shlex.quote(str(self.root)), shlex.quote(str(self.wheels))
        words = [f"{name}={value}" for name, value in self.env.items()]
        inner = shlex.join(["env", "-i", *words, *shell.split(), "-c", script])
        enter = f"""
        set -e
        mount --rbind /dev {root}/dev
        mount -t tmpfs -o nosuid,nodev tmpfs {root}/dev/shm
        mount -t proc proc {root}/proc
        mkdir -p {root}/wheels
        mount --bind {wheels} {root}/wheels
        user=$(chroot {root} id -u {user}):$(chroot {root} id -g {user})
        exec chroot --userspec=$user {root} sh -c {shlex.quote(f"cd {cwd} && {inner}")}
        """
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-6000:]}"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dsmip-examples-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def wheels(place: Path) -> Path:
    """Our wheel and those of all that it needs."""
    source = place / "source"
    source.mkdir()
    for name in ("dsmip_ipsec", "labs", "templates"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(PROJECT / name, source / name)
    wheels = place / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels)]
    subprocess.run([*command, f"{source}[pytest]", "pytest-xdist"], check=True, timeout=LIMIT_S)
    return wheels


@pytest.fixture(scope="module")
def base(place: Path) -> Path:
    """What the image debian:12 is, from a mirror."""
    root = place / "base"
    command = ["debootstrap", "--variant=minbase", "bookworm", str(root), *MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return root


@pytest.fixture
def debian(place: Path, base: Path, wheels: Path) -> Iterator[Debian]:
    root = Path(tempfile.mkdtemp(prefix="root-", dir=place))
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", str(root)], check=True)
    shutil.copyfile("/etc/resolv.conf", root / "etc" / "resolv.conf")
    if Path("/etc/hosts").is_file():
        shutil.copyfile("/etc/hosts", root / "etc" / "hosts")
    yield Debian(root, wheels)
    shutil.rmtree(root)


def passed(junit: Path) -> set[str]:
    cases = ET.parse(junit).iter("testcase")
    return {case.attrib["name"] for case in cases if not len(case)}


ALL = {"test_keys_stay", "test_both_ends_have_the_same_keys", "test_the_home_address_answers"}


def test_the_workflow_does_what_it_says(debian: Debian) -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    job = workflow["jobs"]["handover"]
    assert job["container"] == "debian:12"
    debian.env |= workflow["env"]
    for step in job["steps"]:
        if "run" in step:
            # GitHub's default shell, and where it starts: in the checkout, once there is one.
            cwd = "/work" if (debian.root / "work").is_dir() else "/"
            debian.run(step["run"], cwd=cwd, shell="bash -e")
        elif step["uses"].startswith("actions/checkout@"):
            shutil.copytree(EXAMPLE, debian.root / "work")
        else:
            assert step["if"] == "failure()"
    assert passed(debian.root / "work" / "junit.xml") == ALL


def test_the_container_file_does_what_it_says(debian: Debian) -> None:
    """Its instructions, without an engine; as the user that it says."""
    lines = (EXAMPLE / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    user, cwd, ran = "root", "/", 0
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "RUN":
            debian.run(rest, cwd=cwd, user=user)
        elif word == "ARG":
            name, _, value = rest.partition("=")
            debian.env[name] = value
        elif word == "USER":
            user = rest
        elif word == "WORKDIR":
            cwd = rest
            debian.run(f"mkdir -p {cwd}", cwd="/")
        elif word == "COPY":
            assert rest == "--chown=tester . ."
            shutil.copytree(EXAMPLE, f"{debian.root}{cwd}", dirs_exist_ok=True)
            debian.run(f"chown -R tester {cwd}", cwd="/")
        elif word == "CMD":
            # And a report, to be sure of what was run.
            command = [*json.loads(rest), "--junit-xml=/tmp/junit.xml"]
            debian.run(shlex.join(command), cwd=cwd, user=user)
            ran += 1
        else:
            assert not word or word.startswith("#") or line == "FROM debian:12", line
    assert (user, ran) == ("tester", 1)
    assert passed(debian.root / "tmp" / "junit.xml") == ALL
