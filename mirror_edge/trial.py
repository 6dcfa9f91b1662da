"""A mode that is tried for some steps, to learn what the one in use cannot teach."""

from __future__ import annotations

from dataclasses import dataclass

from mirror_edge.policy import Mode, Strategy
from mirror_edge.stats import StepRecord

__all__ = ["Trial"]

_STEPS: dict[Mode, int] = {"ar": 5, "sd": 13, "mirror": 13}
"""At most. The first teach little: in the target's the last draft is still at work, and nothing of
a draft is in the processor's caches."""
_STAKE = 1.0
"""Tokens that its windows may lose before it ends: a draft that is nearly worth it is looked at for
longer."""
_GAIN = 0.03
"""Of its tokens, those that it must gain to be followed by another at once."""
_COSTING = 0.005
"""Of all tokens, those that trials may cost."""


@dataclass
class Trial:
    """Some steps of one plan. Costs are in tokens that the plan in use would have brought."""

    plan: Strategy
    left: int
    """Steps to come."""
    cost: float = 0.0
    """What it has cost so far, the draft's reading included."""
    lost: float = 0.0
    """What its own steps have cost of it: those with a window, where there is a draft."""
    tokens: int = 0
    """What these have brought."""
    reading: bool = False
    """Whether the draft still reads what it has missed, before the first window."""
    reviewed: bool = False
    """Whether it has just said what it would have said to that."""

    @classmethod
    def of(cls, plan: Strategy) -> Trial:
        """A new one."""
        return cls(plan, _STEPS[plan.mode])

    @property
    def gained(self) -> bool:
        """Whether its steps did better than the plan in use."""
        return self.lost < -_GAIN * self.tokens

    @property
    def owed(self) -> int:
        """Tokens to wait before the next one, lest they cost too much."""
        return int(max(0.0, self.cost) / _COSTING)

    def next(self) -> Strategy:
        """The plan, for one step more; while the draft reads, steps do not count."""
        if not self.reading:
            self.left -= 1
        return self.plan

    def learn(self, step: StepRecord, pace: float) -> bool:
        """Whether `step` was one of its own, which is taken in; `pace` is the seconds a token of
        the plan in use.
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
