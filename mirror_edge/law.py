"""The step law over many plans at once: the predicted time per token under each.

It is the latency model of Mirror-SD (arXiv 2510.13161, section 3): a mirror step takes
``prefix + exit head + max(suffix, rollout)``, and a serial draft more after a miss, where serial
speculation always takes ``target + draft``.

A controller weighs a hundred plans between steps of a millisecond, on a thread that takes time
from the lanes: as arrays they take a fraction of what they take one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.costs import rollout_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mirror_edge.averages import Typical
    from mirror_edge.costs import Costs
    from mirror_edge.experience import Experience
    from mirror_edge.policy import Mode, Strategy

__all__ = ["StepLaw"]


class StepLaw:
    """For one pair on its devices, over `plans`."""

    def __init__(self, costs: Costs, plans: Sequence[Strategy]) -> None:
        """Everything that does not depend on what is learned is computed here."""
        self.plans = plans
        modes: dict[Mode, list[int]] = {}
        for index, plan in enumerate(plans):
            modes.setdefault(plan.mode, []).append(index)
        self.modes = {mode: np.array(indices) for mode, indices in modes.items()}
        """The indices of each mode's plans."""
        self._mode = np.array([list(modes).index(plan.mode) for plan in plans])
        rows = [1 if plan.mode == "ar" else plan.window + 1 for plan in plans]
        self._rows, self._most = np.array(rows), max(rows)
        self._prefix, self._suffix = _times(costs.prefix, rows), _times(costs.suffix, rows)
        self._fresh = _times(lambda n: costs.serial(n - 1) if n > 1 else 0.0, rows)
        self._mirrored = (
            _Mirrored(costs, plans, self.modes["mirror"]) if "mirror" in modes else None
        )

    def seconds_a_token(self, known: Experience) -> NDArray[np.float64]:
        """Seconds per token, given what is `known` of the pair, in the order of the plans."""
        pace = known.pace.now.value
        slowed = pace * self._typical(known.pace.slowed)
        prefix, suffix = slowed * self._prefix, slowed * self._suffix
        fresh = pace * self._typical(known.fresh) * self._fresh
        step = prefix + suffix + fresh
        if (mirrored := self._mirrored) is not None:
            at = mirrored.at
            behind = mirrored.behind_prefix(suffix[at], pace, known)
            step[at] = prefix[at] + behind + mirrored.missed(known) * fresh[at]
        tokens = np.array(known.tokens(self._most - 1))[self._rows - 1]
        found: NDArray[np.float64] = (step + pace * self._typical(known.host)) / tokens
        return found

    def _typical(self, by_mode: Mapping[Mode, Typical]) -> NDArray[np.float64]:
        """The typical value of every plan's mode."""
        values = [by_mode[mode].value for mode in self.modes]
        found: NDArray[np.float64] = np.array(values)[self._mode]
        return found


class _Mirrored:
    """The part of the law that concerns mode `mirror`."""

    def __init__(self, costs: Costs, plans: Sequence[Strategy], at: NDArray[np.intp]) -> None:
        """For the plans at the indices `at`."""
        mirrored = [plans[index] for index in at]
        rows = [plan.window + 1 for plan in mirrored]
        roots = [
            plan.branches or rows * plan.candidates
            for plan, rows in zip(mirrored, rows, strict=True)
        ]
        self.at = at
        self._beside = costs.beside
        self._roots = np.array(roots)
        self._depth = np.array([plan.window for plan in mirrored])
        self._wide, self._alone = _times(costs.draft, roots), costs.draft(1)
        away = np.array([plan.exit_head == "draft" for plan in mirrored])
        self._exit = np.where(away, 0.0, _times(costs.exit, rows))
        """On the target's device, before the suffix."""
        self._away = np.where(away, _times(costs.exit_beside or costs.exit, rows), 0.0)
        """On the draft's, before the rollout."""

    def behind_prefix(
        self, suffix: NDArray[np.float64], pace: float, known: Experience
    ) -> NDArray[np.float64]:
        """Seconds of the exit head and of the longer of suffix and rollout."""
        suffix = known.beside.value * self._beside * suffix
        rollout = rollout_seconds(self._wide, self._alone, self._depth, suffix)
        factor = pace * known.rollout.value
        longer: NDArray[np.float64] = np.maximum(suffix, self._away + factor * rollout)
        return self._exit + longer

    def missed(self, known: Experience) -> NDArray[np.float64]:
        """How often the outcome is none of the roots."""
        return 1.0 - known.hit_rates(self._roots)


def _times(curve: Callable[[int], float], rows: Sequence[int]) -> NDArray[np.float64]:
    """Seconds of a forward, for each number of rows."""
    known = {n: curve(n) for n in set(rows)}
    return np.array([known[n] for n in rows])
