"""Averages that forget, so that changes are noticed."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MEMORY", "Fading", "Typical"]

MEMORY = 48.0
"""Number of observations after which an old one is weighted by 1/e."""
_LAST = 24
"""How many of the latest values the median is taken over."""


@dataclass
class Fading:
    """A fading mean that starts at `prior`, as if that were the mean of `weight` observations."""

    prior: InitVar[float]
    weight: InitVar[float] = 4.0
    memory: float = MEMORY
    """Number of observations after which an old one is weighted by 1/e."""
    _sum: float = field(init=False)
    _count: float = field(init=False)

    def __post_init__(self, prior: float, weight: float) -> None:
        """Start from the prior."""
        self._sum, self._count = prior * weight, weight

    def add(self, value: float, count: float = 1.0) -> None:
        """Record `count` observations of mean `value`."""
        keep = (1.0 - 1.0 / self.memory) ** count
        self._sum = self._sum * keep + value * count
        self._count = self._count * keep + count

    @property
    def mean(self) -> float:
        """The current mean."""
        return self._sum / self._count

    @property
    def learnt(self) -> tuple[float, float]:
        """The weighted sum of the observations, and their total weight."""
        return self._sum, self._count

    def go_on(self, learnt: tuple[float, float]) -> None:
        """Continue from what another instance had `learnt`."""
        self._sum, self._count = map(float, learnt)


@dataclass
class Typical:
    """A typical time: the median of the latest ones.

    A machine's slowdowns come in bursts and only ever make things slower; a median ignores them.
    """

    prior: float
    weight: int = 2
    """How many observations `prior` counts as."""
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, value: float) -> None:
        """Record a value."""
        self._last.append(value)

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median((*[self.prior] * self.weight, *self._last))

    @property
    def learnt(self) -> list[float]:
        """The latest values."""
        return list(self._last)

    def go_on(self, learnt: Iterable[float]) -> None:
        """Continue from what another instance had `learnt`."""
        self._last.extend(map(float, learnt))
