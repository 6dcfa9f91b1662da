"""The sums over an answer's steps: counts and seconds that can be added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror_edge.stats import StepRecord
    from mirror_edge.trace import Spans

__all__ = ["Tally", "rollout_forwards", "tally"]


@dataclass(frozen=True)
class Tally:
    """The target's passes after an answer's first token. Times are seconds."""

    passes: int = 0
    committed: int = 0
    """Tokens that these passes produced."""
    judged: Counter[int] = field(default_factory=Counter)
    """By position in the window, from 1: draft tokens whose predecessors were all accepted."""
    accepted: Counter[int] = field(default_factory=Counter)
    """Those of them that were accepted too."""
    looked_up: int = 0
    """Outcomes that were looked up among the branches."""
    hits: int = 0
    ranks: Counter[int] = field(default_factory=Counter)
    """Outcomes by their rank among the roots, from 0; those not among them are missing."""
    rollout_forwards: int = 0
    """Forwards of the draft in its rollouts."""
    rollout: float = 0.0
    hidden: float = 0.0
    """The part of `rollout` during which the suffix ran."""
    exposed: float = 0.0
    """In which only the draft ran while the step waited."""
    host: float = 0.0
    """In which no device ran."""

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        names = [one.name for one in fields(self)]
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """All together."""
        return reduce(cls.__add__, tallies, cls())


def tally(steps: Iterable[StepRecord], forwards: int = 0) -> Tally:
    """The tally of an answer's steps, in whose rollouts the draft ran `forwards` times."""
    steps = list(steps)
    drafted = [step for step in steps if step.drafter == "model"]
    prepared = [step for step in steps if step.hit is not None]
    return Tally(
        passes=len(steps),
        committed=sum(step.committed for step in steps),
        judged=Counter(
            place
            for step in drafted
            for place in range(1, min(step.accepted + 1, step.proposed) + 1)
        ),
        accepted=Counter(place for step in drafted for place in range(1, step.accepted + 1)),
        looked_up=len(prepared),
        hits=sum(bool(step.hit) for step in prepared),
        ranks=Counter(step.rank for step in prepared if step.rank is not None),
        rollout_forwards=forwards,
        rollout=sum(step.rollout for step in steps),
        hidden=sum(step.hidden for step in steps),
        exposed=sum(max(0.0, s.seconds - s.prefix - s.exit - s.suffix - s.host) for s in steps),
        host=sum(step.host for step in steps),
    )


def rollout_forwards(spans: Spans) -> int:
    """How many forwards of the draft ran inside its rollouts."""
    rollouts = [call for call in spans.calls if (call.lane, call.name) == ("draft", "rollout")]
    return sum(
        any(call.start <= run.start and run.end <= call.end for call in rollouts)
        for run in spans.runs
        if run.name == "draft"
    )
