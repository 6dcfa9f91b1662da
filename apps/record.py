"""What the steps of some answers decided, and the shares that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BUDGETS", "DEPTHS", "Record"]

BUDGETS = (1, 2, 4, 8, 16, 32, None)
"""R of the hit rates; None is all roots."""
DEPTHS = (1, 2, 4, 8)
"""κ of the coverage."""


@dataclass
class Record:
    """Step by step and token by token; several answers are appended to one another."""

    proposed: list[int] = field(default_factory=list)
    """γ of every step's window."""
    accepted: list[int] = field(default_factory=list)
    """A of every step."""
    committed: list[int] = field(default_factory=list)
    """Tokens of every step."""
    places: list[int | None] = field(default_factory=list)
    """The rank of a step's outcome among all its roots, from 0; None: not among them.

    A last step that leaves no room for another window has no entry."""
    ranks: list[int | None] = field(default_factory=list)
    """The rank of every token among the exit head's candidates under the shared noise, from 0."""
    plain_ranks: list[int | None] = field(default_factory=list)
    """The same without noise."""
    shared: list[bool] = field(default_factory=list)
    """Whether the draft, at each token's position and with the same noise, predicts it too."""
    greedy: list[bool] = field(default_factory=list)
    """Whether it is the draft's most likely token."""
    independent: list[float] = field(default_factory=list)
    """The probability that the draft, sampled independently, predicts it."""
    common: list[float] = field(default_factory=list)
    """What both models' distributions have in common: no pairing of samples agrees more often."""

    def figures(self) -> dict[str, Any]:
        """The shares as plain JSON values; None where nothing was counted."""
        judged = [
            accepted + (accepted < proposed)
            for accepted, proposed in zip(self.accepted, self.proposed, strict=True)
        ]
        return {
            "tokens": len(self.ranks),
            "steps": len(self.committed),
            "judged": sum(judged),
            "acceptance_per_token": _ratio(sum(self.accepted), sum(judged)),
            "tokens_per_step": _mean(self.committed),
            "draft_says_it": {
                "shared_noise": _mean(self.shared),
                "greedy": _mean(self.greedy),
                "independent": _mean(self.independent),
                "at_most": _mean(self.common),
            },
            "coverage": {str(k): _within(self.ranks, k) for k in DEPTHS},
            "coverage_without_noise": {str(k): _within(self.plain_ranks, k) for k in DEPTHS},
            "hit_rate": {str(r or "all"): _within(self.places, r) for r in BUDGETS},
        }


def _within(places: Sequence[int | None], count: int | None) -> float | None:
    """The share of `places` that are among the first `count`."""
    return _mean([at is not None and (count is None or at < count) for at in places])


def _mean(values: Sequence[float]) -> float | None:
    return _ratio(sum(values), len(values))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
