"""The controller of mode `auto`: the plan that promises the most tokens a second.

It predicts every plan's step by the step law, from measured costs and from what the steps so far
have taught, and takes the best. What a mode cannot teach is found out by trying another one now and
then; the less that brought, the rarer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mirror_edge.costs import Costs
from mirror_edge.experience import Experience
from mirror_edge.policy import Mode, Strategy
from mirror_edge.stats import StepRecord

__all__ = ["Controller"]

_PROBE = 2
"""Steps of a probe."""
_FIRST_PAUSE, _LONGEST_PAUSE = 48, 768
"""Tokens between two probes."""


@dataclass
class Controller:
    """Chooses for one pair on its devices; keeps what it has learnt between answers."""

    costs: Costs
    experience: Experience = field(default_factory=Experience)
    _chosen: Mode | None = None
    _probe: Strategy | None = None
    _left: int = 0
    """Steps of the probe to come."""
    _pause: int = _FIRST_PAUSE
    _until: int = _FIRST_PAUSE
    """Tokens before the next probe."""

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        """The next step's plan."""
        if self._left and self._probe is not None and self._probe in among:
            self._left -= 1
            return self._probe
        best: dict[Mode, tuple[float, Strategy]] = {}
        for seconds, plan in zip(self.seconds_a_token(among), among, strict=True):
            if plan.mode not in best or seconds < best[plan.mode][0]:
                best[plan.mode] = seconds, plan
        chosen = min(best.values(), key=lambda found: found[0])[1]
        if chosen.mode != self._chosen:
            self._chosen, self._pause, self._until = chosen.mode, _FIRST_PAUSE, _FIRST_PAUSE
        # Whoever drafts learns how often that is right; only the mirror learns what its roots hit.
        teacher = best.get("mirror") or best.get("sd")
        if self._until > 0 or teacher is None or teacher[1].mode == chosen.mode:
            return chosen
        self._pause = self._until = min(2 * self._pause, _LONGEST_PAUSE)
        self._probe, self._left = teacher[1], _PROBE - 1
        return self._probe

    def learn(self, step: StepRecord) -> None:
        """Take in what a step was like."""
        self.experience.learn(step, self.costs)
        self._until -= step.committed

    def seconds_a_token(self, plans: Sequence[Strategy]) -> list[float]:
        """What a token is predicted to take under each of `plans`, by the law of the step."""
        costs, known = self.costs, self.experience
        p, factor = known.acceptance.mean, known.target.mean
        host = {mode: known.host[mode].mean for mode in known.host}
        forward = known.fresh.mean * costs.draft(1)
        beside = known.beside.mean * costs.beside
        rows = {1 if plan.mode == "ar" else plan.window + 1 for plan in plans}
        times = {n: (factor * costs.prefix(n), factor * costs.suffix(n)) for n in rows}
        exits = {n: costs.exit(n) for n in rows}
        tokens = {n: sum(p**j for j in range(n)) for n in rows}
        roots = {_roots(plan) for plan in plans if plan.mode == "mirror"}
        missed = {r: 1.0 - known.hit_rate(r) for r in roots}
        found = []
        for plan in plans:
            n, gamma = (1, 0) if plan.mode == "ar" else (plan.window + 1, plan.window)
            prefix, suffix = times[n]
            step = prefix + suffix + gamma * forward
            if plan.mode == "mirror":
                r = _roots(plan)
                rollout = known.rollout.mean * costs.rollout(r, gamma, beside * suffix)
                step = prefix + exits[n] + max(beside * suffix, rollout)
                step += missed[r] * gamma * forward
            found.append((step + host[plan.mode]) / tokens[n])
        return found


def _roots(plan: Strategy) -> int:
    return plan.branches or (plan.window + 1) * plan.candidates
