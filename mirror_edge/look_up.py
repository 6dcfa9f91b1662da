"""Which windows mode `auto` looks up in place of its plan's own steps: those that beat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mirror_edge.costs import Costs
from mirror_edge.experience import Experience
from mirror_edge.policy import Strategy

__all__ = ["LookUp"]

_SURE = 0.95
"""Share of the plan's time per token below which a window is looked up."""
_EVERY = 4
"""Plans between two updates."""


class LookUp:
    """The windows that may be looked up, beside any plan of the same choice."""

    def __init__(self, costs: Costs, among: Sequence[Strategy]) -> None:
        """Look up those of the plans `among` that do."""
        self._costs = costs
        self._windows = [plan.window for plan in among if plan.drafter == "ngram"]
        self._plans = 0
        self._by_match: tuple[int, ...] = ()
        """See `Strategy.look_up`."""

    def beside(self, plan: Strategy, pace: float, known: Experience) -> Strategy:
        """`plan`, which takes `pace` seconds per token, with the windows to look up instead."""
        if not self._windows:
            return plan
        if self._plans % _EVERY == 0:
            self._by_match = self._faster(pace, known)
        self._plans += 1
        return replace(plan, look_up=self._by_match)

    def _faster(self, pace: float, known: Experience) -> tuple[int, ...]:
        """By length of a match: the window to look up, if that beats `pace`; otherwise 0."""
        costs, windows = self._costs, self._windows
        target, host = known.pace.factor("ar"), known.pace.now.value * known.host["ar"].value
        steps = [target * (costs.prefix(n + 1) + costs.suffix(n + 1)) + host for n in windows]
        found = []
        for right in known.look_up:
            p = right.mean
            tokens = [sum(p**j for j in range(n + 1)) for n in windows]
            paces = [step / count for step, count in zip(steps, tokens, strict=True)]
            best, window = min(zip(paces, windows, strict=True))
            found.append(window if best < _SURE * pace else 0)
        return tuple(found)
