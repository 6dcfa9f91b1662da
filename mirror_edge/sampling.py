"""Sampling with one seed, one text.

The token at absolute position p is ``argmax_v(processed_logit(v) + G(seed, p, v))``, where G is
Gumbel noise from a counter-based hash; at temperature 0 it is the plain argmax. The noise depends
on nothing but (seed, p, v), so target, draft and exit head can each compute the same one, and the
text is a function of target, prompt, sampling and seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sampler", "Sampling", "gumbel"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the target's logits.

    Applied in this order: repetition penalty, temperature, top-k, top-p, min-p. Temperature 0 is
    greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, ok, allowed in (
            (
                "temperature",
                self.temperature == 0.0 or 1e-3 <= self.temperature < math.inf,
                "0 or at least 0.001",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", 0.0 <= self.min_p < 1.0, "0 (off) or more, below 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf, "above 0"),
        ):
            if not ok:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be {allowed}.")


def gumbel(seed: int, positions: Sequence[int], ids: NDArray[np.uint32]) -> NDArray[np.float32]:
    """G(seed, p, v), [positions, ids], for every v in `ids`; any subset gives the same values."""
    keys = [_splitmix(_splitmix(seed) ^ _splitmix(p ^ 0x5DEECE66D)) for p in positions]
    low, high = (np.array([[key >> s & 0xFFFFFFFF] for key in keys], np.uint32) for s in (0, 32))
    x = _mix(_mix(ids + low) ^ high)
    # 1 - w is exact in float64, so large noise (small w) keeps its precision.
    w = (x.astype(np.float64) + 0.5) * 2.0**-32
    noise: NDArray[np.float32] = -np.log(-np.log(1.0 - w).astype(np.float32))
    return noise


def _splitmix(x: int) -> int:
    mask = 0xFFFFFFFFFFFFFFFF
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


_TOGETHER = 8
"""Positions whose noise is made together."""


class Sampler:
    """Chooses tokens under one `Sampling`; keeps the noise of recent positions.

    It is made for some positions at a time, which takes little longer than for one.
    """

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        """A sampler for logits at most `vocabulary` wide."""
        self.sampling = sampling
        self._ids = np.arange(vocabulary, dtype=np.uint32)
        # Target and draft lane ask for the same positions, from two threads.
        self._noise = lru_cache(maxsize=16)(self._block)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return len(self._ids)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is all that counts."""
        return self.sampling.temperature == 0.0 and not self.needs_history

    @property
    def needs_history(self) -> bool:
        """Whether `choose` must be told the tokens before each row."""
        return self.sampling.repetition_penalty != 1.0

    def noise(self, position: int) -> NDArray[np.float32]:
        """G(seed, position, v) for the whole vocabulary."""
        noise: NDArray[np.float32] = self._noise(position // _TOGETHER)[position % _TOGETHER]
        return noise

    def prepare(self, position: int) -> None:
        """Have the noise at `position` ready, so that nobody waits for it there."""
        if self.sampling.temperature > 0.0:
            self.noise(position)

    def _block(self, block: int) -> NDArray[np.float32]:
        first = block * _TOGETHER
        return gumbel(self.sampling.seed, range(first, first + _TOGETHER), self._ids)

    def choose(
        self,
        logits: NDArray[np.float32],
        positions: Sequence[int],
        histories: Sequence[Sequence[int]] | None = None,
    ) -> NDArray[np.int64]:
        """The token of every row.

        `logits` is [n, V'] with V' at most the vocabulary, `positions` the absolute position of
        each chosen token, `histories` the tokens before it (only for a repetition penalty).
        """
        chosen = self.sampling
        scaled, contest = self._contest(logits, positions, histories)
        tokens = contest.argmax(axis=-1)
        if chosen.temperature > 0.0 and chosen.top_p < 1.0:
            for row in range(len(tokens)):
                tokens[row] = _nucleus(scaled[row], contest[row], int(tokens[row]), chosen.top_p)
        return np.asarray(tokens, dtype=np.int64)

    def best(
        self,
        logits: NDArray[np.float32],
        positions: Sequence[int],
        count: int,
        histories: Sequence[Sequence[int]] | None = None,
    ) -> NDArray[np.int64]:
        """The `count` tokens [n, count] of every row that are likeliest to be chosen, best first.

        Arguments as for `choose`. `top_p` does not count: it would seldom change a guess.
        """
        _, contest = self._contest(logits, positions, histories)
        if count == 1:
            return np.asarray(contest.argmax(axis=-1), dtype=np.int64)[:, None]
        count = min(count, contest.shape[1])
        top = np.argpartition(contest, -count, axis=-1)[:, -count:]
        order = np.argsort(-np.take_along_axis(contest, top, axis=-1), axis=-1)
        return np.asarray(np.take_along_axis(top, order, axis=-1), dtype=np.int64)

    def _contest(
        self,
        logits: NDArray[np.float32],
        positions: Sequence[int],
        histories: Sequence[Sequence[int]] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits as they are sampled from, and what the tokens compete with: noise is in there."""
        chosen = self.sampling
        if self.needs_history:
            if histories is None:
                raise ValueError("a repetition penalty needs the histories")
            logits = np.stack(
                [_penalised(row, h, chosen) for row, h in zip(logits, histories, strict=True)]
            )
        if chosen.temperature == 0.0:
            return logits, logits
        width = logits.shape[1]
        scaled = _top_k(logits / np.float32(chosen.temperature), chosen.top_k)
        kept = _min_p(scaled, chosen.min_p)
        contest = kept.copy() if chosen.top_p < 1.0 and kept is scaled else kept
        for row, position in zip(contest, positions, strict=True):
            row += self.noise(position)[:width]
        return scaled, contest

    def scores(
        self, ids: NDArray[np.int64], logprobs: NDArray[np.float32], positions: Sequence[int]
    ) -> NDArray[np.float32]:
        """What each candidate would compete with: log p at temperature 0, else log p / T + G.

        `ids` and `logprobs` are [n, k], `positions` the n absolute positions.
        """
        if self.sampling.temperature == 0.0:
            return logprobs
        # The whole position's noise is needed in a moment anyway, to verify the same row.
        noise = np.stack([self.noise(p)[row] for p, row in zip(positions, ids, strict=True)])
        scores: NDArray[np.float32] = logprobs / np.float32(self.sampling.temperature) + noise
        return scores


def _penalised(
    row: NDArray[np.float32], history: Sequence[int], sampling: Sampling
) -> NDArray[np.float32]:
    """Tokens of the history lose: positive logits divided by the penalty, negative multiplied."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    seen = seen[seen < len(row)]
    row, penalty = row.copy(), np.float32(sampling.repetition_penalty)
    row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return row


def _top_k(logits: NDArray[np.float32], top_k: int) -> NDArray[np.float32]:
    """`logits` [n, V] with all below the k-th best at minus infinity."""
    if not 0 < top_k < logits.shape[1]:
        return logits
    floor = np.partition(logits, -top_k, axis=-1)[:, -top_k, None]
    return np.where(logits < floor, np.float32(-np.inf), logits)


def _min_p(logits: NDArray[np.float32], min_p: float) -> NDArray[np.float32]:
    """`logits` [n, V] with all less likely than `min_p` times the likeliest at minus infinity."""
    if min_p == 0.0:
        return logits
    floor = logits.max(axis=-1, keepdims=True) + np.float32(math.log(min_p))
    return np.where(logits < floor, np.float32(-np.inf), logits)


def _nucleus(
    row: NDArray[np.float32], contest: NDArray[np.float32], token: int, top_p: float
) -> int:
    """The winner of `contest` among the tokens that the nucleus of `row` keeps.

    A token is kept if the likelier ones together have less than `top_p`. What excludes a token
    excludes all less likely ones, so the winner is found without sorting the row.
    """
    weights: NDArray[Any] = np.exp(row - row.max())
    # Python floats, since a tiny `top_p` is 0 in float32 and would exclude even the likeliest.
    limit = top_p * float(weights.sum())
    while float(weights[row > row[token]].sum()) >= limit:
        contest = np.where(row <= row[token], np.float32(-np.inf), contest)
        token = int(contest.argmax())
    return token
