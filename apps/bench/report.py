"""A benchmark's report: one HTML page that opens in any browser, offline."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from html import escape
from typing import Any

from mirror_edge.apps.bench.plots import PALETTE, Bar, Line, bars, lines
from mirror_edge.apps.bench.roofline import Width
from mirror_edge.apps.bench.table import COLUMNS, GROUPS, TITLES, cell, heading
from mirror_edge.apps.page import document
from mirror_edge.apps.picture import legend, svg
from mirror_edge.apps.timeline import Timeline

__all__ = ["page"]

_STEPS = 6
"""How many steps of the timeline are drawn."""
_STYLE = """
.wide { overflow-x: auto } .wide table { white-space: nowrap } th { text-align: left }
td + td, th + th { text-align: right } th { padding: 0 1.5em 0 0; font-weight: 600 }
svg .whisker { stroke: currentColor; stroke-width: 1.5 }
"""


def page(
    figures: dict[str, Any], curve: Width | None, timeline: Timeline | None, drawn: str
) -> str:
    """The page; `timeline` is of an answer in mode `drawn`. It is XML as well."""
    title = f"{figures['bundle']}: benchmark"
    parts = [
        *(f"<p>{escape(line)}</p>" for line in heading(figures)),
        _section("Speed-up by category", _speed_ups(figures)),
        *(_section(title, _by_group(figures, key)) for key, title in TITLES.items()),
        _section("Overall", _overall(figures["overall"])),
    ]
    if curve is not None:
        parts.append(_section("Width curve", _width(curve)))
    if rates := _hit_rates(figures["overall"]):
        parts.append(_section("Hit rate by R", rates))
    if timeline is not None and timeline.steps:
        parts.append(_section(f"Timeline of a step, mode {drawn}", _timeline(timeline)))
    return document(title, "".join(parts), _STYLE)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n"


def _speed_ups(figures: dict[str, Any]) -> str:
    rows = {GROUPS.get(name, name): found for name, found in figures["categories"].items()}
    groups = {
        group: {name: Bar(one["speedup"], one["speedup_interval"]) for name, one in found.items()}
        for group, found in {**rows, "overall": figures["overall"]}.items()
    }
    return bars(groups, "Speed-up over ar, by category, with 95 % intervals")


def _by_group(figures: dict[str, Any], key: str) -> str:
    form = COLUMNS[key][1]
    rows = {GROUPS.get(name, name): found for name, found in figures["categories"].items()}
    return _table(
        ["", *figures["overall"]],
        (
            [name, *(cell(one[key], form) for one in found.values())]
            for name, found in {**rows, "overall": figures["overall"]}.items()
        ),
    )


def _overall(overall: dict[str, Any]) -> str:
    return _table(
        ["", *overall],
        (
            [name, *(cell(found[key], form) for found in overall.values())]
            for key, (name, form) in COLUMNS.items()
            if any(found[key] is not None for found in overall.values())
        ),
    )


def _colour(contenders: Iterable[str], name: str) -> str:
    """The same in every plot."""
    return PALETTE[list(contenders).index(name) % len(PALETTE)]


def _width(curve: Width) -> str:
    measured = list(zip(curve.rows, curve.pass_ms, strict=True))
    limit = [(n, curve.limit(n)) for n in range(curve.rows[0], curve.rows[-1] + 1)]
    plot = lines(
        {"measured": Line(measured, PALETTE[2]), "roofline": Line(limit, PALETTE[4], dashed=True)},
        "Milliseconds per pass of the target, by rows",
        "rows of the window",
        curve.rows,
    )
    return (
        f"{plot}<p>Milliseconds per pass, prefix and suffix together. The roofline is the longer "
        f"of two times: reading {curve.weights / 1e6:.1f} MB of weights at "
        f"{curve.bandwidth / 1e9:.1f} GB/s, the speed of copying in main memory "
        f"({curve.floor_ms:.2f} ms), and {curve.row_ms:.2f} ms per row, the least that any pass "
        "reached. Weights that fit into a cache are read faster than that.</p>"
    )


def _hit_rates(overall: dict[str, Any]) -> str:
    found = {
        name: Line(
            [(int(budget), rate) for budget, rate in one["hit_rate_by_branches"].items()],
            _colour(overall, name),
        )
        for name, one in overall.items()
        if one["hit_rate_by_branches"]
    }
    if not found:
        return ""
    ticks = [budget for budget, _ in next(iter(found.values())).points]
    plot = lines(found, "Hit rate against R", "R, the number of branches", ticks)
    return (
        f"{plot}<p>How often the outcome was among the R best roots, whether or not these were "
        "drafted for.</p>"
    )


def _timeline(timeline: Timeline) -> str:
    """A few steps in the middle of the answer."""
    middle = max(0, len(timeline.steps) // 2 - _STEPS // 2)
    steps = timeline.steps[middle : middle + _STEPS]
    start, length = steps[0].start, statistics.median(s.end - s.start for s in steps)
    return legend(timeline) + svg(timeline, start, start + length * len(steps))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>\n" for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>\n{body}</table></div>'
