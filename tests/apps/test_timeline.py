"""Timelines: every step accounted for, lanes that do one thing at a time, and valid files."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import pytest

import mirror_edge
from mirror_edge.apps.picture import figures, page
from mirror_edge.apps.timeline import THREADS, Slice, Timeline, chrome_trace
from mirror_edge.policy import ExitPlace, Mode, Strategy
from mirror_edge.runtimes.profile import read
from mirror_edge.runtimes.scripts import StatedScript
from mirror_edge.runtimes.simulated import simulate
from mirror_edge.stats import Stats
from mirror_edge.trace import Trace

TICK = 1e-9


@cache
def simulated(
    mode: Mode, head_start: bool = False, exit_head: ExitPlace = "target"
) -> tuple[Timeline, Stats]:
    profile = read("macbook-pro-m4-pro")
    profile = replace(profile, costs=replace(profile.costs, exit_beside=profile.costs.exit))
    script = StatedScript(0.7, (0.5, 0.6, 0.7))
    kept = (trace := Trace()).keep()
    strategy = Strategy(mode, 4, 3, None, 0, exit_head, head_start)
    stats = simulate(profile, script, strategy, new_tokens=80, trace=trace)
    trace.take()
    return Timeline.of(kept, stats.steps), stats


@cache
def really(mode: Mode) -> tuple[Timeline, Stats]:
    speculation = mirror_edge.Speculation(mode=mode)
    with mirror_edge.load(target_threads=1, draft_threads=1) as model:
        kept = model.trace.keep()
        stats = model.generate("Once upon a time", max_new_tokens=40, speculation=speculation).stats
    model.trace.take()
    return Timeline.of(kept, stats.steps), stats


@pytest.fixture(params=["ar", "sd", "mirror"])
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture(params=["simulated", "real"])
def timed(request: pytest.FixtureRequest, mode: Mode) -> tuple[Timeline, Stats]:
    return simulated(mode) if request.param == "simulated" else really(mode)


def level(timeline: Timeline, thread: str, names: set[str]) -> list[Slice]:
    return [one for one in timeline.slices if one.thread == thread and one.name in names]


def test_every_step_is_there_and_they_follow_one_another(timed: tuple[Timeline, Stats]) -> None:
    timeline, stats = timed
    assert len(timeline.steps) == len(timeline.marks) == len(stats.steps) > 5
    for step, record, mark in zip(timeline.steps, stats.steps, timeline.marks, strict=True):
        assert step.end - step.start == pytest.approx(record.seconds)
        assert step.args["committed"] == record.committed
        assert mark.at == step.end
        assert mark.name == {None: "verdict", True: "hit", False: "miss"}[record.hit]
    for step, after in pairwise(timeline.steps):
        assert after.start >= step.end - TICK


def test_a_lane_does_one_thing_at_a_time(timed: tuple[Timeline, Stats]) -> None:
    timeline, _ = timed
    levels = [
        level(timeline, "target", {"prefix", "exit", "suffix", "verify and look up"}),
        level(timeline, "target", {"prefix", "exit", "suffix", "wait for the draft"}),
        level(timeline, "token channel", {"exit signal"}),
        level(timeline, "draft", {"rollout", "fresh", "prefill"}),
        level(timeline, "draft", {"forward"}),
    ]
    for slices in levels:
        for one, after in pairwise(slices):
            assert one.end <= after.start + TICK, (one, after)


def test_what_is_inside_a_step_stays_inside(timed: tuple[Timeline, Stats]) -> None:
    timeline, stats = timed
    drawn = ("prefix", "exit", "suffix")
    for step, record in zip(timeline.steps, stats.steps, strict=True):
        for name in drawn:
            inside = [
                one
                for one in level(timeline, "target", {name})
                if step.start - TICK <= one.start and one.end <= step.end + TICK
            ]
            seconds = sum(one.end - one.start for one in inside)
            assert seconds == pytest.approx(getattr(record, name), abs=1e-7)


def test_forwards_are_inside_the_rollouts_and_fresh_drafts_that_they_are_for(
    timed: tuple[Timeline, Stats],
) -> None:
    timeline, _ = timed
    calls = level(timeline, "draft", {"rollout", "fresh", "prefill"})
    for forward in level(timeline, "draft", {"forward"}):
        assert any(c.start - TICK <= forward.start and forward.end <= c.end + TICK for c in calls)


def test_the_signal_crosses_from_the_exit_head_to_the_rollout() -> None:
    timeline, stats = simulated("mirror")
    crossings = level(timeline, "token channel", {"exit signal"})
    rollouts = {one.start for one in level(timeline, "draft", {"rollout"})}
    exits = {one.end for one in level(timeline, "target", {"exit"})}
    assert len(crossings) == len(rollouts) > len(stats.steps) - 4
    for one in crossings:
        assert one.start in exits
        assert one.end in rollouts
        assert one.end - one.start == pytest.approx(1e-4)


def test_a_step_that_hit_late_shows_that_it_waited() -> None:
    timeline, _ = simulated("mirror")
    waits = level(timeline, "target", {"wait for the rollout"})
    assert len(waits) > 10
    hits = [step for step in timeline.steps if step.args["hit"]]
    for one in waits:
        assert any(step.start < one.start and one.end <= step.end for step in hits)


def test_the_trace_is_what_perfetto_reads(timed: tuple[Timeline, Stats]) -> None:
    timeline, stats = timed
    trace = json.loads(json.dumps(chrome_trace(timeline, {"stats": stats.as_dict()})))
    events = trace["traceEvents"]
    named = {e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert named == set(THREADS)
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == len(timeline.slices)
    for event in complete:
        assert event["ts"] >= 0.0
        assert event["dur"] >= 0.0
    assert sum(event["ph"] == "i" for event in events) == len(stats.steps)


def test_the_picture_is_one_valid_file_that_needs_nothing_else(
    timed: tuple[Timeline, Stats],
) -> None:
    timeline, stats = timed
    html = page(timeline, "a <title> & more", figures(stats.as_dict()))
    assert html.startswith("<!DOCTYPE html>\n")
    assert "http" not in html.replace("http://www.w3.org/", "")
    assert not [tag for tag in ("<script", "<link", "<img", "src=", "url(") if tag in html]
    for name in ("prefix", "suffix"):
        assert sum(text.startswith(f"{name},") for text in drawn(html)) >= len(stats.steps)
    root = ElementTree.fromstring(html.partition("\n")[2])
    assert root.findtext(".//{http://www.w3.org/1999/xhtml}h1") == "a <title> & more"


def drawn(html: str) -> list[str]:
    """The rectangles of a picture, by name and time."""
    root = ElementTree.fromstring(html.partition("\n")[2])
    titles = root.findall(".//s:rect/s:title", {"s": "http://www.w3.org/2000/svg"})
    return [title.text or "" for title in titles]


@pytest.mark.parametrize("exit_head", ["target", "draft"])
@pytest.mark.parametrize("head_start", [False, True])
def test_every_slice_of_the_trace_is_in_the_picture(head_start: bool, exit_head: ExitPlace) -> None:
    timeline, stats = simulated("mirror", head_start, exit_head)
    names = {one.name for one in timeline.slices}
    assert ("head start" in names) == head_start
    assert ({"hidden rows", "exit head"} <= names) == (exit_head == "draft")
    html = page(timeline, "a title", figures(stats.as_dict()))
    steps, shown = {one.name for one in timeline.steps}, drawn(html)
    for one in timeline.slices:
        if one.name not in steps:
            assert f"{one.name}, {(one.end - one.start) * 1e3:.3f} ms" in shown
    for name in names - steps:
        assert f"</span>{name}" in html  # in the key


def test_a_slice_of_an_unknown_name_is_drawn_too() -> None:
    timeline, stats = simulated("mirror")
    other = Slice("draft", "polishing", 0.0, timeline.steps[0].end, {})
    told = Timeline(timeline.steps, [*timeline.slices, other], timeline.marks)
    html = page(told, "a title", figures(stats.as_dict()))
    assert any(text.startswith("polishing,") for text in drawn(html))
    assert "</span>polishing" in html
