"""A mode tried for some steps, to learn what the one in use cannot show."""

from __future__ import annotations

from dataclasses import dataclass

from mirror_edge.policy import Mode, Strategy
from mirror_edge.stats import StepRecord

__all__ = ["Trial"]

_STEPS: dict[Mode, int] = {"ar": 5, "sd": 13, "mirror": 13}
"""Most steps of a trial. The first show little: in `ar` the last draft is still running, in the
others the draft is not in the CPU caches yet."""
_STAKE = 1.0
"""Tokens that a trial's windows may lose before it ends: a draft that is almost worth it gets
longer."""
_GAIN = 0.03
"""Share of its tokens that a trial must gain to be followed by another at once."""
_COSTING = 0.005
"""Share of all tokens that trials may cost."""


@dataclass
class Trial:
    """Some steps of one plan. Costs are in tokens that the plan in use would have generated."""

    plan: Strategy
    left: int
    """Steps still to run."""
    cost: float = 0.0
    """What it has cost so far, including what the draft had to read."""
    lost: float = 0.0
    """What its own steps have cost of that: those with a window, if there is a draft."""
    tokens: int = 0
    """Tokens that these have generated."""
    reading: bool = False
    """Whether the draft is still reading what it missed, before the first window."""
    reviewed: bool = False
    """Whether it has just reported what it would have predicted of that."""

    @classmethod
    def of(cls, plan: Strategy) -> Trial:
        """A new trial of `plan`."""
        return cls(plan, _STEPS[plan.mode])

    @property
    def gained(self) -> bool:
        """Whether its steps did better than the plan in use."""
        return self.lost < -_GAIN * self.tokens

    @property
    def owed(self) -> int:
        """Tokens to wait before the next trial, so that trials do not cost too much."""
        return int(max(0.0, self.cost) / _COSTING)

    def next(self) -> Strategy:
        """The plan, for one more step; while the draft reads, steps do not count."""
        if not self.reading:
            self.left -= 1
        return self.plan

    def learn(self, step: StepRecord, pace: float) -> bool:
        """Record `step` if it is one of the trial's own; return whether it is.

        `pace` is the seconds per token of the plan in use.
        """
        self.reading = step.reviewed == ()
        self.reviewed |= bool(step.reviewed)
        if step.drafter != "model" or not (step.mode == self.plan.mode or self.reading):
            return False
        cost, drafts = step.seconds / pace - step.committed, self.plan.mode != "ar"
        self.cost += cost
        if step.proposed or not drafts:
            self.lost += cost
            self.tokens += step.committed
            if drafts and self.lost > _STAKE:
                self.left = 0
        return True
