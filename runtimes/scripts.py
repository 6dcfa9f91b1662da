"""What simulated models say: how far draft and exit head agree with the target, and nothing else.

A script knows a text by its `state`, a number a row: what stands before the next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RecordedScript", "Script", "StatedScript"]

_WORDS = 512
_NOWHERE = 1 << 30
_OFF = np.uint64(1 << 63)


class Script(Protocol):
    """The target, its exit head and the draft, as functions of the tokens so far."""

    vocabulary: int
    start: int
    """The state before the first token."""

    def after(self, states: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The states once these tokens follow, one each."""
        ...

    def target(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What the target says next."""
        ...

    def draft(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What the draft says next."""
        ...

    def exit(
        self, states: NDArray[np.uint64], candidates: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The exit head's tokens and their log-probabilities, [n, candidates], best first."""
        ...

    def streams(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What the draft's streams say, [n, s]: stream k its own token k + 1 places ahead."""
        ...


class StatedScript:
    """Models that agree as often as is stated, token by token and by chance alone.

    Everything is a hash of seed and text, so that every mode and setting meets the same text.
    The chances are independent: of each other and of the place. The exit head's confidence is
    that of a rank, the same at every place, and it never names what the draft got wrong.
    """

    vocabulary = _WORDS

    def __init__(
        self,
        agreement: float,
        coverage: Sequence[float],
        streams: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        """`coverage` is Ω_1, Ω_2, …: how often the truth is among the exit head's first κ.

        `streams` holds how often each stream is right about what the draft itself will say.
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
        ranks[ranks == len(self._coverage)] = _NOWHERE
        return _candidates(_word(states), ranks, candidates, self._logprobs)

    def streams(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.streams`."""
        return _ahead(self, states, self._right)


class RecordedScript:
    """Models that agree where those of a recording did, in the places of the recorded text.

    Off the recorded text the draft is always right and the exit head never: nothing that is said
    there is ever committed.
    """

    vocabulary = _WORDS
    start = 0

    def __init__(
        self,
        draft: Sequence[bool],
        exit_ranks: Sequence[int | None],
        streams: Sequence[float] = (),
    ) -> None:
        """For every place: whether the draft says the truth, and its rank at the exit head.

        `streams` as in `StatedScript`.
        """
        self._right = streams
        self._places = len(draft)
        self._wrong = ~np.array([*draft, True])
        ranks = [_NOWHERE if rank is None else rank for rank in exit_ranks]
        self._ranks = np.array([*ranks, _NOWHERE])
        counts = np.bincount([rank for rank in ranks if rank != _NOWHERE], minlength=1)
        self._logprobs = _logprobs(np.cumsum(counts) / max(1, len(ranks)))

    def after(self, states: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
        """See `Script.after`."""
        on_text = (tokens == _word(states)) & (states < self._places)
        return np.where(on_text, states + np.uint64(1), _mix(states + _TARGET) | _OFF)

    def target(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.target`."""
        return _word(states)

    def draft(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.draft`."""
        return _guess(_word(states), self._wrong[self._place(states)])

    def exit(
        self, states: NDArray[np.uint64], candidates: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Script.exit`."""
        ranks = self._ranks[self._place(states)]
        return _candidates(_word(states), ranks, candidates, self._logprobs)

    def streams(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        """See `Script.streams`."""
        return _ahead(self, states, self._right)

    def _place(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        return np.minimum(states, np.uint64(self._places)).astype(np.int64)


_TARGET, _DRAFT, _EXIT, _STREAM = (
    np.uint64(0x9E3779B97F4A7C15 * salt % 2**64) for salt in (1, 2, 3, 5)
)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _word(states: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The target's token."""
    return (_mix(states + _TARGET) % np.uint64(_WORDS)).astype(np.int64)


def _guess(words: NDArray[np.int64], wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The draft's: a wrong one is never among the exit head's candidates."""
    return (words + wrong * (_WORDS // 2)) % _WORDS


def _ahead(script: Script, states: NDArray[np.uint64], right: Sequence[float]) -> NDArray[np.int64]:
    """What streams say that are right so often."""
    said = np.empty((len(states), len(right)), dtype=np.int64)
    reached = states
    for stream, share in enumerate(right):
        reached = script.after(reached, script.draft(reached))
        wrong = _chance(states + _STREAM * np.uint64(stream + 1)) >= share
        said[:, stream] = _guess(script.draft(reached), wrong)
    return said


def _candidates(
    words: NDArray[np.int64],
    ranks: NDArray[np.int64],
    candidates: int,
    logprobs: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The exit head's lists, with the target's word at its rank in each."""
    place = np.arange(min(candidates, _WORDS // 2 - 1))
    distance = np.where(place == ranks[:, None], 0, place + 1)
    row = logprobs[np.minimum(place, len(logprobs) - 1)]
    return (words[:, None] + distance) % _WORDS, np.tile(row, (len(words), 1))


def _logprobs(coverage: NDArray[np.float64]) -> NDArray[np.float32]:
    """Of a rank; a later one is never likelier than an earlier one."""
    chances = np.minimum.accumulate(np.diff(coverage, prepend=0.0))
    found: NDArray[np.float32] = np.log(np.maximum(chances, 1e-9)).astype(np.float32)
    return found


def _chance(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    """[0, 1) from a number."""
    return (_mix(x) >> np.uint64(11)).astype(np.float64) * 2.0**-53
