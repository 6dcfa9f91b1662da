"""How fast the target is at the moment, and how much a working draft slows it.

Other programs, clock speed and temperature make everything slower or faster at once, for a tenth of
a second or for minutes. So a mode's times when it was last used say nothing by themselves; what
counts is how they compare with those of the mode used just before or after.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import get_args

from mirror_edge.averages import Typical
from mirror_edge.policy import Mode

__all__ = ["Pace"]

_ENOUGH, _MOST = 4, 12
"""Steps of a mode that are compared with those of another, at least and at most."""
_BETWEEN = (0.8, 2.0)
"""Limits of the slowdown: a draft never makes its target much faster, nor very much slower."""


@dataclass
class Pace:
    """The speed of one target on its device, as factors on its measured times."""

    now: Typical = field(default_factory=lambda: Typical(1.0))
    """Of the target alone, lately."""
    slowed: dict[Mode, Typical] = field(
        default_factory=lambda: {mode: Typical(1.0, weight=1) for mode in get_args(Mode)}
    )
    """How many times slower than alone, by mode."""
    _mode: Mode = "ar"
    _stay: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST))
    """Factors of the latest steps in this mode."""
    _before: tuple[Mode, float] | None = None
    """The previous mode and its factor, until they are compared."""

    def factor(self, mode: Mode) -> float:
        """The expected factor of the target in this mode."""
        return self.now.value * self.slowed[mode].value

    def add(self, mode: Mode, factor: float) -> float:
        """Record a step's factor in this mode; return what it would be for the target alone."""
        if mode != self._mode:
            self._enter(mode)
        self._stay.append(factor)
        if self._before is not None and len(self._stay) == _ENOUGH:
            self._compare(*self._before)
            self._before = None
        alone = factor / self.slowed[mode].value
        self.now.add(alone)
        return alone

    def _enter(self, mode: Mode) -> None:
        known = len(self._stay) >= _ENOUGH
        self._before = (self._mode, statistics.median(self._stay)) if known else None
        self._mode = mode
        self._stay.clear()

    def _compare(self, other: Mode, once: float) -> None:
        """Learn from a change of modes how much slower the one with a draft is."""
        times = statistics.median(self._stay) / once
        if self._mode == "ar":
            found, mode = 1.0 / times, other
        else:
            found, mode = times * self.slowed[other].value, self._mode
        least, most = _BETWEEN
        self.slowed[mode].add(min(max(found, least), most))
