"""A serial draft: one branch without guesses, one token per forward, causal attention.

It runs between two passes of the target, where every microsecond counts, so it does without the
bookkeeping of `Growth`, of which it is the simplest case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.growth import Growing, embedded, known

if TYPE_CHECKING:
    from mirror_edge.lanes import Dropped
    from mirror_edge.protocols import DraftGraph
    from mirror_edge.sampling import Sampler
    from mirror_edge.trunk import Trunk

__all__ = ["Chain"]


class Chain:
    """One branch directly after the main rows, growing to `depth` tokens."""

    def __init__(
        self,
        graph: DraftGraph,
        sampler: Sampler,
        trunk: Trunk,
        branch: Growing,
        depth: int,
    ) -> None:
        """`branch` continues all of `trunk` and has no rows yet."""
        self._graph, self._sampler, self._trunk = graph, sampler, trunk
        self._branch, self._depth, self._slot = branch, depth, len(trunk)
        self._known = known(graph, sampler)

    def goes_on(self, dropped: Dropped | None) -> bool:
        """See `Growth.goes_on`."""
        branch = self._branch
        if len(branch.tokens) > self._depth or (dropped is not None and dropped.is_set()):
            return False
        return dropped is None or dropped.all_but in (None, branch.root)

    def forward(self, missing: int = 0) -> None:
        """See `Growth.forward`."""
        branch, slot, sampler = self._branch, self._slot, self._sampler
        trunk, start = self._trunk, slot - missing
        fed = embedded(self._graph, [*trunk.rows[len(trunk) - missing :], branch.tokens[-1]])
        next_place = slot + 1 + trunk.gone
        places, last = np.arange(start + trunk.gone, next_place), np.array([missing])
        logits = self._graph.forward(fed, places, start, None, last, None, 0)[:, : self._known]
        histories = [[*trunk.tokens, *branch.tokens]] if sampler.needs_history else None
        branch.tokens.append(int(sampler.choose(logits, [next_place], histories)[0]))
        branch.slots.append(slot)
        self._slot = slot + 1
