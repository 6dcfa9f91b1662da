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
"""`ar`: the target alone. `sd`: draft, then verify. `mirror`: both at the same time."""

DrafterName = Literal["model", "ngram"]

ExitPlace = Literal["target", "draft"]
"""The model on whose device the exit head runs."""

STRICT_WIDTH = 8
"""Rows of every target forward with `strict`."""

_DEFAULT_WINDOW, _DEFAULT_CANDIDATES, _DEFAULT_BRANCHES = 3, 4, 8

_POOL = 256
"""Candidates among which noise picks the likeliest outcomes."""
_WINDOWS = [1, 2, 3, 4, 5, 6, 7]
_LOOKED_UP = (1, 2, 4, 7)
_CANDIDATES = 8
"""κ in mode `auto`."""
_BRANCHES: list[int | None] = [1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32]


@dataclass(frozen=True)
class Speculation:
    """What the caller asks for; None leaves it to the controller, or to a default in other modes.

    Attributes:
        mode: one of the modes, or `auto`, which chooses the best one at every step.
        window: γ, draft tokens per window.
        candidates: κ, outcomes considered per row of the window; None is 8 in `auto`, otherwise 4.
        branches: R, outcomes prepared for in total; `all` for κ·(γ+1).
        drafter: the bundle's draft model, or look-up of n-grams in prompt and answer; None is the
            model, and in `auto` whichever is faster at the moment.
        exit_head: the model on whose device the exit head runs; None is the target, and in `auto`
            whichever is better.
        head_start: whether the draft continues on its own while the target's prefix runs; None: if
            it has a device of its own.
        strict: run every step of the target at one width and read every prompt again, so that not
            even rounding differs between modes.
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
        """Refuse invalid values.

        Raises:
            OptionError: naming the option at fault.
        """
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
    """What one step does: a `Speculation` with nothing left open."""

    mode: Mode
    window: int
    candidates: int
    branches: int | None
    """None for all."""
    width: int
    """Rows that every target forward is padded to; 0 for no padding."""
    exit_head: ExitPlace = "target"
    head_start: bool = False
    drafter: DrafterName = "model"
    """In mode `sd`: with `ngram` the window is looked up when the step begins."""
    look_up: tuple[int, ...] = ()
    """By length of a match in prompt and answer, from 1: the window to look up, in place of this
    plan's own step, if there is such a match; 0 for none."""

    def pool(self, sampling: Sampling) -> int:
        """Candidates to request per row: one to spare, more if noise re-ranks them."""
        return max(self.candidates + 1, 0 if sampling.temperature == 0.0 else _POOL)


def resolve(asked: Speculation, *, can_draft: bool, apart: bool = False) -> Strategy:
    """The strategy of an answer; in mode `auto` the one it begins with.

    `apart` is whether the draft has a device of its own.

    Raises:
        OptionError: if the mode needs a draft and there is none.
    """
    mode = asked.mode
    if mode == "auto":
        mode = "mirror" if can_draft else "ar"
    elif mode != "ar" and not can_draft:
        raise OptionError(
            f"mode {mode} needs a draft, and this bundle has none. "
            "Use the n-gram drafter, mode ar, or export the bundle with --draft."
        )
    branches = _DEFAULT_BRANCHES if asked.branches is None else asked.branches
    return Strategy(
        mode,
        asked.window or _DEFAULT_WINDOW,
        asked.candidates or _DEFAULT_CANDIDATES,
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
    """Every strategy that mode `auto` may choose, given what the caller fixed.

    Without a draft model these are `ar` and looked-up windows. `apart` is whether the draft has a
    device of its own, `exit_heads` are the devices that have an exit head.
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
