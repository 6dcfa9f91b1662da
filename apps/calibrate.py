"""What forwards cost in use, estimated from steps that a machine took.

Measured one after the other, a forward finds its weights in the caches and few tokens before it.
In an answer it takes longer; the steps show by how much.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mirror_edge.costs import Costs, Curve

if TYPE_CHECKING:
    from mirror_edge.policy import Mode
    from mirror_edge.stats import StepRecord

__all__ = ["host", "in_use", "typical"]


def typical(runs: Sequence[Costs]) -> Costs:
    """The medians of several measurements, point by point."""

    def curve(name: str) -> Curve:
        curves: list[Curve] = [getattr(run, name) for run in runs]
        times = zip(*(one.seconds for one in curves), strict=True)
        return Curve(curves[0].rows, tuple(statistics.median(time) for time in times))

    return Costs(
        prefix=curve("prefix"),
        exit=curve("exit"),
        suffix=curve("suffix"),
        draft=curve("draft"),
        beside=statistics.median(run.beside for run in runs),
    )


def in_use(costs: Costs, steps: Sequence[StepRecord]) -> Costs:
    """The costs, scaled to what steps of all three modes took."""
    alone = [step for step in steps if step.mode != "mirror"]
    # After a miss a step's times hold the rest of the rollout that was dropped.
    mirrored = [step for step in steps if step.hit and not step.waited]
    target = _factor(
        (s.prefix + s.suffix, costs.prefix(s.proposed + 1) + costs.suffix(s.proposed + 1))
        for s in alone
    )
    return Costs(
        prefix=_scaled(costs.prefix, target),
        exit=_scaled(costs.exit, _factor((s.exit, costs.exit(s.proposed + 1)) for s in mirrored)),
        suffix=_scaled(costs.suffix, target),
        draft=_scaled(
            costs.draft,
            _factor((s.fresh, s.proposed * costs.draft(1)) for s in alone if s.fresh),
            _factor((s.rollout, costs.rollout(s.roots, s.depth, s.suffix)) for s in mirrored),
        ),
        beside=max(
            1.0, _factor((s.suffix, target * costs.suffix(s.proposed + 1)) for s in mirrored)
        ),
    )


def host(steps: Iterable[StepRecord], mode: Mode, hand_over: float) -> float:
    """Seconds of a step on neither device: what is left of it, without hand-overs."""
    left = []
    for step in steps:
        if step.mode != mode or (mode == "mirror" and (step.waited or not step.hit)):
            continue
        devices = step.prefix + step.exit + max(step.suffix, step.rollout) + step.waited
        left.append(step.seconds - devices - (hand_over if step.rollout > step.suffix else 0.0))
    return max(0.0, statistics.median(left)) if left else 0.0


def _factor(pairs: Iterable[tuple[float, float]]) -> float:
    """The median of measured over expected; 1 where nothing was measured."""
    ratios = [measured / expected for measured, expected in pairs if expected > 0.0]
    return statistics.median(ratios) if ratios else 1.0


def _scaled(curve: Curve, first: float, others: float | None = None) -> Curve:
    """Every time multiplied; the first point may have its own factor."""
    rest = first if others is None else others
    times = (first * curve.seconds[0], *(rest * time for time in curve.seconds[1:]))
    return Curve(curve.rows, times)
