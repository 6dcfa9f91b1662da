"""Sampling with one seed, one text.

The token at absolute position p is ``argmax_v(processed_logit(v) + G(seed, p, v))``, where G is
Gumbel noise from a counter-based hash; at temperature 0 it is the plain argmax. The noise depends
only on (seed, p, v), so target, draft and exit head can each compute it, and the text depends only
on target, prompt, sampling parameters and seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.errors import OptionError
from mirror_edge.noise import TOGETHER, noise_of
from mirror_edge.values import require_number, require_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.grammar import Constraint

__all__ = ["FORESIGHT", "LEAST_TEMPERATURE", "Sampler", "Sampling"]

LEAST_TEMPERATURE = 0.001
"""The lowest temperature above 0, which is greedy."""
_HOTTEST, _LEAST_PENALTY, _MOST_PENALTY, _MOST_TAKEN = 1e6, 0.001, 1000.0, 100
"""Limits that keep float32 logits finite."""
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
FORESIGHT = 24
"""How many positions ahead to prepare noise: further than a window and its branches."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the target's logits.

    Applied in this order: penalties, temperature, top-k, top-p, min-p. Temperature 0 is greedy;
    `top_k` 0, `top_p` 1, `min_p` 0, a `repetition_penalty` of 1 and other penalties of 0 are off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """What prompt and answer have already becomes less likely, if it is above 1."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """The same, as many times as the answer has the token."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            OptionError: naming the parameter.
        """
        for name in ("top_k", "seed"):
            require_whole(name, getattr(self, name))
        for name in ("temperature", "top_p", "min_p", *_PENALTIES):
            require_number(name, getattr(self, name))
        for name, ok, allowed in (
            (
                "temperature",
                self.temperature == 0.0 or LEAST_TEMPERATURE <= self.temperature <= _HOTTEST,
                f"0, or {LEAST_TEMPERATURE} to {_HOTTEST:.0f}",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", 0.0 <= self.min_p < 1.0, "0 (off) or more, below 1"),
            (
                "repetition_penalty",
                _LEAST_PENALTY <= self.repetition_penalty <= _MOST_PENALTY,
                f"{_LEAST_PENALTY} to {_MOST_PENALTY:.0f}",
            ),
            *(
                (name, abs(getattr(self, name)) <= _MOST_TAKEN, f"{-_MOST_TAKEN} to {_MOST_TAKEN}")
                for name in ("presence_penalty", "frequency_penalty")
            ),
        ):
            if not ok:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be {allowed}.")


class Sampler:
    """Chooses tokens under one `Sampling`; caches the noise of recent positions.

    Noise is computed for several positions at once, which takes hardly longer than for one.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: int,
        start: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """A sampler for logits at most `vocabulary` wide, in an answer that begins at `start`.

        With a `constraint` only tokens that it allows are chosen.
        """
        self.sampling, self.start = sampling, start
        self.constraint = constraint
        self._penalises = (
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        ) != (1.0, 0.0, 0.0)
        self._ids = np.arange(vocabulary, dtype=np.uint32)
        # Both lanes' threads use this cache. It does not hold the sampler, so it is freed with it.
        self._noise = lru_cache(maxsize=16)(partial(noise_of, int(sampling.seed), self._ids))

    def for_guesses(self) -> Sampler:
        """The same for the draft, whose lane follows a constraint by itself."""
        if self.constraint is None:
            return self
        other = copy(self)
        other.constraint = self.constraint.for_guesses()
        return other

    @property
    def settings(self) -> tuple[Sampling, int, int]:
        """What makes another sampler like this one, but for the constraint."""
        return self.sampling, self.vocabulary, self.start

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return len(self._ids)

    @property
    def is_greedy(self) -> bool:
        """Whether only the most likely token matters."""
        return self.sampling.temperature == 0.0 and not self.needs_history

    @property
    def needs_history(self) -> bool:
        """Whether `choose` needs the tokens before each row."""
        return self._penalises or self.constraint is not None

    def noise(self, position: int) -> NDArray[np.float32]:
        """G(seed, position, v) for the whole vocabulary."""
        noise: NDArray[np.float32] = self._noise(position // TOGETHER)[position % TOGETHER]
        return noise

    def prepare(self, first: int, last: int) -> None:
        """Compute the noise of positions `first` to `last`, so that no step waits for it."""
        if self.sampling.temperature > 0.0:
            for block in range(first // TOGETHER, last // TOGETHER + 1):
                self._noise(block)

    def choose(
        self,
        logits: NDArray[np.float32],
        positions: Sequence[int],
        histories: Sequence[Sequence[int]] | None = None,
    ) -> NDArray[np.int64]:
        """The token of every row.

        `logits` is [n, V'] with V' at most the vocabulary, `positions` the absolute position of
        each chosen token, `histories` the tokens before it, if they are needed.
        """
        logits = self._weighed(logits, histories)
        if self.sampling.temperature == 0.0:
            return np.asarray(logits.argmax(axis=-1), dtype=np.int64)
        # Row by row, so that a row's intermediate results stay in a CPU cache.
        tokens = [self._drawn(row, at) for row, at in zip(logits, positions, strict=True)]
        return np.array(tokens, dtype=np.int64)

    def best(
        self,
        logits: NDArray[np.float32],
        positions: Sequence[int],
        count: int,
        histories: Sequence[Sequence[int]] | None = None,
    ) -> NDArray[np.int64]:
        """The `count` tokens [n, count] of every row most likely to be chosen, best first.

        Arguments as for `choose`. `top_p` is ignored: it would rarely change a guess.
        """
        logits = self._weighed(logits, histories)
        if self.sampling.temperature == 0.0:
            contests = list(logits)
        else:
            contests = [
                self._contest(row, at)[1] for row, at in zip(logits, positions, strict=True)
            ]
        return np.array([_first(contest, count) for contest in contests], dtype=np.int64)

    def _weighed(
        self, logits: NDArray[np.float32], histories: Sequence[Sequence[int]] | None
    ) -> NDArray[np.float32]:
        """`logits` after penalty and constraint, which depend on the tokens before."""
        if not self.needs_history:
            return logits
        if histories is None:
            raise ValueError("a penalty or a constraint needs the histories")
        rows = zip(logits, histories, strict=True)
        return np.stack([self._admitted(self._penalised(row, past), past) for row, past in rows])

    def _penalised(self, row: NDArray[np.float32], past: Sequence[int]) -> NDArray[np.float32]:
        """`row` with the tokens of the `past` penalised.

        By repetition, positive logits are divided and negative ones multiplied.
        """
        if not self._penalises:
            return row
        asked, row = self.sampling, row.copy()
        seen, _ = _counted(past, len(row))
        by = np.float32(asked.repetition_penalty)
        row[seen] = np.where(row[seen] > 0, row[seen] / by, row[seen] * by)
        said, counts = _counted(past[self.start :], len(row))
        row[said] -= (asked.presence_penalty + asked.frequency_penalty * counts).astype(np.float32)
        return row

    def _admitted(self, row: NDArray[np.float32], past: Sequence[int]) -> NDArray[np.float32]:
        """`row` with what the constraint forbids at minus infinity."""
        allowed = self.allowed(past)
        if allowed is None:
            return row
        if (allowed := allowed[: len(row)]).any():
            return np.where(allowed, row, np.float32(-np.inf))
        if self.constraint is not None and self.constraint.guessing:
            return row  # A draft's head may name no allowed token.
        raise OptionError("the grammar demands a token that this model does not have.")

    def allowed(self, past: Sequence[int]) -> NDArray[np.bool_] | None:
        """The tokens that may follow the `past`, as a mask; None where all may."""
        if self.constraint is None or len(past) < self.start:
            return None
        return self.constraint.allowed(past[self.start :])

    def _contest(
        self, row: NDArray[np.float32], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A row [V'] after temperature and top-k, and the noisy scores its tokens compete with."""
        asked = self.sampling
        if asked.temperature != 1.0:
            row = row / np.float32(asked.temperature)
        row = _top_k(row, asked.top_k)
        return row, _min_p(row, asked.min_p) + self.noise(position)[: len(row)]

    def _drawn(self, row: NDArray[np.float32], position: int) -> int:
        """The token of a row at a temperature above 0."""
        top_p = self.sampling.top_p
        scaled, contest = self._contest(row, position)
        token = int(contest.argmax())
        return token if top_p == 1.0 else _nucleus(scaled, contest, token, top_p)

    def scores(
        self, ids: NDArray[np.int64], logprobs: NDArray[np.float32], positions: Sequence[int]
    ) -> NDArray[np.float32]:
        """What each candidate competes with: log p at temperature 0, else log p / T + G.

        `ids` and `logprobs` are [n, k], `positions` the n absolute positions.
        """
        if self.sampling.temperature == 0.0:
            return logprobs
        # The noise of the whole position is needed soon anyway, to verify the same row.
        noise = np.stack([self.noise(p)[row] for p, row in zip(positions, ids, strict=True)])
        scores: NDArray[np.float32] = logprobs / np.float32(self.sampling.temperature) + noise
        return scores


def _counted(tokens: Sequence[int], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different ones among `tokens` below `width`, and how often each is there."""
    found, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
    return found[found < width], counts[found < width]


def _first(contest: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The tokens with the `count` highest scores, best first."""
    if count == 1:
        return np.array([contest.argmax()], dtype=np.int64)
    count = min(count, len(contest))
    top = np.argpartition(contest, -count)[-count:]
    return top[np.argsort(-contest[top])]


def _top_k(row: NDArray[np.float32], top_k: int) -> NDArray[np.float32]:
    """`row` with everything below the k-th best at minus infinity."""
    if not 0 < top_k < len(row):
        return row
    floor = np.partition(row, -top_k)[-top_k]
    return np.where(row < floor, np.float32(-np.inf), row)


def _min_p(row: NDArray[np.float32], min_p: float) -> NDArray[np.float32]:
    """`row` with tokens less likely than `min_p` times the likeliest at minus infinity."""
    if min_p == 0.0:
        return row
    floor = row.max() + np.float32(math.log(min_p))
    return np.where(row < floor, np.float32(-np.inf), row)


def _nucleus(
    row: NDArray[np.float32], contest: NDArray[np.float32], token: int, top_p: float
) -> int:
    """The winner of `contest` among the tokens in the nucleus of `row`.

    A token is in it if all likelier ones together have less than `top_p`. What excludes a token
    excludes all less likely ones, so the winner is found without sorting the row.
    """
    weights: NDArray[Any] = np.exp(row - row.max())
    # Python floats, since a tiny `top_p` is 0 in float32 and would exclude even the likeliest.
    limit = top_p * float(weights.sum())
    while float(weights[row > row[token]].sum()) >= limit:
        contest = np.where(row <= row[token], np.float32(-np.inf), contest)
        token = int(contest.argmax())
    return token
