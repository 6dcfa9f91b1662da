"""What previous steps have shown: how often the draft is right, and how long things really take.

Old observations fade, so that a change in the text is noticed.
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
"""Tokens of the longest match in prompt and answer that is looked for."""

_UNRELIABLE: dict[Mode, int] = {"ar": 1, "sd": 3, "mirror": 3}
"""Steps after a change of mode whose times are unreliable: a draft may still be busy with something
dropped or with what it missed, and is not in the CPU caches yet."""
_RANKS = 64
"""Ranks of the outcome among the roots that are counted."""


@dataclass
class Experience:
    """What has been learned about one pair on its devices, over all its answers.

    Times are factors on those of `Costs`, except for the host's, which are in seconds; both are
    relative to a pace of 1.
    """

    acceptance: Acceptance = field(default_factory=Acceptance)
    look_up: tuple[Fading, ...] = field(
        default_factory=lambda: tuple(Fading(0.3) for _ in range(LONGEST_MATCH))
    )
    """How often a looked-up token is right, by length of the match, from 1."""
    ranks: NDArray[np.float64] = field(
        default_factory=lambda: np.array([4.0 * 0.5 ** (rank + 1) for rank in range(_RANKS + 1)])
    )
    """How often the outcome had each rank among the roots; the last entry is for none of them."""
    pace: Pace = field(default_factory=Pace)
    """The target's; all other times are relative to it."""
    beside: Typical = field(default_factory=lambda: Typical(1.0))
    """The suffix while a rollout runs, on top of `Costs.beside`."""
    fresh: dict[Mode, Typical] = field(
        default_factory=lambda: {mode: Typical(1.0) for mode in get_args(Mode)}
    )
    """The serial draft, by mode: it is slower after a rollout that was dropped."""
    rollout: Typical = field(default_factory=lambda: Typical(1.0))
    """A rollout that hits, on top of `Costs.rollout`."""
    host: dict[Mode, Typical] = field(
        default_factory=lambda: {
            mode: Typical(1e-4 if mode == "ar" else 3e-4) for mode in get_args(Mode)
        }
    )
    """Seconds of a step beyond the step law, by mode."""
    _last: Mode | None = None
    _unreliable: int = 0
    """Coming steps whose times do not count."""

    def learn(self, step: StepRecord, costs: Costs) -> None:
        """Learn from a step."""
        right, judged = step.foretold
        if judged:
            self.look_up[step.match - 1].add(right / judged, judged)
        if step.reviewed is not None:
            self.acceptance.review(step.reviewed)
            self._unreliable = max(self._unreliable, 1)  # The draft was reading alongside.
        if step.drafter == "ngram":  # Its times belong to no mode.
            self._unreliable = max(self._unreliable, _UNRELIABLE["ar"])
            return
        self.acceptance.add(step.accepted, step.proposed)
        if step.roots:
            self.ranks *= 1.0 - 1.0 / MEMORY
            self.ranks[_RANKS if step.rank is None else min(step.rank, _RANKS)] += 1.0
        if self._last not in (None, step.mode) and "ar" in (self._last, step.mode):
            self._unreliable = _UNRELIABLE[step.mode]
        self._last = step.mode
        if self._unreliable:
            self._unreliable -= 1
        else:
            self._time(step, costs)

    def _time(self, step: StepRecord, costs: Costs) -> None:
        """Learn how long its parts took."""
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
        """Tokens a step commits, 1 + Σ_j Π_{i<=j} p_i, for every window from 0 to `window`."""
        reached = np.cumprod(self.acceptance.chances(window))
        found: list[float] = np.cumsum([1.0, *reached]).tolist()
        return found

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as plain JSON values."""
        learnt = {name: mean.learnt for name, mean in self._means().items()}
        return {"means": learnt} | {name: table.tolist() for name, table in self._tables().items()}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Experience:
        """The inverse of `as_dict`, also after a round trip through JSON.

        Raises:
            ValueError, KeyError, TypeError: for anything else.
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
        """All means and medians, by name."""
        found: dict[str, Fading | Typical] = {"beside": self.beside, "rollout": self.rollout}
        found |= {"acceptance": self.acceptance.lasting, "accepted lately": self.acceptance.latest}
        found |= {f"look_up.{length}": fading for length, fading in enumerate(self.look_up, 1)}
        found |= {"pace": self.pace.now}
        found |= {f"fresh.{mode}": fading for mode, fading in self.fresh.items()}
        found |= {f"slowed.{mode}": fading for mode, fading in self.pace.slowed.items()}
        return found | {f"host.{mode}": fading for mode, fading in self.host.items()}

    def _tables(self) -> dict[str, NDArray[np.float64]]:
        """All tables of counts, by name."""
        return {"ranks": self.ranks, "places": self.acceptance.places}

    def hit_rates(self, roots: NDArray[np.integer]) -> NDArray[np.float64]:
        """How often the outcome is among the best roots, for each number of roots."""
        among = np.cumsum(self.ranks)
        found: NDArray[np.float64] = among[np.minimum(roots, _RANKS) - 1] / among[-1]
        return found


def _ratio(measured: float, expected: float) -> float:
    """The ratio, within limits: a machine that slept says nothing about its devices."""
    return min(max(measured / max(expected, 1e-9), 0.2), 5.0)
