"""A timeline as a picture: one HTML page that needs nothing but itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from mirror_edge.apps.timeline import THREADS, Mark, Slice, Timeline

__all__ = ["COLOURS", "STYLE", "figures", "page", "svg"]

_WIDTH, _LEFT, _LANE, _TOP = 1200.0, 110.0, 24.0, 18.0
_STEPS_A_LINE = 6
COLOURS = {
    "prefix": "#2a78d6",
    "exit": "#1baf7a",
    "suffix": "#184f95",
    "exit signal": "#1baf7a",
    "rollout": "#f6d9c6",
    "fresh": "#f3b7b7",
    "prefill": "#c9c9c4",
    "review": "#c9c9c4",
    "forward": "#eb6834",
    "verify and look up": "#eda100",
    "wait for the draft": "#e3e3df",
    "wait for the rollout": "#e3e3df",
}
_INNER = frozenset({"forward", "wait for the rollout"})
"""Drawn smaller, inside what they are part of."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
svg { display: block; width: 100%; height: auto; margin: 0 0 1em }
svg text { font: 11px system-ui, sans-serif; fill: currentColor }
svg .grid { stroke: currentColor; stroke-opacity: 0.15 }
table { border-collapse: collapse } td { padding: 0 1.5em 0 0 }
.key { display: inline-block; width: 1em; height: 1em; margin: 0 0.4em 0 1em;
  vertical-align: -0.15em }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1a1a19 } }
"""


def page(timeline: Timeline, title: str, figures: dict[str, str]) -> str:
    """The page: figures, key, and the timeline line by line. It is XML as well."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in figures.items()
    )
    shown = {one.name for one in timeline.slices}
    key = "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(name)}'
        for name, colour in COLOURS.items()
        if name in shown
    )
    lines = "\n".join(svg(timeline, start, end) for start, end in _lines(timeline))
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head>'
        f'<meta charset="utf-8"/><title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n<table>{rows}</table>\n<p>{key}</p>\n"
        f"{lines}\n</body>\n</html>\n"
    )


def svg(timeline: Timeline, start: float, end: float) -> str:
    """What happened from `start` to `end`, a row a thread."""
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
    for one in timeline.slices:
        drawn = one.start < end and one.end > start and one.name in COLOURS
        if drawn:
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


def _lines(timeline: Timeline) -> Iterator[tuple[float, float]]:
    """From when to when each line goes: all the same length, a few steps long."""
    ends = [one.end for one in timeline.slices]
    if not ends:
        return
    steps = [step.end - step.start for step in timeline.steps]
    length = _STEPS_A_LINE * statistics.median(steps) if steps else max(ends)
    start = timeline.steps[0].start if timeline.steps else 0.0
    while start < max(ends):
        yield start, start + length
        start += length


def _rectangle(one: Slice, left: float, right: float) -> str:
    inset = 5.0 if one.name in _INNER else 1.0
    y = _TOP + _LANE * THREADS.index(one.thread) + inset
    said = f"{one.name}, {(one.end - one.start) * 1e3:.3f} ms"
    return (
        f'<rect x="{left:.2f}" y="{y:g}" width="{max(right - left - 0.5, 0.5):.2f}" '
        f'height="{_LANE - 2 * inset - 1:g}" fill="{COLOURS[one.name]}">'
        f"<title>{escape(said)}</title></rect>"
    )


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1:g}" y2="{y2:g}"/>'


def _outcome(mark: Mark) -> str:
    counts = f"{mark.args['accepted']} of {mark.args['proposed']}"
    return f"{mark.name}, {counts}" if mark.args["proposed"] else mark.name


def figures(stats: dict[str, Any]) -> dict[str, str]:
    """The lines above the picture, from `Stats.as_dict`."""
    rows: Sequence[tuple[str, str, str]] = (
        ("tokens a second", "tokens_per_second", "{:.1f}"),
        ("tokens a step", "tokens_per_step", "{:.2f}"),
        ("of the draft accepted", "acceptance_rate", "{:.0%}"),
        ("outcomes prepared for", "hit_rate", "{:.0%}"),
        ("of the rollout hidden", "overlap_ratio", "{:.0%}"),
    )
    found = {label: form.format(stats[key]) for label, key, form in rows if stats[key] is not None}
    medians = {name: ms for name, ms in stats["median_step_ms"].items() if ms is not None}
    parts = ", ".join(
        f"{'step' if name == 'seconds' else name} {ms:.2f}" for name, ms in medians.items()
    )
    return found | {"medians of a step in ms": parts}
