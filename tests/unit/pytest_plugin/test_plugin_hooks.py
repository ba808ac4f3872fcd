"""Options, markers, parametrisation and messages, as a user's pytest shows them. No lab stands."""

from __future__ import annotations

import pytest

PLUGIN = "dsmip_ipsec.pytest_plugin"
MARKED = """
import pytest

{marks}
def test_it(dsmip_lab):
    pass
"""


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:asyncio")
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess("-p", PLUGIN, *options)


def collected(pytester: pytest.Pytester, marks: str, *options: str) -> list[str]:
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:asyncio")
    pytester.makepyfile(MARKED.format(marks=marks))
    result = pytester.runpytest_inprocess("-p", PLUGIN, "--collect-only", "-q", *options)
    return [line.rpartition("::")[2] for line in result.outlines if "::" in line]


def test_markers_and_options_are_explained(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", PLUGIN, "--markers", "-p", "no:asyncio")
    for name in ("dsmip_scenario(lab)", "dsmip_kernel(*kernels)", "dsmip_mobility(*modes)"):
        result.stdout.fnmatch_lines([f"@pytest.mark.{name}: *"])
    result = pytester.runpytest_subprocess("-p", PLUGIN, "--help", "-p", "no:asyncio")
    for name in ("--dsmip-kernel", "--dsmip-pcap", "--dsmip-keep", "--dsmip-update-snapshots"):
        result.stdout.fnmatch_lines([f"*{name}*"])


def test_tests_without_labs_load_nothing_of_ours(pytester: pytest.Pytester) -> None:
    """Somebody else's test suite pays neither for pydantic nor for netlink."""
    result = run(
        pytester,
        "import sys\n"
        "def test_it():\n"
        "    ours = sorted(m for m in sys.modules if m.startswith('dsmip_ipsec.'))\n"
        "    assert not [m for m in ours if '.lab' in m or '.report' in m], ours\n"
        "    assert 'pydantic' not in sys.modules and 'pyroute2' not in sys.modules\n",
    )
    result.assert_outcomes(passed=1)


def test_a_lab_without_a_scenario_says_what_to_do(pytester: pytest.Pytester) -> None:
    result = run(pytester, MARKED.format(marks=""))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*@pytest.mark.dsmip_scenario("nat-handover")*'])
    assert "Traceback" not in result.stdout.str()


def test_an_unknown_scenario_names_those_there_are(pytester: pytest.Pytester) -> None:
    result = run(pytester, MARKED.format(marks='@pytest.mark.dsmip_scenario("nonsense")'))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no lab 'nonsense'*", "*hint: *nat-handover*"])


def test_a_faulty_lab_file_is_told_with_its_line(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("mine.toml").write_text('[lab]\nname = "mine"\ncolour = "red"\n')
    result = run(pytester, MARKED.format(marks='@pytest.mark.dsmip_scenario("mine.toml")'))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*mine.toml:3: *colour*"])


def test_mobility_modes(pytester: pytest.Pytester) -> None:
    assert collected(pytester, "@pytest.mark.dsmip_mobility()") == [
        "test_it[mobike]",
        "test_it[k-bit]",
        "test_it[renegotiate]",
    ]
    assert collected(pytester, '@pytest.mark.dsmip_mobility("k-bit")') == ["test_it[k-bit]"]
    result = run(
        pytester, MARKED.format(marks='@pytest.mark.dsmip_mobility("teleport")'), "--collect-only"
    )
    assert result.ret != 0
    text = result.stdout.str() + result.stderr.str()
    assert "there is no mobility mode 'teleport'; there are mobike, k-bit, renegotiate" in text


@pytest.mark.parametrize(
    ("marks", "options", "expected"),
    [
        ("", (), ["test_it"]),
        ("", ("uml",), ["test_it"]),
        ("", ("uml", "qemu"), ["test_it[uml]", "test_it[qemu]"]),
        ('@pytest.mark.dsmip_kernel("qemu")', (), ["test_it"]),
        ('@pytest.mark.dsmip_kernel("qemu", "uml")', (), ["test_it[qemu]", "test_it[uml]"]),
        ('@pytest.mark.dsmip_kernel("qemu", "uml")', ("uml",), ["test_it"]),
        ('@pytest.mark.dsmip_kernel("qemu")', ("uml",), []),
        ('@pytest.mark.dsmip_kernel("qemu")', ("auto",), ["test_it"]),
    ],
)
def test_kernels(
    pytester: pytest.Pytester, marks: str, options: tuple[str, ...], expected: list[str]
) -> None:
    given = [word for kernel in options for word in ("--dsmip-kernel", kernel)]
    assert collected(pytester, marks, *given) == expected


def test_what_isnt_for_a_kernel_is_counted(pytester: pytest.Pytester) -> None:
    """Left out, but never silently."""
    marks = '@pytest.mark.dsmip_kernel("qemu")\n@pytest.mark.dsmip_scenario("nat-handover")'
    result = run(pytester, MARKED.format(marks=marks), "--dsmip-kernel", "uml")
    result.assert_outcomes(deselected=1)


def test_the_parameters_reach_the_fixtures(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import contextlib
        import pytest

        @pytest.fixture(scope="session")
        def dsmip_start():
            @contextlib.contextmanager
            def start(scenario, **given):
                yield scenario, given["mobility"], given["kernel"], given["directory"].name
            return start

        @pytest.mark.dsmip_mobility("k-bit")
        @pytest.mark.dsmip_scenario("mine.toml")
        def test_it(dsmip_lab, tmp_path_factory, request):
            assert dsmip_lab == ("mine.toml", "k-bit", "uml", request.path.parent.name)
        """,
        "--dsmip-kernel",
        "uml",
    )
    result.assert_outcomes(passed=1)


def test_a_snapshots_name_doesnt_depend_on_the_kernel(pytester: pytest.Pytester) -> None:
    """Kernels are there to be compared: they share a snapshot. Modes have one each."""
    result = run(
        pytester,
        """
        import contextlib
        import pytest

        @pytest.fixture
        def dsmip_lab():
            return None

        @pytest.mark.dsmip_mobility("k-bit", "mobike")
        @pytest.mark.parametrize("x", ["a/b", "kuml"])
        def test_it(snapshot_dsmip, dsmip_lab, dsmip_kernel, dsmip_mobility, x):
            parts = snapshot_dsmip.path.parts[-3:]
            assert parts[:2] == ("snapshots", "test_a_snapshots_name_doesnt_depend_on_the_kernel")
            assert dsmip_mobility in parts[2] and x.replace("/", "-") in parts[2]
            assert "qemu" not in parts[2] and parts[2].count("uml") == (x == "kuml")
        """,
        *("--dsmip-kernel", "uml", "--dsmip-kernel", "qemu"),
    )
    result.assert_outcomes(passed=8)
