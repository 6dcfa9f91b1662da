"""The draft model as a drafter: all branches of a rollout advance together, one forward a token.

The cache holds the main rows (committed and drafted tokens, in order) in its first slots and the
rows of the last rollout's branches behind them. When a branch comes true its rows are moved up to
the main ones, so nothing the draft has computed is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self.context = graph.context
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
    ) -> list[Branch]:
        """Continue every root that fits by `depth` tokens; see `Drafter.rollout`."""
        self._committed += committed
        trunk = [*self._committed, *drafted][: self.context]
        self._settle(trunk)
        self._feed_main(trunk[: len(trunk) - 1])
        base = len(self._committed)
        depth = min(depth, self.context - base - max((r.row for r in roots), default=0) - 1)
        roots = roots[: (self._graph.slots - len(trunk)) // max(depth, 1)] if depth > 0 else ()
        if not roots:
            return []
        parents = np.array([base + root.row for root in roots])
        tokens = np.array([[root.token] for root in roots], dtype=np.int64)
        missing = trunk[len(self._rows) :]
        limit = min(self._graph.vocabulary, sampler.vocabulary)
        for step in range(depth):
            fed = np.concatenate([missing, tokens[:, -1]]).astype(np.int64)
            positions = np.concatenate([np.arange(len(self._rows), len(trunk)), parents + step])
            logits = self._forward(
                fed,
                positions,
                len(trunk) + step * len(roots) - len(missing),
                _hidden(parents, len(trunk), step, len(missing)),
                np.arange(len(missing), len(fed)),
            )
            chosen = sampler.choose(
                logits[:, :limit],
                (parents + step + 1).tolist(),
                self._histories(trunk, parents, tokens) if sampler.needs_history else None,
            )
            tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
            if missing:
                self._rows += missing
                missing = []
        slots = len(trunk) + np.arange(depth)[None, :] * len(roots) + np.arange(len(roots))[:, None]
        self._grown = [
            _Grown(int(parent), tuple(row[:-1].tolist()), tuple(where.tolist()))
            for parent, row, where in zip(parents, tokens, slots, strict=True)
        ]
        return [
            Branch(root, tuple(row[1:].tolist())) for root, row in zip(roots, tokens, strict=True)
        ]

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
        while len(self._rows) < min(len(tokens), self.context):
            start = len(self._rows)
            chunk = list(tokens[start : min(start + _CHUNK, self.context)])
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
        # The target may know ids (its padding) that the draft has no embedding for.
        known = np.where(tokens < self._graph.vocabulary, tokens, 0)
        return self._graph.forward(known, positions, start, hidden, wanted)

    def _histories(
        self, trunk: Sequence[int], parents: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> list[list[int]]:
        return [
            [*trunk[:parent], *row.tolist()] for parent, row in zip(parents, tokens, strict=True)
        ]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common start of two sequences."""
    shortest = min(len(a), len(b))
    if list(a[:shortest]) == list(b[:shortest]):
        return shortest
    return next(i for i in range(shortest) if a[i] != b[i])


def _hidden(parents: NDArray[np.int64], trunk: int, step: int, missing: int) -> NDArray[np.bool_]:
    """[rows, trunk + (step + 1)·roots]: what this forward's rows must not see.

    A root's row sees the main rows it continues and its own branch; `missing` main rows, fed with
    the first step, stand before the roots and are plainly causal.
    """
    count = len(parents)
    hidden = np.zeros((missing + count, trunk + (step + 1) * count), dtype=np.bool_)
    branches = hidden[missing:]
    branches[:, :trunk] = np.arange(trunk) >= parents[:, None]
    own = np.arange(count)
    behind = branches[:, trunk:].reshape(count, step + 1, count)
    behind[...] = True
    behind[own, :, own] = False
    branches[:, trunk:] = behind.reshape(count, -1)
    return hidden
