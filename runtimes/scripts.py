"""The output of simulated models: only how often draft and exit head agree with the target.

A script represents the tokens before a position by a state, one uint64 number per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RecordedScript", "Script", "StatedScript"]

_WORDS = 512
"""Vocabulary size."""
_UNRANKED = 1 << 30
"""The rank of a token that is not among the exit head's candidates."""
_OFF = np.uint64(1 << 63)
"""Set in the states of a `RecordedScript` that are off the recorded text."""


class Script(Protocol):
    """The target, its exit head and the draft, as functions of the tokens so far."""

    vocabulary: int
    start: int
    """The state before the first token."""

    def __hash__(self) -> int:
        """Every script has a text of its own."""
        ...

    def after(self, states: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The states after each is followed by its token."""
        ...

    def target(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The target's next tokens."""
        ...

    def draft(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The draft's next tokens."""
        ...

    def exit(
        self, states: NDArray[np.uint64], candidates: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The exit head's tokens and log-probabilities, each [n, candidates], best first."""
        ...

    def streams(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The streams' tokens [n, s]: stream k predicts the draft's token k + 1 positions ahead."""
        ...


class StatedScript:
    """Models that agree with given probabilities, independently at every token.

    Everything is a hash of seed and text, so that every mode and setting produces the same text.
    The probabilities are independent of each other and of the position. The exit head's confidence
    depends only on the rank, and the draft's wrong tokens are never among its candidates.
    """

    vocabulary = _WORDS

    def __init__(
        self,
        agreement: float,
        coverage: Sequence[float],
        streams: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        """Set the probabilities and the seed.

        Args:
            agreement: how often the draft predicts the target's token.
            coverage: Ω_1, Ω_2, …: how often the target's token is among the exit head's best κ.
            streams: how often each stream predicts the draft's own later token.
            seed: different seeds give different texts.
        """
        self.start = seed
        self._agreement, self._right = agreement, streams
        self._coverage = np.array(coverage)
        self._logprobs = _logprobs(self._coverage)

    def after(self, states: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
        """See `Script.after`."""
        return _mix(states ^ _mix(tokens.astype(np.uint64) + _TARGET))

    def target(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.target`."""
        return _word(states)

    def draft(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.draft`."""
        return _guess(_word(states), _chance(states + _DRAFT) >= self._agreement)

    def exit(
        self, states: NDArray[np.uint64], candidates: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Script.exit`."""
        ranks = np.searchsorted(self._coverage, _chance(states + _EXIT), side="right")
        ranks[ranks == len(self._coverage)] = _UNRANKED
        return _candidates(_word(states), ranks, candidates, self._logprobs)

    def streams(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.streams`."""
        return _ahead(self, states, self._right)


class RecordedScript:
    """Models that agree at the positions where those of a recording did.

    Off the recorded text, where no token is ever committed, the draft always predicts the target's
    token and the exit head never does.
    """

    vocabulary = _WORDS
    start = 0

    def __init__(
        self,
        draft: Sequence[bool],
        exit_ranks: Sequence[int | None],
        streams: Sequence[float] = (),
    ) -> None:
        """Take, for every position, whether the draft predicts the token and the token's rank.

        The rank is None where the exit head lacks the token; `streams` is as in `StatedScript`.
        """
        self._right = streams
        self._length = len(draft)
        self._wrong = ~np.array([*draft, True])
        ranks = [_UNRANKED if rank is None else rank for rank in exit_ranks]
        self._ranks = np.array([*ranks, _UNRANKED])
        counts = np.bincount([rank for rank in ranks if rank != _UNRANKED], minlength=1)
        self._logprobs = _logprobs(np.cumsum(counts) / max(1, len(ranks)))

    def after(self, states: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
        """See `Script.after`."""
        on_text = (tokens == _word(states)) & (states < self._length)
        return np.where(on_text, states + np.uint64(1), _mix(states + _TARGET) | _OFF)

    def target(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.target`."""
        return _word(states)

    def draft(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.draft`."""
        return _guess(_word(states), self._wrong[self._position(states)])

    def exit(
        self, states: NDArray[np.uint64], candidates: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Script.exit`."""
        ranks = self._ranks[self._position(states)]
        return _candidates(_word(states), ranks, candidates, self._logprobs)

    def streams(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.streams`."""
        return _ahead(self, states, self._right)

    def _position(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        return np.minimum(states, np.uint64(self._length)).astype(np.int64)


_TARGET, _DRAFT, _EXIT, _STREAM = (
    np.uint64(0x9E3779B97F4A7C15 * salt % 2**64) for salt in (1, 2, 3, 5)
)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _word(states: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The target's tokens."""
    return (_mix(states + _TARGET) % np.uint64(_WORDS)).astype(np.int64)


def _guess(words: NDArray[np.int64], wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The draft's tokens: `words`, or others where `wrong`, never among the candidates."""
    return (words + wrong * (_WORDS // 2)) % _WORDS


def _ahead(script: Script, states: NDArray[np.uint64], right: Sequence[float]) -> NDArray[np.int64]:
    """The tokens of streams that predict the draft's with probabilities `right`."""
    tokens = np.empty((len(states), len(right)), dtype=np.int64)
    reached = states
    for stream, share in enumerate(right):
        reached = script.after(reached, script.draft(reached))
        wrong = _chance(states + _STREAM * np.uint64(stream + 1)) >= share
        tokens[:, stream] = _guess(script.draft(reached), wrong)
    return tokens


def _candidates(
    words: NDArray[np.int64],
    ranks: NDArray[np.int64],
    candidates: int,
    logprobs: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The exit head's candidates, with the target's token at its rank in each row."""
    place = np.arange(min(candidates, _WORDS // 2 - 1))
    distance = np.where(place == ranks[:, None], 0, place + 1)
    row = logprobs[np.minimum(place, len(logprobs) - 1)]
    return (words[:, None] + distance) % _WORDS, np.tile(row, (len(words), 1))


def _logprobs(coverage: NDArray[np.float64]) -> NDArray[np.float32]:
    """The log-probability of each rank; they never rise from rank to rank."""
    chances = np.minimum.accumulate(np.diff(coverage, prepend=0.0))
    found: NDArray[np.float32] = np.log(np.maximum(chances, 1e-9)).astype(np.float32)
    return found


def _chance(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), by hashing `x`."""
    return (_mix(x) >> np.uint64(11)).astype(np.float64) * 2.0**-53
