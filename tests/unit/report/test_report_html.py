"""The page, in a real browser: what it shows, that it loads nothing, and that nothing in a record
becomes markup."""

from __future__ import annotations

import html as html_library
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_samples import record, steps

from dsmip_ipsec.lab.record import Artefacts, Failure, FlowTimeline, RunRecord, verdict_of
from dsmip_ipsec.report import html
from dsmip_ipsec.report.run_ladder import Exchanged, RunLadder

EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>{{7*7}}\x1b[31m\x00"

LADDER = RunLadder(
    nodes=("mn", "ha"),
    messages=(
        Exchanged(3.1, "mn", "ha", "IKE_SA_INIT request", "192.0.2.1 > 203.0.113.1"),
        Exchanged(3.2, "ha", "mn", "IKE_SA_INIT response", "203.0.113.1 > 192.0.2.1"),
        Exchanged(7.5, "mn", "ha", "BU 8", "192.0.2.130 > 203.0.113.1", lost=True),
        Exchanged(8.5, "mn", "ha", "BU 9", "192.0.2.130 > 203.0.113.1"),
    ),
)

TIMELINES = tuple(
    FlowTimeline.model_validate(
        {
            "node": "mn",
            "family": family,
            "direction": direction,
            "start_s": 3.0,
            "bin_ms": 100,
            "sent": [20] * 150,
            "lost": [0] * 50 + [9] + [0] * 99,
            "wait_ms": [5.0] * 51 + [60.5] + [5.0] * 98,
        }
    )
    for family in ("ipv6", "ipv4")
    for direction in ("up", "down")
)

# What the browser itself says of the page in the frame: layout, styles, what it fetched.
HARNESS = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="page" src="report.html" width="1100" height="900"></iframe><pre id="result"></pre>
<script>
document.getElementById("page").onload = event => {
  const view = event.target.contentWindow, page = view.document;
  const all = query => [...page.querySelectorAll(query)];
  const box = element => { const b = element.getBoundingClientRect(); return [b.width, b.height]; };
  document.getElementById("result").textContent = JSON.stringify({
    title: page.title,
    mode: page.compatMode,
    verdict: page.getElementById("verdict").innerText,
    background: view.getComputedStyle(page.body).backgroundColor,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
    active: all("script, img, iframe, object, embed, link, form").length,
    handlers: all("*").filter(e => [...e.attributes].some(a => a.name.startsWith("on"))).length,
    rungs: all("#ladder line.rung").map(box),
    ladder: all("#ladder .label").map(e => e.textContent.trim()),
    bars: all("svg rect.loss, svg rect.wait").length,
    boxes: all("svg").map(box),
    links: all("a").map(e => e.getAttribute("href")),
    absolute: all("a").map(e => e.href),
    too_wide: page.documentElement.scrollWidth > page.documentElement.clientWidth,
    text: page.body.innerText,
  });
};
</script>"""


def browse(directory: Path, *, dark: bool = False) -> dict[str, Any]:
    """Open directory/report.html in headless Chromium; what the harness above says of it."""
    (directory / "harness.html").write_text(HARNESS, encoding="utf-8")
    command = [
        *("chromium", "--headless", "--disable-gpu", "--allow-file-access-from-files"),
        f"--user-data-dir={directory / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *("--virtual-time-budget=10000", "--dump-dom"),
        # Chromium refuses its own sandbox to root; the page is ours.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        (directory / "harness.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    match = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(html_library.unescape(match[1]))
    return said


def page(directory: Path, run: RunRecord, ladder: RunLadder | None = LADDER) -> Path:
    path = directory / "report.html"
    html.write(run, ladder, path)
    return path


def with_timelines(**changes: Any) -> RunRecord:
    return record().model_copy(update={"timelines": TIMELINES, **changes})


def test_a_browser_shows_all_of_it(tmp_path: Path) -> None:
    page(tmp_path, with_timelines())
    seen = browse(tmp_path)
    assert seen["title"] == "nat-handover: passed"
    assert seen["mode"] == "CSS1Compat"
    assert seen["verdict"] == "passed"
    # The policy lets the style sheet in, by its hash, and nothing else was asked for.
    assert seen["background"] == "rgb(255, 255, 255)"
    assert seen["fetched"] == []
    assert not seen["too_wide"]
    assert len(seen["boxes"]) == 3
    assert all(width > 300 and height > 100 for width, height in seen["boxes"])
    assert len(seen["rungs"]) == 4
    lengths = [width for width, _ in seen["rungs"]]
    assert min(lengths) > 100
    assert lengths[2] < lengths[0]  # the lost one ends on its way
    assert "BU 8 (lost)" in seen["ladder"]
    assert seen["bars"] == 4 + 4 * 150
    for word in ("65.5 ms (1.6 RTT)", "0xc1000002", "40123", "at most 140 ms", "move to visited-b"):
        assert word in seen["text"]
    for link in ("record.json", "captures/ha-core.pcapng", "logs/ha-charon.log", "#step-2"):
        assert link in seen["links"]


def test_dark(tmp_path: Path) -> None:
    page(tmp_path, with_timelines())
    assert browse(tmp_path, dark=True)["background"] == "rgb(13, 17, 23)"


def test_a_failed_and_an_early_ended_run(tmp_path: Path) -> None:
    page(tmp_path, record(passed=False), None)
    text = browse(tmp_path)["text"]
    assert "Failed expectations" in text
    assert "412.0 ms" in text
    assert "no captures" in text
    ended = record(failure=Failure(step="to-b", message="charon died", hint="read its log"))
    page(tmp_path, ended, None)
    text = browse(tmp_path)["text"]
    assert "charon died" in text
    assert "read its log" in text


def test_nothing_in_a_record_becomes_markup(tmp_path: Path) -> None:
    """Names, descriptions, file names and messages are text, and links stay below the page."""
    content = with_timelines().model_dump(mode="json")

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        free = {"name", "description", "action", "expected", "seen", "selector", "template"}
        free |= {"purpose", "state", "attachment", "release", "strongswan_version", "run_id", "lab"}
        return EVIL if key in free and isinstance(value, str) else value

    content = poison(content)
    evil_path = "javascript:alert(1)//<b>.pcapng"
    content["artefacts"]["captures"] = [evil_path, "data:text/html,<script>1</script>"]
    hostile = RunRecord.model_validate(content)
    ladder = RunLadder((EVIL, "ha"), (Exchanged(3.1, EVIL, "ha", EVIL, EVIL),))
    path = page(tmp_path, hostile, ladder)
    seen = browse(tmp_path)
    assert seen["active"] == 0
    assert seen["handlers"] == 0
    assert seen["fetched"] == []
    assert seen["title"].startswith("<script>document.title='owned'</script>")
    assert all(url.startswith("file:///") for url in seen["absolute"])
    assert "{{7*7}}" in seen["text"]
    assert not set("\x1b\x00") & set(path.read_text())


def test_the_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    text = page(tmp_path, with_timelines()).read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:https?:)?//[\w.]|@import|url\(|<script|\sstyle=""", text)


