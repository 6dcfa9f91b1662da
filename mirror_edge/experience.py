"""What the steps so far have taught: how often the draft is right, and how long things really take.

Everything is forgotten slowly, so that a text that changes its character is noticed.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from mirror_edge.costs import Costs
from mirror_edge.policy import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from mirror_edge.stats import StepRecord

__all__ = ["LONGEST_MATCH", "Experience", "Fading", "Typical"]

LONGEST_MATCH = 4
"""Tokens of a match in prompt and answer that are told apart."""

_MEMORY = 48.0
_LAST = 24
"""Times of which the median counts."""
_RANKS = 64
"""Ranks of an outcome among the roots that are told apart."""
_TABLES = ("ranks", "places")
_PLACES = 7
"""Places of a window that are told apart."""
_ALIKE = 16.0
"""Observations that the mean over all places counts for in each of them."""


@dataclass
class Fading:
    """A mean that forgets: it starts at `prior`, worth `weight` observations."""

    prior: float
    weight: float = 2.0
    memory: float = _MEMORY
    """Observations after which an old one counts for 1/e of a new one."""
    _sum: float = 0.0
    _count: float = 0.0

    def add(self, value: float, count: float = 1.0) -> None:
        """Note `count` observations of mean `value`."""
        keep = (1.0 - 1.0 / self.memory) ** count
        self._sum = self._sum * keep + value * count
        self._count = self._count * keep + count

    @property
    def mean(self) -> float:
        """What to expect."""
        return (self._sum + self.prior * self.weight) / (self._count + self.weight)

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
    """Held to have been seen twice."""
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, value: float) -> None:
        """Note one."""
        self._last.append(value)

    @property
    def value(self) -> float:
        """What to expect."""
        return statistics.median((self.prior, self.prior, *self._last))

    @property
    def learnt(self) -> list[float]:
        """The last ones."""
        return list(self._last)

    def go_on(self, learnt: Iterable[float]) -> None:
        """From what another one had learnt."""
        self._last.extend(map(float, learnt))


@dataclass
class Experience:
    """Of one pair on its devices, over all the answers it has given.

    The times are factors on what `Costs` says; the host's share is in seconds.
    """

    acceptance: Fading = field(default_factory=lambda: Fading(0.6, 4.0))
    """Of a draft token whose predecessors were accepted, over all places of the window."""
    places: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _PLACES)))
    """By the place in the window, from d1 on: how many such tokens were accepted, of how many."""
    look_up: tuple[Fading, ...] = field(
        default_factory=lambda: tuple(Fading(0.3, 4.0) for _ in range(LONGEST_MATCH))
    )
    """The same of a token that is looked up, by the length of the match, from 1 on."""
    ranks: NDArray[np.float64] = field(
        default_factory=lambda: np.array([4.0 * 0.5 ** (rank + 1) for rank in range(_RANKS + 1)])
    )
    """How often the outcome stood at each rank of the roots; the last is for those nowhere."""
    target: dict[Mode, Typical] = field(
        default_factory=lambda: {mode: Typical(1.0) for mode in get_args(Mode)}
    )
    """By mode: a draft at work slows a target with which it shares a memory."""
    beside: Typical = field(default_factory=lambda: Typical(1.0))
    """Of the suffix with a rollout beside it, on top of `target`."""
    fresh: Typical = field(default_factory=lambda: Typical(1.0))
    rollout: Typical = field(default_factory=lambda: Typical(1.0))
    host: dict[Mode, Typical] = field(
        default_factory=lambda: {
            mode: Typical(1e-4 if mode == "ar" else 3e-4) for mode in get_args(Mode)
        }
    )
    _last: Mode | None = None

    def learn(self, step: StepRecord, costs: Costs) -> None:
        """Take in one step."""
        rows = step.proposed + 1
        right, judged = step.foretold
        if judged:
            self.look_up[step.match - 1].add(right / judged, judged)
        if step.drafter == "ngram":  # Its times are of no mode, and no draft is at work.
            self._last = "ar"
            return
        self._judge(step.accepted, step.proposed)
        before, self._last = self._last, step.mode
        if step.mode == "ar" and before != "ar":
            return  # The draft still works at what nobody wants any more.
        self.host[step.mode].add(step.host)
        target = self.target[step.mode]
        if step.mode == "mirror":
            target.add(_ratio(step.prefix, costs.prefix(rows)))
        else:
            whole = costs.prefix(rows) + costs.suffix(rows)
            target.add(_ratio(step.prefix + step.suffix, whole))
        if step.mode == "mirror" and step.roots:
            expected = costs.beside * costs.suffix(rows) * target.value
            self.beside.add(_ratio(step.suffix, expected))
            self.ranks *= 1.0 - 1.0 / _MEMORY
            self.ranks[_RANKS if step.rank is None else min(step.rank, _RANKS)] += 1.0
        if step.fresh and step.proposed:
            self.fresh.add(_ratio(step.fresh, costs.serial(step.proposed)))
        if step.hit and not step.waited:
            self.rollout.add(
                _ratio(step.rollout, costs.rollout(step.roots, step.depth, step.suffix))
            )

    def _judge(self, accepted: int, proposed: int) -> None:
        """The target has agreed with the first `accepted` of so many draft tokens."""
        judged = min(accepted + 1, proposed)
        if judged:
            self.acceptance.add(accepted / judged, judged)
            self.places *= 1.0 - 1.0 / _MEMORY
            self.places[0, :accepted] += 1.0
            self.places[1, :judged] += 1.0

    def tokens(self, window: int) -> list[float]:
        """How many a step commits, 1 + Σ_j Π_{i<=j} p_i, for every window from 0 to `window`.

        A place that was seldom seen is taken to be like the others.
        """
        chances = np.full(window + 1, self.acceptance.mean)
        right, seen = self.places[:, :window]
        chances[1 : 1 + len(seen)] = (right + _ALIKE * chances[0]) / (seen + _ALIKE)
        chances[0] = 1.0
        found: list[float] = np.cumsum(np.cumprod(chances)).tolist()
        return found

    def as_dict(self) -> dict[str, Any]:
        """What was learnt, as plain JSON values."""
        learnt = {name: mean.learnt for name, mean in self._means().items()}
        return {"means": learnt} | {name: getattr(self, name).tolist() for name in _TABLES}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Experience:
        """From what `as_dict` gave, or JSON of it.

        Raises:
            ValueError: for anything else; so do KeyError and TypeError.
        """
        found = cls()
        for name in _TABLES:
            table = np.array(raw[name], dtype=np.float64)
            if table.shape != getattr(found, name).shape:
                raise ValueError(f"{table.shape} {name}")
            setattr(found, name, table)
        for name, mean in found._means().items():
            mean.go_on(raw["means"][name])
        return found

    def _means(self) -> dict[str, Fading | Typical]:
        """All the means and medians, by name."""
        single = ("acceptance", "beside", "fresh", "rollout")
        found: dict[str, Fading | Typical] = {name: getattr(self, name) for name in single}
        found |= {f"look_up.{length}": fading for length, fading in enumerate(self.look_up, 1)}
        found |= {f"target.{mode}": fading for mode, fading in self.target.items()}
        return found | {f"host.{mode}": fading for mode, fading in self.host.items()}

    def hit_rates(self, roots: NDArray[np.integer]) -> NDArray[np.float64]:
        """How often the outcome is among so many best roots, for each number of them."""
        among = np.cumsum(self.ranks)
        found: NDArray[np.float64] = among[np.minimum(roots, _RANKS) - 1] / among[-1]
        return found


def _ratio(measured: float, expected: float) -> float:
    """How far off, within reason: a machine that slept says nothing about its devices."""
    return min(max(measured / max(expected, 1e-9), 0.2), 5.0)
