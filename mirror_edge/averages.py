"""Averages that forget, so that what changes is noticed."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MEMORY", "Fading", "Typical"]

MEMORY = 48.0
"""Observations after which an old one counts for 1/e of a new one."""
_LAST = 24
"""Times of which the median counts."""


@dataclass
class Fading:
    """A mean that forgets: it starts at `prior`, as if `weight` observations had said so."""

    prior: InitVar[float]
    weight: InitVar[float] = 4.0
    memory: float = MEMORY
    """See there."""
    _sum: float = field(init=False)
    _count: float = field(init=False)

    def __post_init__(self, prior: float, weight: float) -> None:
        """With what is held before anything was seen."""
        self._sum, self._count = prior * weight, weight

    def add(self, value: float, count: float = 1.0) -> None:
        """Note `count` observations of mean `value`."""
        keep = (1.0 - 1.0 / self.memory) ** count
        self._sum = self._sum * keep + value * count
        self._count = self._count * keep + count

    @property
    def mean(self) -> float:
        """What to expect."""
        return self._sum / self._count

    @property
    def learnt(self) -> tuple[float, float]:
        """The sum of what was noted, and how much that was."""
        return self._sum, self._count

    def go_on(self, learnt: tuple[float, float]) -> None:
        """From what another one had learnt."""
        self._sum, self._count = map(float, learnt)


@dataclass
class Typical:
    """What a time mostly is: the median of the last ones, so that a machine's bad moments, which
    come in bursts and always make things slower, do not count.
    """

    prior: float
    weight: int = 2
    """So often it is held to have been seen."""
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, value: float) -> None:
        """Note one."""
        self._last.append(value)

    @property
    def value(self) -> float:
        """What to expect."""
        return statistics.median((*[self.prior] * self.weight, *self._last))

    @property
    def learnt(self) -> list[float]:
        """The last ones."""
        return list(self._last)

    def go_on(self, learnt: Iterable[float]) -> None:
        """From what another one had learnt."""
        self._last.extend(map(float, learnt))
