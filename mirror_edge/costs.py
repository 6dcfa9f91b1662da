"""The measured times of a step's parts, for one pair on its devices, by rows per forward."""

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
    """T(n): seconds of a forward of n rows, linear between the measured points."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse invalid points.

        Raises:
            ValueError: unless the row counts rise and the times are not negative.
        """
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError("a curve needs as many times as row counts, and at least one")
        if any(a >= b for a, b in pairwise(self.rows)) or self.rows[0] < 1:
            raise ValueError("a curve's row counts must rise, starting at 1 or more")
        if min(self.seconds) < 0.0:
            raise ValueError("a curve's times cannot be negative")

    def __call__(self, rows: float) -> float:
        """Seconds of a forward; constant before the first point, extrapolated after the last."""
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
        draft: a forward of the draft, by the number of branches.
        beside: the factor by which a rollout slows the suffix; 1 for devices that share nothing.
        exit_beside: the exit head on the draft's device, including the transfer of the hidden rows;
            None if it cannot run there.
        fresh: a serial draft right after a pass of the target, by its number of tokens; None if it
            takes that many forwards of `draft`.
    """

    prefix: Curve
    exit: Curve
    suffix: Curve
    draft: Curve
    beside: float = 1.0
    exit_beside: Curve | None = None
    fresh: Curve | None = None

    def serial(self, tokens: int) -> float:
        """Seconds of a serial draft of this many tokens."""
        return tokens * self.draft(1) if self.fresh is None else self.fresh(tokens)

    def rollout(self, roots: int, depth: int, suffix: float) -> float:
        """Seconds of a rollout that hits, alongside a suffix of `suffix` seconds."""
        return float(rollout_seconds(self.draft(roots), self.draft(1), depth, suffix))

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Costs:
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON."""
        curves = {
            name: curve and Curve(tuple(curve["rows"]), tuple(curve["seconds"]))
            for name, curve in raw.items()
            if name != "beside"
        }
        return cls(**curves, beside=raw["beside"])


def rollout_seconds(
    wide: ArrayLike, alone: float, depth: ArrayLike, suffix: ArrayLike
) -> NDArray[np.float64]:
    """Seconds of rollouts that hit: a forward of all branches takes `wide`, of one branch `alone`.

    Forwards that begin after the suffix advance one branch only, because the outcome is known.
    """
    begun = np.ceil(np.divide(suffix, np.maximum(wide, 1e-12)))
    together = np.minimum(depth, np.maximum(1.0, begun))
    found: NDArray[np.float64] = together * wide + np.subtract(depth, together) * alone
    return found
