"""What the steps so far have taught: how often the draft is right, and how long things really take.

Everything is forgotten slowly, so that a text that changes its character is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from mirror_edge.acceptance import Acceptance
from mirror_edge.averages import MEMORY, Fading, Typical
from mirror_edge.costs import Costs
from mirror_edge.pace import Pace
from mirror_edge.policy import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mirror_edge.stats import StepRecord

__all__ = ["LONGEST_MATCH", "Experience"]

LONGEST_MATCH = 4
"""Tokens of a match in prompt and answer that are told apart."""

_STRANGE: dict[Mode, int] = {"ar": 1, "sd": 3, "mirror": 3}
"""First steps whose times say little: a draft still works at what nobody wants any more, or reads
what it has missed, and nothing of it is in the processor's caches."""
_RANKS = 64
"""Ranks of an outcome among the roots that are told apart."""


@dataclass
class Experience:
    """Of one pair on its devices, over all the answers it has given.

    The times are factors on what `Costs` says, the host's share is in seconds; both as they would
    be at a pace of 1.
    """

    acceptance: Acceptance = field(default_factory=Acceptance)
    look_up: tuple[Fading, ...] = field(
        default_factory=lambda: tuple(Fading(0.3) for _ in range(LONGEST_MATCH))
    )
    """How often a token that is looked up is right, by the length of the match, from 1 on."""
    ranks: NDArray[np.float64] = field(
        default_factory=lambda: np.array([4.0 * 0.5 ** (rank + 1) for rank in range(_RANKS + 1)])
    )
    """How often the outcome stood at each rank of the roots; the last is for those nowhere."""
    pace: Pace = field(default_factory=Pace)
    """Of the target; all other times go along with it."""
    beside: Typical = field(default_factory=lambda: Typical(1.0))
    """Of the suffix with a rollout beside it, on top of that."""
    fresh: dict[Mode, Typical] = field(
        default_factory=lambda: {mode: Typical(1.0) for mode in get_args(Mode)}
    )
    """By mode: it is slower behind a rollout that was dropped."""
    rollout: Typical = field(default_factory=lambda: Typical(1.0))
    host: dict[Mode, Typical] = field(
        default_factory=lambda: {
            mode: Typical(1e-4 if mode == "ar" else 3e-4) for mode in get_args(Mode)
        }
    )
    _last: Mode | None = None
    _strange: int = 0
    """Steps to come whose times say little."""

    def learn(self, step: StepRecord, costs: Costs) -> None:
        """Take in one step."""
        right, judged = step.foretold
        if judged:
            self.look_up[step.match - 1].add(right / judged, judged)
        if step.reviewed is not None:
            self.acceptance.review(step.reviewed)
            self._strange = max(self._strange, 1)  # The draft was reading beside the target.
        if step.drafter == "ngram":  # Its times are of no mode.
            self._strange = max(self._strange, _STRANGE["ar"])
            return
        self.acceptance.add(step.accepted, step.proposed)
        if step.roots:
            self.ranks *= 1.0 - 1.0 / MEMORY
            self.ranks[_RANKS if step.rank is None else min(step.rank, _RANKS)] += 1.0
        if self._last not in (None, step.mode) and "ar" in (self._last, step.mode):
            self._strange = _STRANGE[step.mode]
        self._last = step.mode
        if self._strange:
            self._strange -= 1
        else:
            self._time(step, costs)

    def _time(self, step: StepRecord, costs: Costs) -> None:
        """How long things took in it."""
        rows = step.proposed + 1
        if step.mode == "mirror":
            factor = _ratio(step.prefix, costs.prefix(rows))
            if step.roots:
                self.beside.add(_ratio(step.suffix, costs.beside * costs.suffix(rows) * factor))
        else:
            whole = costs.prefix(rows) + costs.suffix(rows)
            factor = _ratio(step.prefix + step.suffix, whole)
        pace = self.pace.add(step.mode, factor)
        self.host[step.mode].add(step.beyond_law / pace)
        if step.fresh and step.proposed:
            expected = costs.serial(step.proposed) * pace
            self.fresh[step.mode].add(_ratio(step.fresh, expected))
        if step.hit and not step.waited:
            expected = costs.rollout(step.roots, step.depth, step.suffix)
            self.rollout.add(_ratio(step.rollout, expected * pace))

    def tokens(self, window: int) -> list[float]:
        """How many a step commits, 1 + Σ_j Π_{i<=j} p_i, for every window from 0 to `window`."""
        reached = np.cumprod(self.acceptance.chances(window))
        found: list[float] = np.cumsum([1.0, *reached]).tolist()
        return found

    def as_dict(self) -> dict[str, Any]:
        """What was learnt, as plain JSON values."""
        learnt = {name: mean.learnt for name, mean in self._means().items()}
        return {"means": learnt} | {name: table.tolist() for name, table in self._tables().items()}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Experience:
        """From what `as_dict` gave, or JSON of it.

        Raises:
            ValueError: for anything else; so do KeyError and TypeError.
        """
        found = cls()
        for name, table in found._tables().items():
            known = np.array(raw[name], dtype=np.float64)
            if known.shape != table.shape:
                raise ValueError(f"{known.shape} {name}")
            table[:] = known
        for name, mean in found._means().items():
            mean.go_on(raw["means"][name])
        return found

    def _means(self) -> dict[str, Fading | Typical]:
        """All the means and medians, by name."""
        found: dict[str, Fading | Typical] = {"beside": self.beside, "rollout": self.rollout}
        found |= {"acceptance": self.acceptance.lasting, "accepted lately": self.acceptance.latest}
        found |= {f"look_up.{length}": fading for length, fading in enumerate(self.look_up, 1)}
        found |= {"pace": self.pace.now}
        found |= {f"fresh.{mode}": fading for mode, fading in self.fresh.items()}
        found |= {f"slowed.{mode}": fading for mode, fading in self.pace.slowed.items()}
        return found | {f"host.{mode}": fading for mode, fading in self.host.items()}

    def _tables(self) -> dict[str, NDArray[np.float64]]:
        """All the tables of counts, by name."""
        return {"ranks": self.ranks, "places": self.acceptance.places}

    def hit_rates(self, roots: NDArray[np.integer]) -> NDArray[np.float64]:
        """How often the outcome is among so many best roots, for each number of them."""
        among = np.cumsum(self.ranks)
        found: NDArray[np.float64] = among[np.minimum(roots, _RANKS) - 1] / among[-1]
        return found


def _ratio(measured: float, expected: float) -> float:
    """How far off, within reason: a machine that slept says nothing about its devices."""
    return min(max(measured / max(expected, 1e-9), 0.2), 5.0)
