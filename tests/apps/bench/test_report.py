"""The report in a real browser: it is drawn, it fits, and it asks for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mirror_edge.apps.bench import report
from mirror_edge.apps.bench.measures import BUDGETS, Run, figures
from mirror_edge.apps.bench.roofline import width
from mirror_edge.apps.bench.tally import rollout_forwards, tally
from mirror_edge.apps.timeline import Timeline
from mirror_edge.bundle import demo
from mirror_edge.bundle import read as read_bundle
from mirror_edge.policy import Mode, Strategy
from mirror_edge.runtimes.profile import read
from mirror_edge.runtimes.scripts import StatedScript
from mirror_edge.runtimes.simulated import simulate
from mirror_edge.trace import Trace

if TYPE_CHECKING:
    from playwright.sync_api import Page

MODES: tuple[Mode, ...] = ("ar", "sd", "mirror")
GROUPS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")


def made() -> str:
    """The report of a simulated machine's answers."""
    runs, drawn = [], None
    for number, group in enumerate(GROUPS):
        for repeat in range(2):
            for mode in MODES:
                script = StatedScript(0.6 + 0.05 * number, (0.5, 0.6, 0.7, 0.8), (), repeat)
                kept = (trace := Trace()).keep()
                plan = Strategy(mode, 4, 4, None, 0)
                stats = simulate(read("lunar-lake"), script, plan, new_tokens=60, trace=trace)
                trace.take()
                drawn = Timeline.of(kept, stats.steps)
                counts = tally(stats.steps, rollout_forwards(kept))
                seconds = stats.time_to_first_token + stats.decode_seconds
                runs.append(
                    Run(number, group, repeat, mode, 60, seconds, stats.time_to_first_token, 59,
                        stats.decode_seconds, counts, (number,))
                )  # fmt: skip
    about: dict[str, Any] = {
        "bundle": "a <bundle> & more",
        "planted": {"agreement": 0.8},
        "machine": {"processor": "none", "cores": 2, "onnxruntime": "1", "target_device": "cpu:0",
                    "draft_device": "cpu:1", "emulated": "two emulated devices"},
        "questions": "made up",
        "left_out": [3, 5, 6, 7],
        "settings": {"repeat": 2, "max_new_tokens": 60, "temperature": 0.0},
        "energy": "unknown: nothing was spent",
        "interrupted": True,
    }  # fmt: skip
    curve = width(read("lunar-lake").costs, read_bundle(demo()).manifest, 1e10)
    return report.page(about | figures(runs, MODES, "ar"), curve, drawn, "mirror")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "bench.html"
    path.write_text(made(), encoding="utf-8")
    return path


@pytest.fixture(params=[(1280, "light"), (400, "dark")], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, file: Path) -> Iterator[Page]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no browser: apt-get install chromium")
    wide, scheme = request.param
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(
            viewport={"width": wide, "height": 900}, color_scheme=scheme, offline=True
        )
        shown.problems = problems = []
        shown.on("console", lambda message: problems.append(message.text))
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.on("request", lambda asked: problems.append(asked.url))
        shown.goto(file.as_uri())
        yield shown
        browser.close()


def test_the_report_is_drawn_whole_and_asks_for_nothing(page: Page, file: Path) -> None:
    assert page.problems == [file.as_uri()]  # type: ignore[attr-defined]
    assert page.title() == "a <bundle> & more: benchmark"
    headings = page.locator("h2").all_inner_texts()
    for title in ("Speed-up by category", "Width curve", "Hit rate by R", "Timeline of a step"):
        assert any(title in heading for heading in headings)
    bars = page.locator("rect.bar").all()
    assert len(bars) == (len(GROUPS) + 1) * len(MODES)
    for bar in bars:
        box = bar.bounding_box()
        assert box is not None
        assert box["width"] > 1.0
        assert box["height"] > 1.0
    text = page.inner_text("body")
    for said in (
        "mathematical reasoning",
        "two emulated devices",
        "stopped early",
        "lines 3, 5 to 7",
    ):
        assert said in text
    # Nothing sticks out to the right of the window; a table that is too wide scrolls.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_bars_are_as_high_as_their_speed_ups(page: Page) -> None:
    heights: dict[str, list[tuple[float, float]]] = {}
    for bar in page.locator("rect.bar").all():
        said = bar.locator("title").text_content() or ""
        name, _, rest = said.partition(": ")
        box = bar.bounding_box()
        assert box is not None
        heights.setdefault(name, []).append((float(rest.partition(",")[0]), box["height"]))
    assert set(heights) == set(MODES)
    unit = heights["ar"][0][1]
    for value, height in (pair for pairs in heights.values() for pair in pairs):
        assert height == pytest.approx(value * unit, rel=0.05)


def test_plots_have_points_and_the_timeline_every_lane(page: Page) -> None:
    points = [title.partition(":")[0] for title in page.locator("circle title").all_text_contents()]
    assert points.count("measured") == len(read("lunar-lake").costs.prefix.rows)
    assert points.count("mirror") == len(BUDGETS)
    assert page.locator("polyline").count() == 3
    titles = page.locator("section:last-of-type rect title").all_text_contents()
    drawn = {title.partition(",")[0] for title in titles}
    assert {"prefix", "exit", "suffix", "rollout", "forward"} <= drawn
