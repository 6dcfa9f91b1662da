"""The controller of mode `auto`: chooses the plan that should give the most tokens per second.

It predicts every plan's step time by the step law, from measured costs and what previous steps have
shown, and takes the best. What a mode cannot show is learned by trying another one now and then
(`trial.py`); the more a trial costs, the later the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mirror_edge.costs import Costs
from mirror_edge.experience import Experience
from mirror_edge.law import StepLaw
from mirror_edge.look_up import LookUp
from mirror_edge.policy import Mode, Strategy
from mirror_edge.stats import StepRecord
from mirror_edge.trial import Trial

__all__ = ["Controller"]

_TEACHERS: dict[Mode, tuple[Mode, ...]] = {
    "ar": ("sd", "mirror"),
    "sd": ("ar", "mirror"),
    "mirror": ("ar",),
}
"""The modes to try from each mode, for what it cannot show itself: the target alone shows its own
speed, a window the draft's acceptance rate, the mirror the hit rate of its roots."""
_FAR = 1.5
"""A mode predicted to be this many times slower is not tried: the target alone, whose times are
known, or a draft that has just been reviewed."""
_NEAR = 1.2
"""The same for a draft that has been used before, so that its times are known too."""
_WORTH = 0.97
"""Share of the target's own time per token below which a draft is used. The best of a hundred
predictions is often too good to be true."""
_STAY = 0.99
"""The same for a draft in use, which a dozen unlucky windows should not end."""
_FIRST_PAUSE, _LONGEST_PAUSE = 48, 384
"""Tokens between two trials, at first and at most, if the trials cost nothing."""
_LONGEST_WAIT = 1024
"""Most tokens before the next trial, whatever the last one cost."""
_HOLD: dict[Mode, int] = {"ar": 8, "sd": 2, "mirror": 2}
"""How often at most a stable plan is kept before it is reconsidered, which takes time from the
lanes."""


@dataclass
class _Turn:
    """When a mode may be tried again: tokens between trials, and tokens until the next."""

    pause: int = _FIRST_PAUSE
    until: int = _FIRST_PAUSE


@dataclass
class Controller:
    """Chooses for one pair on its devices; keeps what it has learned between answers."""

    costs: Costs
    experience: Experience = field(default_factory=Experience)
    probing: bool = False
    """Whether the last plan is for one step only."""
    _chosen: Strategy | None = None
    _pace: float = 0.0
    """Predicted seconds per token of the chosen plan."""
    _hold: int = 0
    """How often it could be kept when it was last evaluated."""
    _held: int = 0
    """How often it may still be kept."""
    _among: Sequence[Strategy] = ()
    """The plans last chosen from: those of the `_law`, and what to `_look_up` beside them."""
    _law: StepLaw | None = None
    _look_up: LookUp | None = None
    _copying: bool = False
    """Whether the last window was looked up: a trial would cost more than it is charged for."""
    _trial: Trial | None = None
    """The latest one, finished or not."""
    _turns: dict[Mode, _Turn] = field(default_factory=lambda: {"ar": _Turn(), "mirror": _Turn()})
    """For the target alone, and for the draft in either mode."""

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        """The plan for the next step."""
        law, look_up = self._law, self._look_up
        if law is None or look_up is None or (among is not self._among and among != self._among):
            law, look_up = self._begin(among)
        self._among = among
        chosen = self._plan(law)
        self.probing = chosen is not self._chosen
        return chosen if self.probing else look_up.beside(chosen, self._pace, self.experience)

    def _begin(self, among: Sequence[Strategy]) -> tuple[StepLaw, LookUp]:
        """Choose from `among` from now on."""
        drafted = [plan for plan in among if plan.drafter == "model"]
        if self._chosen not in drafted:
            self._chosen = None
        self._trial = None
        self._law, self._look_up = StepLaw(self.costs, drafted), LookUp(self.costs, among)
        return self._law, self._look_up

    def _plan(self, law: StepLaw) -> Strategy:
        before, trial = self._chosen, self._trial
        if trial is not None and trial.left:
            if trial.reviewed:
                self._reconsider(trial, law)
            if trial.left:
                return trial.next()
        if self._held and before is not None and not self._due(law, before.mode):
            self._held -= 1
            return before
        best = self._best(law)
        self._pace, chosen = min(best.values(), key=lambda found: found[0])
        worth = _WORTH if before is None or before.mode == "ar" else _STAY
        if self._pace > worth * best["ar"][0]:
            self._pace, chosen = best["ar"]
        self._chosen = chosen
        if before is None or chosen.mode != before.mode:
            self._hold = 0
            if before is not None and (left := self._turns.get(before.mode)) is not None:
                left.until = max(left.until, left.pause)
            if before is None or "ar" in (chosen.mode, before.mode):  # The text may have changed.
                for turn in self._turns.values():
                    turn.pause = max(turn.pause // 2, _FIRST_PAUSE)
                    turn.until = max(turn.until, turn.pause)
        else:
            self._hold = min(2 * self._hold + 1, _HOLD[chosen.mode])
        self._held = self._hold
        teachers = [] if self._copying else self._due(law, chosen.mode)
        if not teachers:
            return chosen
        # The one predicted to be fastest is tried first.
        seconds, tried = min((best[mode] for mode in teachers), key=lambda found: found[0])
        turn = self._turn(tried.mode)
        turn.pause = turn.until = min(2 * turn.pause, _LONGEST_PAUSE)
        if tried.mode == "ar" and seconds > _FAR * self._pace:
            return chosen
        self._trial = trial = Trial.of(tried)
        return trial.next()

    def _reconsider(self, trial: Trial, law: StepLaw) -> None:
        """After a review: continue the trial with the best plan of its mode, or end it and evaluate
        all plans, if windows would add nothing.
        """
        trial.reviewed, best, mode = False, self._best(law), trial.plan.mode
        seconds, trial.plan = best[mode]
        far = _NEAR if self.experience.host[mode].learnt else _FAR
        if self._turn(mode).pause == _LONGEST_PAUSE:
            # Its times are learned only while it is used, so they may be out of date.
            far = math.inf
        if not _WORTH < seconds / best["ar"][0] < far:
            trial.left = self._held = 0

    def _best(self, law: StepLaw) -> dict[Mode, tuple[float, Strategy]]:
        """By mode: the predicted seconds per token of its best plan, and that plan."""
        seconds = law.seconds_a_token(self.experience)
        best = {mode: at[seconds[at].argmin()] for mode, at in law.modes.items()}
        return {mode: (float(seconds[at]), law.plans[at]) for mode, at in best.items()}

    def _due(self, law: StepLaw, mode: Mode) -> list[Mode]:
        """The modes that should now be tried from `mode`."""
        return [
            teacher
            for teacher in _TEACHERS[mode]
            if teacher in law.modes and self._turn(teacher).until <= 0
        ]

    def _turn(self, mode: Mode) -> _Turn:
        return self._turns["ar" if mode == "ar" else "mirror"]

    def learn(self, step: StepRecord) -> None:
        """Learn from a step."""
        self.experience.learn(step, self.costs)
        for mode, turn in self._turns.items():
            if self._chosen is None or mode != self._chosen.mode:
                turn.until -= step.committed
        self._copying = step.drafter == "ngram"
        chosen, trial = self._chosen, self._trial
        if chosen is None or trial is None or trial.plan.mode == chosen.mode:
            return
        if trial.learn(step, self._pace):
            turn = self._turn(trial.plan.mode)
            turn.until = 0 if trial.gained else min(turn.pause + trial.owed, _LONGEST_WAIT)
            if trial.gained and not trial.left:
                turn.pause = _FIRST_PAUSE
