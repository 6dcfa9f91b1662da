"""Verification: which draft tokens the target accepts, and its own token after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mirror_edge.sampling import Sampler

__all__ = ["Verdict", "verify", "verify_greedy"]


class Verdict(NamedTuple):
    """The outcome of one window."""

    accepted: int
    """A: how many draft tokens were accepted, 0..γ."""
    correction: int
    """The target's own token after them (the bonus token when all were accepted)."""


def verify(
    logits: NDArray[np.float32],
    committed: Sequence[int],
    drafted: Sequence[int],
    sampler: Sampler,
) -> Verdict:
    """Accept d_{j+1} while it is the token that the target chooses at row j.

    Since both models share their sampling noise, equality is the acceptance rule at any
    temperature, and the text is that of the target alone.

    `logits` is [γ + 1, vocabulary]; row j predicts the token at position len(committed) + j. Rows
    are sampled one by one, since a token after the first disagreement is never needed.
    """
    for j in range(len(drafted) + 1):
        history = [*committed, *drafted[:j]] if sampler.needs_history else ()
        token = int(sampler.choose(logits[j : j + 1], [len(committed) + j], [history])[0])
        if j == len(drafted) or token != drafted[j]:
            return Verdict(j, token)
    raise AssertionError("the last row always decides")


def verify_greedy(chosen: NDArray[np.int64], drafted: Sequence[int]) -> Verdict:
    """The same for a greedy answer, from the most likely token of every row, [γ + 1]."""
    tokens: list[int] = chosen.tolist()
    accepted = 0
    while accepted < len(drafted) and drafted[accepted] == tokens[accepted]:
        accepted += 1
    return Verdict(accepted, tokens[accepted])
