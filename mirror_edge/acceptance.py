"""How often draft tokens are accepted, by their position in the window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.averages import Fading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Acceptance"]

_PRIOR, _WEIGHT = 0.6, 12.0
"""The acceptance rate assumed at first, and the number of observations it counts as."""
_LASTING = 256.0
"""Number of observations after which an old one is weighted by 1/e."""
_CHANGED = 0.15
"""A larger difference between the recent and the lasting rate is hardly chance: the text
changed."""
_AFRESH = 8.0
"""Observations that the averages count as then: few, since some are of the old text."""
_PLACES = 7
"""Window positions with counts of their own."""
_ALIKE = 16.0
"""Observations that the mean over all positions counts as at each position."""


@dataclass
class Acceptance:
    """The acceptance rate of draft tokens whose predecessors in the window were all accepted.

    The lasting average reaches far back, so that a dozen unlucky windows decide nothing. But when
    the latest observations differ from it by more than chance explains, everything before them is
    forgotten.
    """

    lasting: Fading = field(default_factory=lambda: Fading(_PRIOR, _WEIGHT, _LASTING))
    """Over all positions, with a long memory."""
    latest: Fading = field(default_factory=lambda: Fading(_PRIOR, _WEIGHT))
    """The same with a short memory."""
    places: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _PLACES)))
    """[2, positions], from d1 on: tokens accepted, and tokens judged."""

    @property
    def mean(self) -> float:
        """The expected rate over all positions."""
        return self.lasting.mean

    def add(self, accepted: int, proposed: int) -> None:
        """Record a window; the target judged its accepted tokens and the first rejected one."""
        judged = min(accepted + 1, proposed)
        if not judged:
            return
        for fading in (self.lasting, self.latest):
            fading.add(accepted / judged, judged)
        self.places *= 1.0 - 1.0 / _LASTING
        self.places[0, :accepted] += 1.0
        self.places[1, :judged] += 1.0
        lately = self.latest.mean
        if abs(lately - self.lasting.mean) > _CHANGED:
            for fading in (self.lasting, self.latest):
                fading.go_on((_AFRESH * lately, _AFRESH))
            self.places[:] = 0.0

    def review(self, right: Sequence[bool]) -> None:
        """Record the windows that would have resulted, had the draft proposed these tokens.

        `right` is whether it would have proposed the target's own token.
        """
        at = 0
        while at < len(right):
            window = right[at : at + _PLACES]
            accepted = next((place for place, good in enumerate(window) if not good), len(window))
            self.add(accepted, len(window))
            at += accepted + 1  # The token after the accepted ones is the target's own.

    def chances(self, window: int) -> NDArray[np.float64]:
        """The rate at each of `window` positions; rarely seen positions are drawn to the mean."""
        found = np.full(window, self.mean)
        right, seen = self.places[:, :window]
        found[: len(seen)] = (right + _ALIKE * self.mean) / (seen + _ALIKE)
        return found
