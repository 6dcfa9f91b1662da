"""Roots, branches and the hypothesis tree: which outcomes the draft prepares for.

The window is y0 d1..dγ. The target will accept some d1..dA and then choose a token of its own, the
correction c. A root (j, v) is the outcome A = j, c = v; its branch is how the draft would go on
(the hypothesis tree of Mirror-SD, arXiv 2510.13161, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.sampling import Sampler

__all__ = ["Branch", "ExitSignal", "HypothesisTree", "Root", "choose_roots", "possible"]


@dataclass(frozen=True)
class ExitSignal:
    """The message of the token channel: the exit head's candidates for every row of a window.

    M_t in Mirror-SD, section 3.1: top-κ tokens with their log-probabilities.
    """

    ids: NDArray[np.int64]
    """[rows, k] token ids, best first."""
    logprobs: NDArray[np.float32]
    """[rows, k], natural logarithms at the exit layer."""


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

    def lookup(self, accepted: int, correction: int) -> Branch | None:
        """The branch prepared for this outcome, if any."""
        return self._branches.get(Root(accepted, correction))


def possible(
    signal: ExitSignal, committed: Sequence[int], drafted: Sequence[int], sampler: Sampler
) -> ExitSignal:
    """`signal`, with candidates that the sampler's constraint forbids at a probability of 0.

    The rows follow `committed` and the window's `drafted`. A row with no other candidates gets
    tokens that are allowed instead: usually there is just one.
    """
    ids, logprobs = signal.ids.copy(), signal.logprobs.copy()
    for j in range(len(ids)):
        allowed = sampler.allowed([*committed, *drafted[:j]])
        if allowed is None:
            continue
        if not allowed[ids[j]].any():
            found = np.flatnonzero(allowed[: sampler.vocabulary])[: ids.shape[1]]
            ids[j, : len(found)], logprobs[j] = found, 0.0
        logprobs[j, ~allowed[ids[j]]] = -np.inf
    return ExitSignal(ids, logprobs)


def choose_roots(
    signal: ExitSignal,
    drafted: Sequence[int],
    first_position: int,
    candidates: int,
    agreement: float,
    sampler: Sampler,
) -> list[Root]:
    """The outcomes worth preparing for, most likely first.

    Row j's candidates are the `candidates` best of the signal under the shared noise, without
    d_{j+1}, which is not a correction. The paper prepares for all of them; here they are ranked by
    ``reach(j) · leave(j) · p_j(v)``, so that a small device can prepare for the first R: the
    probability that d1..dj are accepted, that d_{j+1} is not, and that v comes instead. The
    probability that d_{j+1} is accepted is the larger of the exit head's estimate and the
    acceptance rate so far: a weak exit head must not hide the far end of the window.

    Args:
        signal: the exit head's candidates, one row a window row.
        drafted: the window's draft tokens d1..dγ.
        first_position: absolute position of the token that row 0 predicts.
        candidates: κ, counted after d_{j+1} is dropped.
        agreement: the acceptance rate of draft tokens so far, 0..1.
        sampler: ranks with the noise that target and draft use too.
    """
    rows = len(signal.ids)
    positions = range(first_position, first_position + rows)
    scores = sampler.scores(signal.ids, signal.logprobs, positions)
    ids, all_chances = signal.ids, _softmax(scores)
    if scores is not signal.logprobs:  # Noise has changed their order.
        order = np.arange(rows)[:, None], np.argsort(-scores, axis=-1)[:, : candidates + 1]
        ids, all_chances = ids[order], all_chances[order]
    tokens = ids[:, : candidates + 1].tolist()
    chances = all_chances[:, : candidates + 1].tolist()
    ranked: list[tuple[float, Root]] = []
    reach = 1.0
    for j in range(rows):
        found = list(zip(tokens[j], chances[j], strict=True))
        share = reach
        if j < len(drafted):
            # Outside the candidates it is at most as likely as the last of them.
            seen = next((p for v, p in found if v == drafted[j]), chances[j][-1])
            accepted = max(seen, agreement)
            share *= (1.0 - accepted) / max(1.0 - seen, _TINY)
            reach *= accepted
            found = [(v, p) for v, p in found if v != drafted[j]]
        ranked += [(share * p, Root(j, v)) for v, p in found[:candidates] if p > 0.0]
    ranked.sort(key=lambda root: -root[0])
    return [root for _, root in ranked]


_TINY = 1e-9


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
