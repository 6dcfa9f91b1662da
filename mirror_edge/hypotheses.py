"""Roots, branches and the hypothesis tree: which outcomes the draft prepares for.

The window is y0 d1..dγ. The target will accept some d1..dA and then say a token of its own, the
correction c. A root (j, v) is the outcome A = j, c = v; its branch is how the draft would go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mirror_edge.protocols import ExitSignal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.sampling import Sampler

__all__ = ["Branch", "HypothesisTree", "Root", "choose_roots"]


class Root(NamedTuple):
    """The outcome in which d1..d`row` are accepted and `token` comes next."""

    row: int
    token: int


class Branch(NamedTuple):
    """A root and the draft's continuation after it."""

    root: Root
    tokens: tuple[int, ...]


class HypothesisTree:
    """The branches of one rollout, found by their outcome."""

    def __init__(self, branches: Iterable[Branch]) -> None:
        """Index `branches` by their roots."""
        self._branches = {branch.root: branch for branch in branches}

    def __len__(self) -> int:
        """The number of branches."""
        return len(self._branches)

    def lookup(self, accepted: int, correction: int) -> Branch | None:
        """The branch prepared for this outcome, if any."""
        return self._branches.get(Root(accepted, correction))


def choose_roots(
    signal: ExitSignal,
    drafted: Sequence[int],
    first_position: int,
    candidates: int,
    budget: int | None,
    sampler: Sampler,
) -> list[Root]:
    """The outcomes worth preparing for, likeliest first.

    Row j's candidates are the `candidates` best of the signal under the shared noise, less d_{j+1}
    (that one is no correction). With a `budget`, only so many roots are kept, ranked by
    ``reach(j) · p_j(v)``: the exit head's probability that d1..dj are accepted and v comes next.

    Args:
        signal: the exit head's candidates, one row a window row.
        drafted: the window's draft tokens d1..dγ.
        first_position: absolute position of the token that row 0 predicts.
        candidates: κ, counted after d_{j+1} is dropped.
        budget: R, or None for all.
        sampler: ranks with the noise that target and draft use too.
    """
    rows = len(signal.ids)
    positions = range(first_position, first_position + rows)
    scores = sampler.scores(signal.ids, signal.logprobs, positions)
    chances = _softmax(scores)
    roots: list[tuple[float, Root]] = []
    reach = 1.0
    for j in range(rows):
        agreed = drafted[j] if j < len(drafted) else None
        order = np.argsort(-scores[j], kind="stable")
        corrections = [int(i) for i in order if int(signal.ids[j, i]) != agreed][:candidates]
        roots += [
            (reach * float(chances[j, i]), Root(j, int(signal.ids[j, i]))) for i in corrections
        ]
        if agreed is not None:
            reach *= _chance_of(agreed, signal.ids[j], chances[j])
    roots.sort(key=lambda ranked: -ranked[0])
    return [root for _, root in roots[:budget]]


def _chance_of(token: int, ids: NDArray[np.int64], chances: NDArray[np.float32]) -> float:
    """A token outside the candidates is at most as likely as the last of them."""
    found = np.flatnonzero(ids == token)
    return float(chances[found[0]] if len(found) else chances.min())


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
