"""The draft model as a drafter: all branches of a rollout advance together, one forward a token.

The cache holds the main rows (committed and drafted tokens, in order) in its first slots and the
rows of the last rollout's branches behind them. When a branch comes true its rows are moved up to
the main ones, so nothing the draft has computed is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mirror_edge.hypotheses import Branch, Root

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.protocols import DraftGraph
    from mirror_edge.sampling import Sampler

__all__ = ["ModelDrafter"]

_CHUNK = 256


class _Grown(NamedTuple):
    """A branch of the last rollout as the cache has it."""

    after: int
    """Main rows it continues."""
    tokens: tuple[int, ...]
    """Root and all fed tokens; the last drafted token was never fed."""
    slots: tuple[int, ...]


class ModelDrafter:
    """A `Drafter` over one draft graph."""

    def __init__(self, graph: DraftGraph) -> None:
        """Draft with `graph`, whose cache becomes this drafter's own."""
        self._context = graph.context
        self._graph = graph
        self._committed: list[int] = []
        self._rows: list[int] = []
        self._grown: list[_Grown] = []

    def prefill(self, tokens: Sequence[int]) -> None:
        """Take `tokens` as the committed ones, keeping the rows they share with the cache."""
        self._committed = list(tokens)
        self._settle(self._committed)
        self._feed_main(self._committed)

    def rollout(
        self,
        committed: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
        sampler: Sampler,
        dropped: Event | None = None,
    ) -> list[Branch]:
        """Continue every root that fits by `depth` tokens; see `Drafter.rollout`."""
        self._committed += committed
        trunk = [*self._committed, *drafted][: self._context]
        self._settle(trunk)
        self._feed_main(trunk[: len(trunk) - 1])
        base = len(self._committed)
        depth = min(depth, self._context - base - max((r.row for r in roots), default=0) - 1)
        roots = roots[: (self._graph.slots - len(trunk)) // max(depth, 1)] if depth > 0 else ()
        if not roots:
            return []
        parents = np.array([base + root.row for root in roots])
        missing = trunk[len(self._rows) :]
        hidden = _hidden(parents, len(trunk), depth)
        tokens = np.empty((len(roots), depth + 1), dtype=np.int64)
        tokens[:, 0] = [root.token for root in roots]
        for step in range(depth):
            if step > 0 and dropped is not None and dropped.is_set():
                depth = step
                break
            fed, start = tokens[:, step], len(trunk) + step * len(roots)
            positions, unseen = parents + step, hidden[:, : start + len(roots)]
            if step == 0 and missing:
                # Main rows that nobody fed yet go along in front, plainly causal.
                fed, start = np.concatenate([missing, fed]), len(self._rows)
                positions = np.concatenate([np.arange(start, len(trunk)), positions])
                nothing = np.zeros((len(missing), unseen.shape[1]), dtype=np.bool_)
                unseen = np.concatenate([nothing, unseen])
            wanted = np.arange(len(fed) - len(roots), len(fed))
            logits = self._forward(fed, positions, start, unseen, wanted)[:, : self._limit(sampler)]
            if step == 0:
                self._rows += missing
            tokens[:, step + 1] = sampler.choose(
                logits,
                (parents + step + 1).tolist(),
                _histories(trunk, parents, tokens[:, : step + 1])
                if sampler.needs_history
                else None,
            )
        slots = len(trunk) + np.arange(depth) * len(roots) + np.arange(len(roots))[:, None]
        spelled = tokens[:, : depth + 1].tolist()
        self._grown = [
            _Grown(parent, tuple(row[:-1]), tuple(where))
            for parent, row, where in zip(parents.tolist(), spelled, slots.tolist(), strict=True)
        ]
        return [Branch(root, tuple(row[1:])) for root, row in zip(roots, spelled, strict=True)]

    def close(self) -> None:
        """Release the graph."""
        self._graph.close()

    def _settle(self, trunk: Sequence[int]) -> None:
        """Make the main rows the longest stretch of `trunk` that the cache can spell."""
        shared = _common(self._rows, trunk)
        best: _Grown | None = None
        length = shared
        for grown in self._grown:
            if grown.after <= shared:
                reach = grown.after + _common(grown.tokens, trunk[grown.after :])
                if reach > length:
                    best, length = grown, reach
        if best is not None:
            self._graph.move(best.slots[: length - best.after], best.after)
        self._rows = list(trunk[:length])
        self._grown = []

    def _feed_main(self, tokens: Sequence[int]) -> None:
        """Feed what is missing of `tokens`, in chunks, as plain causal rows."""
        while len(self._rows) < min(len(tokens), self._context):
            start = len(self._rows)
            chunk = list(tokens[start : min(start + _CHUNK, self._context)])
            self._forward(
                np.array(chunk, dtype=np.int64),
                np.arange(start, start + len(chunk)),
                start,
                None,
                np.array([len(chunk) - 1]),
            )
            self._rows += chunk

    def _forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        if tokens.max() >= self._graph.vocabulary:
            # The target knows ids (its padding) that the draft has no embedding for.
            tokens = np.where(tokens < self._graph.vocabulary, tokens, 0)
        return self._graph.forward(tokens, positions, start, hidden, wanted)

    def _limit(self, sampler: Sampler) -> int:
        """Tokens that draft and target both know."""
        return min(self._graph.vocabulary, sampler.vocabulary)


def _histories(
    trunk: Sequence[int], parents: NDArray[np.int64], tokens: NDArray[np.int64]
) -> list[list[int]]:
    """The tokens before each branch's next one."""
    return [[*trunk[:parent], *row.tolist()] for parent, row in zip(parents, tokens, strict=True)]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common start of two sequences."""
    shortest = min(len(a), len(b))
    if list(a[:shortest]) == list(b[:shortest]):
        return shortest
    return next(i for i in range(shortest) if a[i] != b[i])


def _hidden(parents: NDArray[np.int64], trunk: int, depth: int) -> NDArray[np.bool_]:
    """[roots, trunk + depth·roots]: the slots that the rows of each branch must not see.

    They see the main rows that they continue and their own branch; the causal rule hides the rest.
    """
    count = len(parents)
    hidden = np.ones((count, trunk + depth * count), dtype=np.bool_)
    hidden[:, :trunk] = np.arange(trunk) >= parents[:, None]
    own = np.arange(count)
    for step in range(depth):
        hidden[own, trunk + step * count + own] = False
    return hidden
