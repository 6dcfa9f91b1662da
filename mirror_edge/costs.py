"""What a step costs: the times of one pair on its devices, by the rows of a forward."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Costs", "Curve", "rollout_seconds"]


@dataclass(frozen=True)
class Curve:
    """T(n): seconds of a forward of n rows, straight between the points that were measured."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError("a curve needs as many times as row counts, one at least")
        if any(a >= b for a, b in pairwise(self.rows)) or self.rows[0] < 1:
            raise ValueError("a curve's row counts must rise, from 1 or more")
        if min(self.seconds) < 0.0:
            raise ValueError("a curve's times cannot be negative")

    def __call__(self, rows: float) -> float:
        """Seconds of a forward; beyond the last point it grows as it last did."""
        if len(self.rows) == 1 or rows <= self.rows[0]:
            return self.seconds[0]
        at = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        (left, right), (low, high) = self.rows[at - 1 : at + 1], self.seconds[at - 1 : at + 1]
        return low + (high - low) * (rows - left) / (right - left)


@dataclass(frozen=True)
class Costs:
    """The times of a pair, in seconds.

    Attributes:
        prefix: layers 1..E of the target, by rows of the window.
        exit: the exit head, by rows of the window.
        suffix: layers E+1..N, by rows of the window.
        draft: a forward of the draft, by the branches it advances.
        beside: how much longer the suffix takes with a rollout beside it, 1 for devices that do
            not share anything.
        exit_beside: the exit head on the draft's device, the way of the hidden rows there
            included; None where it cannot run there.
        fresh: a serial draft, by its tokens, as it is made after a pass of the target; None where
            it is known as so many forwards of the draft.
    """

    prefix: Curve
    exit: Curve
    suffix: Curve
    draft: Curve
    beside: float = 1.0
    exit_beside: Curve | None = None
    fresh: Curve | None = None

    def serial(self, tokens: int) -> float:
        """Seconds of a serial draft."""
        return tokens * self.draft(1) if self.fresh is None else self.fresh(tokens)

    def rollout(self, roots: int, depth: int, suffix: float) -> float:
        """Seconds of a rollout that hits, beside a suffix of so many."""
        return float(rollout_seconds(self.draft(roots), self.draft(1), depth, suffix))

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Costs:
        """From what `dataclasses.asdict` gave, or JSON of it."""
        curves = {
            name: curve and Curve(tuple(curve["rows"]), tuple(curve["seconds"]))
            for name, curve in raw.items()
            if name != "beside"
        }
        return cls(**curves, beside=raw["beside"])


def rollout_seconds(
    wide: ArrayLike, alone: float, depth: ArrayLike, suffix: ArrayLike
) -> NDArray[np.float64]:
    """Seconds of rollouts that hit: forwards of all branches take `wide`, of one `alone`.

    Those that begin after the suffix advance one branch: the outcome is known.
    """
    begun = np.ceil(np.divide(suffix, np.maximum(wide, 1e-12)))
    together = np.minimum(depth, np.maximum(1.0, begun))
    found: NDArray[np.float64] = together * wide + np.subtract(depth, together) * alone
    return found
