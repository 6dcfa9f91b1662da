"""How to speculate: the mode, and how much to guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mirror_edge.errors import OptionError
from mirror_edge.sampling import Sampling

__all__ = ["STRICT_WIDTH", "DrafterName", "Mode", "Speculation", "Strategy", "resolve"]

Mode = Literal["ar", "sd", "mirror"]
"""`ar`: the target alone. `sd`: draft, then verify. `mirror`: both at once."""

DrafterName = Literal["model", "ngram"]

STRICT_WIDTH = 8
"""Rows of every target forward under `strict`."""

_POOL = 64


@dataclass(frozen=True)
class Speculation:
    """What the caller asks for.

    Attributes:
        mode: one of the modes, or `auto`: `mirror` where there is a draft, else `ar`.
        window: γ, draft tokens a window.
        candidates: κ, outcomes prepared for a row.
        branches: R, outcomes prepared for in all; None for κ·(γ+1).
        drafter: the bundle's draft model, or look-up of n-grams in prompt and answer.
        strict: run every step of the target at one width and read every prompt anew, so that not
            even rounding tells modes apart.
    """

    mode: Literal["auto", "ar", "sd", "mirror"] = "auto"
    window: int = 3
    candidates: int = 4
    branches: int | None = 8
    drafter: DrafterName = "model"
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be honoured."""
        if self.mode not in ("auto", *get_args(Mode)):
            raise OptionError(f"mode is {self.mode!r}; it must be auto, ar, sd or mirror.")
        if self.drafter not in get_args(DrafterName):
            raise OptionError(f"drafter is {self.drafter!r}; it must be model or ngram.")
        for name in ("window", "candidates", "branches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it must be 1 or more.")
        if self.strict and self.window >= STRICT_WIDTH:
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
    width: int
    """Rows every target forward is padded to; 0 for none."""

    def pool(self, sampling: Sampling) -> int:
        """Candidates to ask of the exit head: one to drop, more where the noise re-ranks them."""
        return max(self.candidates + 1, 0 if sampling.temperature == 0.0 else _POOL)


def resolve(asked: Speculation, *, can_draft: bool) -> Strategy:
    """The strategy of an answer.

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
    return Strategy(
        mode,
        asked.window,
        asked.candidates,
        asked.branches,
        STRICT_WIDTH if asked.strict else 0,
    )
