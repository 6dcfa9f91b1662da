"""How fast the target is at the moment, and how much a draft at work slows it.

What else runs on a machine, its clock and its heat make everything slower or faster at once, for a
tenth of a second or for minutes. So what a mode took when it was last in use says nothing by
itself; what counts is how it compared with the mode in use just before or after.
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
"""Steps of a mode that are compared with those of another."""
_BETWEEN = (0.8, 2.0)
"""A draft at work does not make its target much faster, nor very much slower."""


@dataclass
class Pace:
    """Of one target on its device: factors on its measured times."""

    now: Typical = field(default_factory=lambda: Typical(1.0))
    """Alone, lately."""
    slowed: dict[Mode, Typical] = field(
        default_factory=lambda: {mode: Typical(1.0, weight=1) for mode in get_args(Mode)}
    )
    """By mode: how many times slower than alone."""
    _mode: Mode = "ar"
    _stay: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST))
    """Factors of the last steps in this mode."""
    _before: tuple[Mode, float] | None = None
    """The mode before it and its factor then, as long as they are not compared."""

    def factor(self, mode: Mode) -> float:
        """What to expect of the target in this mode."""
        return self.now.value * self.slowed[mode].value

    def add(self, mode: Mode, factor: float) -> float:
        """Note a step's in this mode; what it would have been, had the target been alone."""
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
        """Learn from the change of modes how much slower the one with a draft is."""
        times = statistics.median(self._stay) / once
        if self._mode == "ar":
            found, mode = 1.0 / times, other
        else:
            found, mode = times * self.slowed[other].value, self._mode
        least, most = _BETWEEN
        self.slowed[mode].add(min(max(found, least), most))