def test_a_run_without_steps_or_flows(tmp_path: Path) -> None:
    failure = Failure(message="no charon", hint="install it")
    bare = record().model_copy(
        update={
            "steps": (),
            "expectations": (),
            "failure": failure,
            "artefacts": Artefacts(),
            "verdict": verdict_of((), (), failure),
        }
    )
    assert "no charon" in page(tmp_path, bare, RunLadder((), ())).read_text()


@pytest.mark.parametrize("count", [1, 2, 3, 51])
def test_any_number_of_nodes_fits_the_ladder(count: int) -> None:
    nodes = tuple(f"n{i}" for i in range(count))
    ladder = RunLadder(nodes, (Exchanged(0.5, nodes[0], nodes[-1], "BU 1", "a > b"),))
    text = html.render(record(), ladder)
    match = re.search(
        r'viewBox="0 0 ([\d.]+) [\d.]+" width="[\d.]+" role="img" aria-label="M', text
    )
    assert match
    width = float(match[1])
    xs = [float(x) for x in re.findall(r'class="lifeline" x1="([\d.]+)"', text)]
    assert len(xs) == count
    assert all(0 < x < width for x in xs)


def test_steps_are_what_the_record_has(tmp_path: Path) -> None:
    """Each step's expectations, with those that failed marked."""
    text = page(tmp_path, record(passed=False)).read_text()
    assert text.count('<section id="step-') == len(steps())
    assert text.count('<td class="fail">FAIL</td>') == 2  # in the table of steps, and in its own
