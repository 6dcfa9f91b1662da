"""A timeline as a picture: one HTML page that opens in any browser, offline."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from mirror_edge.apps.page import document, key
from mirror_edge.apps.timeline import THREADS, Mark, Slice, Timeline

__all__ = ["figures", "legend", "page", "svg"]

_WIDTH, _LEFT, _LANE, _TOP = 1200.0, 110.0, 24.0, 18.0
_STEPS_PER_LINE = 6
_COLOURS = {
    "prefix": "#2a78d6",
    "exit": "#1baf7a",
    "suffix": "#184f95",
    "exit signal": "#1baf7a",
    "hidden rows": "#7fb2ec",
    "exit head": "#bfe8d8",
    "head start": "#f9c99b",
    "rollout": "#f6d9c6",
    "fresh": "#f3b7b7",
    "prefill": "#c9c9c4",
    "review": "#c9c9c4",
    "open": "#c9c9c4",
    "measure": "#c9c9c4",
    "forward": "#eb6834",
    "verify and look up": "#eda100",
    "wait for the draft": "#e3e3df",
    "wait for the rollout": "#e3e3df",
}
_OTHER = "#9a9a94"
"""The colour of a slice with any other name."""
_INNER = frozenset({("draft", "forward"), ("draft", "exit"), ("target", "wait for the rollout")})
"""By thread and name: slices drawn smaller, inside the one that they are part of."""


def page(timeline: Timeline, title: str, figures: dict[str, str]) -> str:
    """The page: figures, legend, and the timeline line by line. It is valid XML as well."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in figures.items()
    )
    lines = "\n".join(svg(timeline, start, end) for start, end in _lines(timeline))
    first = timeline.steps[0].start if timeline.steps else 0.0
    prompt = f"<p>The first line is the prompt, {first * 1e3:.1f} ms, at a scale of its own.</p>\n"
    before = prompt if first > 0.0 else ""
    return document(title, f"<table>{rows}</table>\n{legend(timeline)}\n{before}{lines}")


def legend(timeline: Timeline) -> str:
    """The colours of everything that `svg` draws of a timeline."""
    shown = {one.name: _OTHER for one in _work(timeline)}
    return key({name: colour for name, colour in (shown | _COLOURS).items() if name in shown})


def svg(timeline: Timeline, start: float, end: float) -> str:
    """What happened from `start` to `end`, in seconds, with one row per thread."""
    scale = (_WIDTH - _LEFT) / (end - start)
    height = _TOP + _LANE * len(THREADS) + 4

    def x(moment: float) -> float:
        return _LEFT + (min(max(moment, start), end) - start) * scale

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" role="img">',
        f"<title>{start * 1e3:.1f} to {end * 1e3:.1f} ms</title>",
    ]
    for number, thread in enumerate(THREADS):
        y = _TOP + _LANE * number
        parts.append(f'<text x="0" y="{y + 15:g}">{thread}</text>')
        parts.append(_line(_LEFT, _WIDTH, y + _LANE - 1, y + _LANE - 1))
    for one in _work(timeline):
        if one.start < end and (one.start >= start or one.end > start):
            parts.append(_rectangle(one, x(one.start), x(one.end)))
    for step in timeline.steps:
        if start <= step.start < end:
            parts.append(_line(x(step.start), x(step.start), 0, height))
            label = f"{(step.start - start) * 1e3:.1f} ms" if step.start > start else ""
            parts.append(f'<text x="{x(step.start) + 3:.1f}" y="11">{label}</text>')
    for mark in timeline.marks:
        if start < mark.at <= end:
            parts.append(
                f'<text x="{x(mark.at) - 3:.1f}" y="11" text-anchor="end">{_outcome(mark)}</text>'
            )
    return "\n".join([*parts, "</svg>"])


def _work(timeline: Timeline) -> Iterator[Slice]:
    """All slices but the steps, which the grid shows."""
    steps = {step.name for step in timeline.steps}
    return (one for one in timeline.slices if one.name not in steps)


def _lines(timeline: Timeline) -> Iterator[tuple[float, float]]:
    """Start and end of each line: the prompt, then lines of one length, a few steps long."""
    ends = [one.end for one in timeline.slices]
    if not ends:
        return
    steps = [step.end - step.start for step in timeline.steps]
    length = _STEPS_PER_LINE * statistics.median(steps) if steps else max(ends)
    start = timeline.steps[0].start if timeline.steps else 0.0
    if start > 0.0:
        yield 0.0, start
    while start < max(ends):
        yield start, start + length
        start += length


def _rectangle(one: Slice, left: float, right: float) -> str:
    inset = 5.0 if (one.thread, one.name) in _INNER else 1.0
    y = _TOP + _LANE * THREADS.index(one.thread) + inset
    label = f"{one.name}, {(one.end - one.start) * 1e3:.3f} ms"
    return (
        f'<rect x="{left:.2f}" y="{y:g}" width="{max(right - left - 0.5, 0.5):.2f}" '
        f'height="{_LANE - 2 * inset - 1:g}" fill="{_COLOURS.get(one.name, _OTHER)}">'
        f"<title>{escape(label)}</title></rect>"
    )


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1:g}" y2="{y2:g}"/>'


def _outcome(mark: Mark) -> str:
    counts = f"{mark.args['accepted']} of {mark.args['proposed']}"
    return f"{mark.name}, {counts}" if mark.args["proposed"] else mark.name


def figures(stats: dict[str, Any]) -> dict[str, str]:
    """The lines above the picture, from `Stats.as_dict`."""
    rows: Sequence[tuple[str, str, str]] = (
        ("tokens per second", "tokens_per_second", "{:.1f}"),
        ("tokens per step", "tokens_per_step", "{:.2f}"),
        ("draft tokens accepted", "acceptance_rate", "{:.0%}"),
        ("outcomes prepared for (hits)", "hit_rate", "{:.0%}"),
        ("rollout overlapped by the suffix", "overlap_ratio", "{:.0%}"),
    )
    found = {label: form.format(stats[key]) for label, key, form in rows if stats[key] is not None}
    medians = {name: ms for name, ms in stats["median_step_ms"].items() if ms is not None}
    parts = ", ".join(
        f"{'step' if name == 'seconds' else name} {ms:.2f}" for name, ms in medians.items()
    )
    return found | {"median ms per step": parts}
