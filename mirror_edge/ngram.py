"""A drafter without a model: what followed the last time these words were said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mirror_edge.hypotheses import Branch, Root

if TYPE_CHECKING:
    from mirror_edge.lanes import Dropped
    from mirror_edge.sampling import Sampler

__all__ = ["NgramDrafter"]


class NgramDrafter:
    """Looks the last n tokens up in prompt and answer, longest n first, latest match first."""

    def __init__(self, longest: int = 3) -> None:
        """Match up to `longest` tokens."""
        self._longest = longest
        self._committed: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget the last answer and index `tokens`."""
        self._committed, self._ends = [], {}
        self._learn(tokens)

    def rollout(
        self,
        committed: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
        sampler: Sampler,  # noqa: ARG002 - look-up proposes what was said, whatever the noise
        dropped: Dropped | None = None,  # noqa: ARG002 - it is over at once
    ) -> list[Branch]:
        """Continue the roots whose last tokens were seen before; see `Drafter.rollout`."""
        self._learn(committed)
        branches = []
        for root in roots:
            tail = [*self._committed[-self._longest :], *drafted[: root.row], root.token]
            if tokens := self._continuation(tail, depth):
                branches.append(Branch(root, tokens))
        return branches

    def close(self) -> None:
        """Nothing to release."""

    def _learn(self, tokens: Sequence[int]) -> None:
        """Note where each n-gram last ended. The newest tokens' own n-grams wait for a follower."""
        for token in tokens:
            end = len(self._committed)
            for n in range(1, min(self._longest, end) + 1):
                self._ends[tuple(self._committed[end - n : end])] = end
            self._committed.append(token)

    def _continuation(self, tail: Sequence[int], depth: int) -> tuple[int, ...]:
        for n in range(min(self._longest, len(tail)), 0, -1):
            end = self._ends.get(tuple(tail[-n:]))
            if end is not None:
                return tuple(self._committed[end : end + depth])
        return ()
