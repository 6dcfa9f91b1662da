"""How often a draft is right, by the place in its window."""

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
_LASTING = 256.0
"""Observations after which an old one counts for 1/e."""
_CHANGED = 0.15
"""So much the latest observations differ by chance hardly ever: the text has become another one."""
_AFRESH = 8.0
"""Observations that what is held then counts for, since some of them are of the old one."""
_PLACES = 7
"""Places of a window that are told apart."""
_ALIKE = 16.0
"""Observations that the mean over all places counts for in each of them."""


@dataclass
class Acceptance:
    """Of a draft token whose predecessors in the window were accepted.

    What is remembered goes far back, lest a dozen unlucky windows decide; but where the latest ones
    differ by more than chance would have it, what was before them is forgotten.
    """

    lasting: Fading = field(default_factory=lambda: Fading(_PRIOR, _WEIGHT, _LASTING))
    """Over all places."""
    latest: Fading = field(default_factory=lambda: Fading(_PRIOR, _WEIGHT))
    """The same, soon forgotten."""
    places: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _PLACES)))
    """By place, from d1 on: how many such tokens were accepted, of how many."""

    @property
    def mean(self) -> float:
        """What to expect, over all places."""
        return self.lasting.mean

    def add(self, accepted: int, proposed: int) -> None:
        """Note a window: the target judges what it accepts and the first that it does not."""
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
        """Note the windows that would have been, had the draft been asked for these tokens."""
        at = 0
        while at < len(right):
            window = right[at : at + _PLACES]
            accepted = next((place for place, good in enumerate(window) if not good), len(window))
            self.add(accepted, len(window))
            at += accepted + 1  # The token behind the accepted ones is the target's own.

    def chances(self, window: int) -> NDArray[np.float64]:
        """For each of so many places; one that was seldom seen is taken to be like the others."""
        found = np.full(window, self.mean)
        right, seen = self.places[:, :window]
        found[: len(seen)] = (right + _ALIKE * self.mean) / (seen + _ALIKE)
        return found
