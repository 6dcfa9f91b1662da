"""Two kinds of plot, as SVG: bars by group, and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

__all__ = ["PALETTE", "Bar", "Line", "bars", "lines"]

PALETTE = ("#8a8a84", "#eda100", "#2a78d6", "#1baf7a", "#eb6834", "#8a5cc2", "#184f95")
_WIDTH, _HEIGHT = 900.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 10.0, 14.0, 44.0


@dataclass(frozen=True)
class Bar:
    """A height, and its confidence interval."""

    value: float
    colour: str
    interval: Sequence[float] | None = None


@dataclass(frozen=True)
class Line:
    """Points from left to right."""

    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


def bars(groups: Mapping[str, Mapping[str, Bar]], title: str) -> str:
    """Bars by group, one per contender; whiskers where there is an interval."""
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    tall = max(bar.value for found in groups.values() for bar in found.values())
    ends = [bar.interval[1] for found in groups.values() for bar in found.values() if bar.interval]
    # A wide interval is cut off before it makes all bars small.
    top = min(max([tall, *ends]), 1.5 * tall)
    axis = _Axis.of(top)
    parts, step = [_grid(axis)], (_WIDTH - _LEFT - _RIGHT) / len(groups)
    wide = 0.8 * step / len(names)
    for number, (group, found) in enumerate(groups.items()):
        left = _LEFT + number * step + 0.1 * step
        for row, words in enumerate(group.split(" ", 1)):
            y = _HEIGHT - _BOTTOM + 12 + 12 * row
            parts.append(_text(left + 0.4 * step, y, words, "middle"))
        for name, bar in found.items():
            parts.append(_bar(bar, axis, left + names.index(name) * wide, wide, name))
    colours = {name: bar.colour for found in groups.values() for name, bar in found.items()}
    return _svg(title, [*parts, _key(colours)])


def lines(series: Mapping[str, Line], title: str, below: str, ticks: Sequence[float]) -> str:
    """Several lines; `below` labels the horizontal axis, whose `ticks` are equally spaced."""
    points = [point for line in series.values() for point in line.points]
    axis = _Axis.of(max(y for _, y in points))
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(ticks) - 1)

    def x(value: float) -> float:
        after = next((i for i, tick in enumerate(ticks) if tick >= value), len(ticks) - 1)
        if after == 0:
            return _LEFT
        low, high = ticks[after - 1], ticks[after]
        return _LEFT + step * (after - 1 + (value - low) / (high - low))

    parts = [_grid(axis), _text((_WIDTH + _LEFT) / 2, _HEIGHT - 24, below, "middle")]
    parts += [_text(x(tick), _HEIGHT - _BOTTOM + 12, f"{tick:g}", "middle") for tick in ticks]
    for name, line in series.items():
        path = " ".join(f"{x(a):.1f},{axis.y(b):.1f}" for a, b in line.points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}>'
            f"<title>{escape(name)}</title></polyline>"
        )
        if not line.dashed:
            parts += [
                _dot(x(a), axis.y(b), line.colour, f"{name}: {b:.3g}") for a, b in line.points
            ]
    return _svg(title, [*parts, _key({name: line.colour for name, line in series.items()})])


@dataclass(frozen=True)
class _Axis:
    """From 0 up in round steps."""

    step: float
    count: int

    @classmethod
    def of(cls, high: float) -> _Axis:
        rough = max(high, 1e-9) / 5
        power = 10.0 ** floor(log10(rough))
        step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
        return cls(step, max(1, ceil(high / step - 1e-6)))

    def y(self, value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return _HEIGHT - _BOTTOM - value / (self.step * self.count) * height


def _grid(axis: _Axis) -> str:
    parts = []
    for number in range(axis.count + 1):
        y = axis.y(number * axis.step)
        parts.append(
            f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{number * axis.step:g}", "end"))
    return "".join(parts)


def _bar(bar: Bar, axis: _Axis, x: float, wide: float, name: str) -> str:
    y, middle = axis.y(bar.value), x + wide / 2
    label = f"{name}: {bar.value:.2f}"
    whisker = ""
    if bar.interval is not None:
        low, high = (axis.y(min(value, axis.step * axis.count)) for value in bar.interval)
        label += f", 95 % {bar.interval[0]:.2f} to {bar.interval[1]:.2f}"
        whisker = (
            f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" '
            f'y1="{low:.1f}" y2="{high:.1f}"/>'
        )
    return (
        f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{0.92 * wide:.1f}" '
        f'height="{max(0.5, axis.y(0.0) - y):.1f}" fill="{bar.colour}">'
        f"<title>{escape(label)}</title></rect>{whisker}"
    )


def _dot(x: float, y: float, colour: str, label: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
        f"<title>{escape(label)}</title></circle>"
    )


def _key(colours: Mapping[str, str]) -> str:
    """Under the plot, from the left."""
    parts, x = [], _LEFT
    for name, colour in colours.items():
        parts.append(
            f'<rect x="{x:g}" y="{_HEIGHT - 12:g}" width="10" height="10" fill="{colour}"/>'
        )
        parts.append(_text(x + 14, _HEIGHT - 3, name, "start"))
        x += 34 + 6.5 * len(name)
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
