"""The controller of mode `auto`: the plan that promises the most tokens a second.

It predicts every plan's step by the step law, from measured costs and from what the steps so far
have taught, and takes the best. What a mode cannot teach is found out by trying another one now and
then; the more that cost, the rarer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from mirror_edge.costs import Costs
from mirror_edge.experience import Experience
from mirror_edge.policy import Mode, Strategy
from mirror_edge.stats import StepRecord

__all__ = ["Controller"]

_PROBE: dict[Mode, int] = {"ar": 5, "mirror": 2}
"""Steps of a probe: the target's first ones still stand beside the last draft."""
_TEACHERS: dict[Mode, tuple[Mode, ...]] = {
    "ar": ("mirror",),
    "sd": ("ar", "mirror"),
    "mirror": ("ar",),
}
"""Whom to learn from: the target alone shows how fast it is, the mirror what its roots hit."""
_FAR = 1.5
"""The target alone is seldom asked when it is held to be slower than that: its times are no guess,
but it may have been seen in a burst only."""
_WORTH = 0.97
"""Of the target's own time a token: a draft must promise to be faster by so much. What promises
most among a hundred plans is often held for better than it is."""
_SURE = 0.95
"""Of the plan's time a token: what is looked up must be faster by so much."""
_EVERY = 4
"""Steps between two looks at what is looked up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 48, 384
"""Tokens between two probes that cost nothing."""
_PROBING = 0.0025
"""Of all tokens, those that the windows of probes may cost."""
_LONGEST_WAIT = 2048
"""Tokens before the next probe, whatever the last one cost."""
_HOLD: dict[Mode, int] = {"ar": 32, "sd": 4, "mirror": 4}
"""Steps for which a plan that lasts is kept at most: planning takes time from the lanes."""


@dataclass
class _Turn:
    """When a mode is tried again, in tokens."""

    pause: int = _FIRST_PAUSE
    until: int = _FIRST_PAUSE
    passed: int = 0
    """Tokens for which it was passed over, since it was held to be far slower."""


@dataclass
class Controller:
    """Chooses for one pair on its devices; keeps what it has learnt between answers."""

    costs: Costs
    experience: Experience = field(default_factory=Experience)
    _chosen: Strategy | None = None
    _pace: float = 0.0
    """Seconds that a token takes under it, by prediction."""
    _hold: int = 0
    """Steps that it was to be kept for when it was last weighed."""
    _held: int = 0
    """Those of them to come."""
    _among: Sequence[Strategy] = ()
    """What was chosen from last: plans that `_drafted`, and `_windows` that are looked up."""
    _drafted: Sequence[Strategy] = ()
    _windows: Sequence[int] = ()
    _look_up: tuple[int, ...] = ()
    """See `Strategy.look_up`."""
    _given: tuple[tuple[Strategy, tuple[int, ...]], Strategy] | None = None
    """A plan and what it was to look up, and the two in one."""
    _planned: int = 0
    _copying: bool = False
    """Whether the last step was looked up: a probe would cost more than it is booked for."""
    _probe: Strategy | None = None
    _left: int = 0
    """Steps of the probe to come."""
    _modes: Collection[Mode] = ()
    """Those that there are plans of."""
    _turns: dict[Mode, _Turn] = field(default_factory=lambda: {mode: _Turn() for mode in _PROBE})

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        """The next step's plan."""
        if among is not self._among:
            self._among, self._planned = among, 0
            self._drafted = [plan for plan in among if plan.drafter == "model"]
            self._modes = {plan.mode for plan in self._drafted}
            self._windows = [plan.window for plan in among if plan.drafter == "ngram"]
        chosen = self._plan(self._drafted)
        if not self._windows or chosen is not self._chosen:  # a probe
            return chosen
        if self._planned % _EVERY == 0:
            self._look_up = self._looked_up(self._windows)
        self._planned += 1
        if self._given is None or (chosen, self._look_up) != self._given[0]:
            self._given = (chosen, self._look_up), replace(chosen, look_up=self._look_up)
        return self._given[1]

    def _plan(self, among: Sequence[Strategy]) -> Strategy:
        before, probe = self._chosen, self._probe
        if self._left and probe is not None and probe in among:
            self._left -= 1
            return probe
        if self._held and before is not None and before in among and not self._due(before.mode):
            self._held -= 1
            return before
        best: dict[Mode, tuple[float, Strategy]] = {}
        for seconds, plan in zip(self.seconds_a_token(among), among, strict=True):
            if plan.mode not in best or seconds < best[plan.mode][0]:
                best[plan.mode] = seconds, plan
        self._pace, chosen = min(best.values(), key=lambda found: found[0])
        if "ar" in best and self._pace > _WORTH * best["ar"][0]:
            self._pace, chosen = best["ar"]
        self._chosen = chosen
        if before is None or chosen.mode != before.mode:
            self._hold = 0
            if before is not None and (left := self._turns.get(before.mode)) is not None:
                left.until = max(left.until, left.pause)
            if before is None or "ar" in (chosen.mode, before.mode):  # It may be another text now.
                for turn in self._turns.values():
                    turn.pause = turn.until = max(turn.pause // 2, _FIRST_PAUSE)
        else:
            self._hold = min(2 * self._hold + 1, _HOLD[chosen.mode])
        self._held = self._hold
        teachers = [] if self._copying else self._due(chosen.mode)
        if not teachers:
            return chosen
        # The one that is held to come closest is the first to be asked.
        seconds, probe = min((best[mode] for mode in teachers), key=lambda found: found[0])
        turn = self._turns[probe.mode]
        turn.pause = turn.until = min(2 * turn.pause, _LONGEST_PAUSE)
        if probe.mode == "ar" and seconds > _FAR * self._pace and turn.passed < _LONGEST_WAIT:
            turn.passed += turn.pause
            return chosen
        turn.passed = 0
        self._probe, self._left = probe, _PROBE[probe.mode] - 1
        return probe

    def _due(self, mode: Mode) -> list[Mode]:
        """Whom `mode` should ask now."""
        return [
            teacher
            for teacher in _TEACHERS[mode]
            if teacher in self._modes and self._turns[teacher].until <= 0
        ]

    def _looked_up(self, windows: Sequence[int]) -> tuple[int, ...]:
        """By the length of a match: the window to look up where that is faster than the plan."""
        costs, known = self.costs, self.experience
        target, host = known.target["ar"].value, known.host["ar"].value
        steps = [target * (costs.prefix(n + 1) + costs.suffix(n + 1)) + host for n in windows]
        found = []
        for right in known.look_up:
            p = right.mean
            tokens = [sum(p**j for j in range(n + 1)) for n in windows]
            paces = [step / count for step, count in zip(steps, tokens, strict=True)]
            pace, window = min(zip(paces, windows, strict=True))
            found.append(window if pace < _SURE * self._pace else 0)
        return tuple(found)

    def learn(self, step: StepRecord) -> None:
        """Take in what a step was like."""
        self.experience.learn(step, self.costs)
        for mode, turn in self._turns.items():
            if self._chosen is None or mode != self._chosen.mode:
                turn.until -= step.committed
        self._copying = step.drafter == "ngram"
        chosen, probe = self._chosen, self._probe
        # The first step of the draft's probe has no window: it only waits for what is read up.
        telling = step.drafter == "model" and (step.proposed > 0 or step.mode == "ar")
        if telling and chosen and probe and step.mode == probe.mode != chosen.mode:
            lost, turn = step.seconds / self._pace - step.committed, self._turns[probe.mode]
            if lost < (_WORTH - 1.0) * step.committed:
                turn.until -= turn.pause
                turn.pause, turn.passed = _FIRST_PAUSE, _LONGEST_WAIT
            owed = int(max(0.0, lost) / _PROBING)
            turn.until = min(turn.until + owed, _LONGEST_WAIT)

    def seconds_a_token(self, plans: Sequence[Strategy]) -> list[float]:
        """What a token is predicted to take under each of `plans`, by the law of the step."""
        costs, known = self.costs, self.experience
        host = {mode: host.value for mode, host in known.host.items()}
        factors = {mode: target.value for mode, target in known.target.items()}
        rows = {1 if plan.mode == "ar" else plan.window + 1 for plan in plans}
        times = {n: (costs.prefix(n), costs.suffix(n)) for n in rows}
        exits = {n: costs.exit(n) for n in rows}
        again = known.fresh.value
        fresh = {n: again * costs.serial(n - 1) for n in rows if n > 1} | {1: 0.0}
        away = {n: (costs.exit_beside or costs.exit)(n) for n in rows}
        tokens = known.tokens(max(rows) - 1)
        shapes = {(_roots(plan), plan.window) for plan in plans if plan.mode == "mirror"}
        missed = {r: 1.0 - known.hit_rate(r) for r in {r for r, _ in shapes}}
        slower, beside = known.rollout.value, known.beside.value * costs.beside
        suffixes = {n: beside * factors["mirror"] * suffix for n, (_, suffix) in times.items()}
        rollouts = {
            (r, gamma): slower * costs.rollout(r, gamma, suffixes[gamma + 1]) for r, gamma in shapes
        }
        found = []
        for plan in plans:
            n = 1 if plan.mode == "ar" else plan.window + 1
            prefix, suffix = (factors[plan.mode] * seconds for seconds in times[n])
            step = prefix + suffix + fresh[n]
            if plan.mode == "mirror":
                r = _roots(plan)
                if plan.exit_head == "draft":
                    step = prefix + max(suffixes[n], away[n] + rollouts[r, plan.window])
                else:
                    step = prefix + exits[n] + max(suffixes[n], rollouts[r, plan.window])
                step += missed[r] * fresh[n]
            found.append((step + host[plan.mode]) / tokens[n - 1])
        return found


def _roots(plan: Strategy) -> int:
    return plan.branches or (plan.window + 1) * plan.candidates
