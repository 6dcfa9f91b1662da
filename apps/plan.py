"""What the simulator predicts for a profile: a table of modes, and the effect of γ, κ and R."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from mirror_edge.policy import ExitPlace, Mode, Speculation, Strategy, choices
from mirror_edge.runtimes.simulated import simulate

if TYPE_CHECKING:
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.runtimes.scripts import Script
    from mirror_edge.stats import Stats
    from mirror_edge.trace import Trace

__all__ = ["Outlook", "Plan", "modes", "runs", "sweeps"]

_WINDOWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
_CANDIDATES = (1, 2, 3, 4, 6, 8)
_BUDGETS = (1, 2, 4, 8, 16, 32, 64, None)


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    profile: Profile
    script: Script
    window: int
    candidates: int
    branches: int | None
    streams: int
    """0 for a draft without any."""
    head_start: bool
    """In mode `mirror`; `auto` always gives one."""
    prompt_tokens: int
    new_tokens: int

    def run(self, mode: Mode | Literal["auto"], trace: Trace | None = None) -> Stats:
        """The answer's figures in this mode; its spans go to `trace`."""
        first: Mode = "ar" if mode == "auto" else mode
        return simulate(
            self.profile,
            self.script,
            Strategy(
                first,
                self.window,
                self.candidates,
                self.branches,
                width=0,
                head_start=self.head_start,
            ),
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            streams=self.streams,
            choices=self._choices() if mode == "auto" else (),
            trace=trace,
        )

    def _choices(self) -> list[Strategy]:
        places: list[ExitPlace] = ["target"]
        if self.profile.costs.exit_beside is not None:
            places.append("draft")
        return choices(Speculation(mode="auto"), apart=True, exit_heads=places)


@dataclass(frozen=True)
class Outlook:
    """The result of a setting. Times are means per step, in milliseconds."""

    setting: str
    tokens_per_second: float
    tokens_per_step: float
    hit_rate: float | None
    step: float
    prefix: float
    exit: float
    suffix: float
    draft: float
    """In which only the draft ran while the step waited."""
    host: float
    """In which nothing ran, hand-overs included."""

    @classmethod
    def of(cls, setting: str, stats: Stats) -> Outlook:
        """From the figures of an answer."""
        figures, steps = stats.as_dict(), stats.steps
        mean = {
            name: 1e3 * fmean(getattr(step, name) for step in steps)
            for name in ("seconds", "prefix", "exit", "suffix", "host")
        }
        step = mean.pop("seconds")
        return cls(
            setting=setting,
            tokens_per_second=figures["tokens_per_second"],
            tokens_per_step=figures["tokens_per_step"],
            hit_rate=figures["hit_rate"],
            step=step,
            draft=max(0.0, step - sum(mean.values())),
            **mean,
        )


def modes(plan: Plan, done: Callable[[], None]) -> Iterator[Outlook]:
    """Every mode, without and with streams and a head start; `done` is called after each."""
    for mode, streams, early in _modes(plan):
        name = f"{mode} + streams" if streams and mode != "auto" else mode
        if early:
            name = "+ head start"
        yield Outlook.of(name, replace(plan, streams=streams, head_start=early).run(mode))
        done()


def _modes(plan: Plan) -> list[tuple[Mode | Literal["auto"], int, bool]]:
    some: list[int] = [0, plan.streams] if plan.streams else [0]
    return [
        ("ar", 0, False),
        *(("sd", streams, False) for streams in some),
        *(("mirror", streams, False) for streams in some),
        ("mirror", some[-1], True),
        ("auto", some[-1], False),
    ]


def sweeps(plan: Plan, done: Callable[[], None]) -> dict[str, list[Outlook]]:
    """Mode `mirror` with one setting varied at a time; `done` is called after each run."""

    def outlook(name: str, value: Any) -> Outlook:
        found = Outlook.of(str(value or "all"), replace(plan, **{name: value}).run("mirror"))
        done()
        return found

    return {name: [outlook(name, value) for value in values] for name, values in _SWEPT.items()}


_SWEPT: dict[str, tuple[int | None, ...]] = {
    "window": _WINDOWS,
    "candidates": _CANDIDATES,
    "branches": _BUDGETS,
}


def runs(plan: Plan) -> int:
    """How many runs the table and the sweeps take."""
    return len(_modes(plan)) + sum(len(values) for values in _SWEPT.values())
