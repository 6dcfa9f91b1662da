"""How far ahead a rollout should guess, learned from the times that rollouts took.

A right guess saves a forward, and every guess makes forwards wider. Where width costs nothing, all
guesses pay off; on a CPU some may pay off for one branch but none for eight.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

__all__ = ["Foresight"]

_TRIES = 3
"""Rollouts by which a way of guessing is judged."""
_UNKNOWN = -1.0
_HOPELESS = 1.5
"""If a way takes this many times as long as the fastest, wider ones are not tried."""
_SOONEST, _LATEST = 24, 768
"""Rollouts before the slower ways are tried again, at first and at most."""


class _Choices:
    """Measurements of rollouts with about the same number of branches."""

    def __init__(self, most: int) -> None:
        self.times = [deque[float](maxlen=_TRIES) for _ in range(most + 1)]
        """Seconds per token of a branch, by way of guessing."""
        self.medians = [_UNKNOWN] * (most + 1)
        """Medians of `times`; `_UNKNOWN` while there are too few."""
        self.wait = self.left = _SOONEST
        """Rollouts between two such trials, and rollouts before the next."""


class Foresight:
    """Chooses how a rollout guesses ahead: in the way that was fastest for its number of branches.

    Ways are numbered from 0, no guesses, to the widest.
    """

    def __init__(self, most: int) -> None:
        """Choose from 0 to `most`."""
        self._most = most
        self._known: dict[int, _Choices] = {}

    def choose(self, branches: int, most: int) -> int:
        """The way, up to `most`, in which a rollout of `branches` branches should guess."""
        size = branches.bit_length()
        if size not in self._known:
            self._known[size] = _Choices(self._most)
        known = self._known[size]
        medians = known.medians[: most + 1]
        # The fastest, or the first that is still unknown.
        best = medians.index(min(medians))
        if medians[best] == _UNKNOWN:
            return best
        known.left -= 1
        if known.left == 0:
            # The text may have changed. The longer nothing does, the rarer the trials.
            known.wait = known.left = min(2 * known.wait, _LATEST)
            for n, seconds in enumerate(known.times):
                if n != best:
                    seconds.clear()
                    known.medians[n] = _UNKNOWN
        return best

    def learn(self, branches: int, way: int, seconds: float) -> None:
        """Record that a rollout guessing in this `way` took `seconds` per token of a branch."""
        known = self._known[branches.bit_length()]
        times = known.times[way]
        times.append(seconds)
        if len(times) == _TRIES:
            known.medians[way] = statistics.median(times)
            fastest = min(median for median in known.medians if median != _UNKNOWN)
            if known.medians[way] > _HOPELESS * fastest:
                wider = known.medians[way + 1 :]
                known.medians[way + 1 :] = [math.inf if m == _UNKNOWN else m for m in wider]
