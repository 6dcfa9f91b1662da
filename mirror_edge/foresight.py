"""How much guessing ahead pays: learnt from what rollouts took.

A guess saves forwards as often as it is right, and makes every forward wider. Where width costs
nothing all of them pay; on a CPU some may pay for one branch and none for eight.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

__all__ = ["Foresight"]

_TRIES = 3
"""Rollouts that a choice is judged by."""
_UNKNOWN = -1.0
_HOPELESS = 1.5
"""A way that takes so many times the fastest one's time tells that wider ones do not pay either."""
_SOONEST, _LATEST = 24, 768
"""Rollouts until the choices that lost are tried again, at first and at most."""


class _Choices:
    """What was measured of rollouts with about the same number of branches."""

    def __init__(self, most: int) -> None:
        self.times = [deque[float](maxlen=_TRIES) for _ in range(most + 1)]
        """Seconds a token of a branch, by the way that was used."""
        self.medians = [_UNKNOWN] * (most + 1)
        """`_UNKNOWN` while there are too few of them."""
        self.wait = self.left = _SOONEST


class Foresight:
    """Chooses how a rollout guesses ahead: the way that was fastest for its branches.

    Ways are numbered, from 0 for not at all to the widest.
    """

    def __init__(self, most: int) -> None:
        """Choose from 0 to `most`."""
        self._most = most
        self._known: dict[int, _Choices] = {}

    def choose(self, branches: int, most: int) -> int:
        """The way, up to `most`, in which a rollout of so many branches should guess."""
        size = branches.bit_length()
        if size not in self._known:
            self._known[size] = _Choices(self._most)
        known = self._known[size]
        medians = known.medians[: most + 1]
        # The least, and of those that are not known yet the first.
        best = medians.index(min(medians))
        if medians[best] == _UNKNOWN:
            return best
        known.left -= 1
        if known.left == 0:
            # It may be another text by now. The longer nothing changes, the rarer the question.
            known.wait = known.left = min(2 * known.wait, _LATEST)
            for n, seconds in enumerate(known.times):
                if n != best:
                    seconds.clear()
                    known.medians[n] = _UNKNOWN
        return best

    def learn(self, branches: int, way: int, seconds: float) -> None:
        """A rollout that guessed in that `way` took `seconds` a token of a branch."""
        known = self._known[branches.bit_length()]
        times = known.times[way]
        times.append(seconds)
        if len(times) == _TRIES:
            known.medians[way] = statistics.median(times)
            fastest = min(median for median in known.medians if median != _UNKNOWN)
            if known.medians[way] > _HOPELESS * fastest:
                wider = known.medians[way + 1 :]
                known.medians[way + 1 :] = [math.inf if m == _UNKNOWN else m for m in wider]
