"""How to speculate: the mode, and how much to guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mirror_edge.errors import OptionError
from mirror_edge.sampling import Sampling
from mirror_edge.values import require_whole

__all__ = [
    "STRICT_WIDTH",
    "DrafterName",
    "ExitPlace",
    "Mode",
    "Speculation",
    "Strategy",
    "choices",
    "resolve",
]

Mode = Literal["ar", "sd", "mirror"]
"""`ar`: the target alone. `sd`: draft, then verify. `mirror`: both at once."""

DrafterName = Literal["model", "ngram"]

ExitPlace = Literal["target", "draft"]
"""On whose device the exit head runs."""

STRICT_WIDTH = 8
"""Rows of every target forward under `strict`."""

DEFAULT_WINDOW, DEFAULT_CANDIDATES, DEFAULT_BRANCHES = 3, 4, 8

_POOL = 256
_WINDOWS = [1, 2, 3, 4, 5, 6, 7]
_LOOKED_UP = (1, 2, 4, 7)
_CANDIDATES = 8
_BRANCHES: list[int | None] = [1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32]


@dataclass(frozen=True)
class Speculation:
    """What the caller asks for; None leaves it to the controller, or to a default in other modes.

    Attributes:
        mode: one of the modes, or `auto`: the best of them, chosen anew for every step.
        window: γ, draft tokens a window.
        candidates: κ, outcomes prepared for a row.
        branches: R, outcomes prepared for in all; `all` for κ·(γ+1).
        drafter: the bundle's draft model, or look-up of n-grams in prompt and answer; None is the
            model, and in `auto` either, whichever pays at the moment.
        exit_head: on whose device the exit head runs; None is the target's, and in `auto` the
            better one.
        head_start: whether the draft goes on with its own choice while the target's prefix runs;
            None is where it has a device of its own.
        strict: run every step of the target at one width and read every prompt anew, so that not
            even rounding tells modes apart.
    """

    mode: Literal["auto", "ar", "sd", "mirror"] = "auto"
    window: int | None = None
    candidates: int | None = None
    branches: int | Literal["all"] | None = None
    drafter: DrafterName | None = None
    exit_head: ExitPlace | None = None
    head_start: bool | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be honoured."""
        if self.mode not in ("auto", *get_args(Mode)):
            raise OptionError(f"mode is {self.mode!r}; it must be auto, ar, sd or mirror.")
        if self.drafter not in (None, *get_args(DrafterName)):
            raise OptionError(f"drafter is {self.drafter!r}; it must be model or ngram.")
        if self.exit_head not in (None, *get_args(ExitPlace)):
            raise OptionError(f"exit_head is {self.exit_head!r}; it must be target or draft.")
        if self.head_start not in (None, True, False):
            raise OptionError(f"head_start is {self.head_start!r}; it must be True or False.")
        if self.strict not in (True, False):
            raise OptionError(f"strict is {self.strict!r}; it must be True or False.")
        for name in ("window", "candidates", "branches"):
            value = getattr(self, name)
            if value is None or (name, value) == ("branches", "all"):
                continue
            require_whole(name, value)
            if value < 1:
                raise OptionError(f"{name} is {value}; it must be 1 or more.")
        if self.strict and (self.window or 0) >= STRICT_WIDTH:
            raise OptionError(
                f"window is {self.window}; with strict it must be below {STRICT_WIDTH}."
            )


@dataclass(frozen=True)
class Strategy:
    """What one step does: `Speculation` with nothing left open."""

    mode: Mode
    window: int
    candidates: int
    branches: int | None
    """None for all."""
    width: int
    """Rows every target forward is padded to; 0 for none."""
    exit_head: ExitPlace = "target"
    head_start: bool = False
    drafter: DrafterName = "model"
    """Of a step in mode `sd`: with `ngram` its window is looked up as it begins."""
    look_up: tuple[int, ...] = ()
    """By the length of a match in prompt and answer, from 1 on: the window that is looked up
    instead of this step, where there is such a match; 0 for none."""

    def pool(self, sampling: Sampling) -> int:
        """Candidates to ask of the exit head: one to drop, more where the noise re-ranks them."""
        return max(self.candidates + 1, 0 if sampling.temperature == 0.0 else _POOL)


def resolve(asked: Speculation, *, can_draft: bool, apart: bool = False) -> Strategy:
    """The strategy of an answer; in mode `auto` the one it begins with.

    `apart` is whether the draft has a device of its own.

    Raises:
        OptionError: if the mode was named and there is no draft for it.
    """
    mode = asked.mode
    if mode == "auto":
        mode = "mirror" if can_draft else "ar"
    elif mode != "ar" and not can_draft:
        raise OptionError(
            f"mode {mode} needs a draft, and this bundle has none. "
            "Use the n-gram drafter, mode ar, or export the bundle with --draft."
        )
    branches = DEFAULT_BRANCHES if asked.branches is None else asked.branches
    return Strategy(
        mode,
        asked.window or DEFAULT_WINDOW,
        asked.candidates or DEFAULT_CANDIDATES,
        None if branches == "all" else branches,
        STRICT_WIDTH if asked.strict else 0,
        asked.exit_head or "target",
        apart if asked.head_start is None else asked.head_start,
    )


def choices(
    asked: Speculation,
    *,
    can_draft: bool = True,
    apart: bool = False,
    exit_heads: Sequence[ExitPlace] = ("target",),
) -> list[Strategy]:
    """Every strategy that mode `auto` may choose from under what the caller fixed.

    Without a draft model there is `ar`, and windows that are looked up. `apart` is whether the
    draft has a device of its own, `exit_heads` where there are some.
    """
    first = resolve(replace(asked, mode="ar"), can_draft=True, apart=apart)
    windows = [asked.window] if asked.window else _WINDOWS
    if asked.strict:
        windows = [window for window in windows if window < STRICT_WIDTH]
    candidates = asked.candidates or _CANDIDATES
    places = exit_heads if asked.exit_head is None else (first.exit_head,)
    serial = [replace(first, mode="sd", window=window) for window in windows]
    every = [first.branches] if asked.branches else _BRANCHES
    mirrored = [
        replace(plan, mode="mirror", candidates=candidates, branches=branches, exit_head=place)
        for plan in serial
        for branches in every
        for place in places
    ]
    looked_up = [
        replace(plan, drafter="ngram")
        for plan in serial
        if asked.drafter is None and (asked.window or plan.window in _LOOKED_UP)
    ]
    return [first, *(serial + mirrored if can_draft else ()), *looked_up]
