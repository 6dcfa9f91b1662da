"""The draft model as a drafter: all branches of a rollout advance together.

The cache holds the main rows (committed and drafted tokens, in order) in its first slots and the
rows of the last rollout's branches behind them. When a branch comes true its rows are moved up to
the main ones, so nothing the draft has computed is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.chain import Chain
from mirror_edge.foresight import Foresight
from mirror_edge.growth import Growing, Growth, Guesses, behind, known
from mirror_edge.hypotheses import Branch, Root
from mirror_edge.protocols import StoppedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.lanes import Dropped
    from mirror_edge.protocols import Clock, DraftGraph
    from mirror_edge.sampling import Sampler

__all__ = ["ModelDrafter", "ways"]

_CHUNK = 256
_NOTHING = Guesses(0)
_SIBLINGS = 11
"""Of a stream's first guess, where there is time to find out whether they pay."""


class ModelDrafter:
    """A `Drafter` over one draft graph."""

    def __init__(
        self, graph: DraftGraph, ahead: Guesses | None = None, clock: Clock | None = None
    ) -> None:
        """Draft with `graph`, whose cache becomes this drafter's own.

        Guesses `ahead` of its branches, by default with all of the graph's streams; with a `clock`
        in any way up to that, siblings among them by default: whichever turns out to be fastest.
        """
        self._graph, self._clock = graph, clock
        if ahead is None:
            ahead = Guesses(graph.streams, _SIBLINGS if clock and graph.streams else 0)
        self._ways = ways(ahead)
        self._foresight = Foresight(len(self._ways) - 1)
        self._committed: list[int] = []
        self._rows: list[int] = []
        self._sure = 0
        """So many main rows are known to be the committed ones."""
        self._grown: Sequence[Growing] = ()
        self._early: Sequence[Growing] = ()
        """Of these the ones that got a head start."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Take `tokens` as the committed ones, keeping the rows they share with the cache."""
        self._committed, self._sure = list(tokens), 0
        trunk = self._committed[: self._graph.context]
        self._settle(trunk)
        self._feed(trunk[len(self._rows) :])
        self._sure = len(self._rows)

    def rollout(
        self,
        committed: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
        sampler: Sampler,
        dropped: Dropped | None = None,
    ) -> list[Branch]:
        """Continue every root that fits by `depth` tokens; see `Drafter.rollout`."""
        self._committed += committed
        if dropped is not None and dropped.is_set():
            return []
        graph, base = self._graph, len(self._committed)
        trunk = [*self._committed, *drafted]
        del trunk[graph.context :]
        early = self._early if self._rows[self._sure :] == trunk[self._sure :] else ()
        self._settle(trunk)
        if not roots:
            self._head_start(trunk, depth, sampler, dropped)
            return []
        # The last row goes along with the branches, unless nothing would stand before them.
        if len(self._rows) < (end := max(1, len(trunk) - 1)):
            self._feed(trunk[len(self._rows) : end])
        furthest = base + max(root.row for root in roots)
        depth = min(depth, graph.context - furthest - 1)
        kept = roots[: (graph.slots - len(trunk)) // depth] if depth > 0 else ()
        if not kept:
            return []
        if graph.slots - behind(trunk, early) < depth * len(kept):
            early = ()
        room = graph.slots - behind(trunk, early)
        branches = [_seed(root, base + root.row, early) for root in kept]
        left = graph.context - furthest - depth
        most = _most(self._ways, left, depth, room // len(kept))
        if most == 0 or self._clock is None:
            self._grow(trunk, branches, depth, self._ways[most], sampler, dropped)
        else:
            way, began = self._foresight.choose(len(kept), most), self._clock()
            if gained := self._grow(trunk, branches, depth, self._ways[way], sampler, dropped):
                self._foresight.learn(len(kept), way, (self._clock() - began) / gained)
        made = [(grown.root, tuple(grown.tokens[1 : depth + 1])) for grown in branches]
        return [Branch(root, tokens) for root, tokens in made if tokens]

    def close(self) -> None:
        """Release the graph."""
        self._graph.close()

    def _head_start(
        self, trunk: list[int], depth: int, sampler: Sampler, dropped: Dropped | None
    ) -> None:
        """Let a branch grow by `depth` tokens behind every row of the window, which ends `trunk`.

        Their roots are what the draft holds likeliest there, the window's own token left out.
        """
        graph, base, end = self._graph, len(self._committed), len(trunk)
        if not base <= end < base + _CHUNK:
            return
        self._feed(trunk[len(self._rows) : base - 1])
        del self._rows[base - 1 :]  # Their logits are wanted, and were not kept.
        logits = self._feed(trunk[base - 1 :], every=True)
        places = range(base, base + len(logits))
        histories = [trunk[:place] for place in places] if sampler.needs_history else None
        said = logits[:, : known(graph, sampler)]
        best = sampler.best(said, places, 2, histories).tolist()
        drafted = [*trunk[base:], None]
        roots = [
            Root(row, next(token for token in tokens if token != drafted[row]))
            for row, tokens in enumerate(best)
        ]
        depth = min(depth, graph.context - end - 1, (graph.slots - end) // len(roots))
        if depth > 0:
            early = [Growing(root, base + root.row, [root.token]) for root in roots]
            self._grow(trunk, early, depth, _NOTHING, sampler, dropped)
            self._early = [branch for branch in early if branch.slots]

    def _grow(
        self,
        trunk: list[int],
        branches: list[Growing],
        depth: int,
        ahead: Guesses,
        sampler: Sampler,
        dropped: Dropped | None,
    ) -> int:
        """Let `branches` grow behind `trunk`, of which the cache has all but the last row at least.

        How many tokens one of them gained; 0 unless those that are wanted have `depth` now.
        """
        fed, base = len(self._rows), len(self._committed)
        had = [len(branch.tokens) for branch in branches]
        growth: Chain | Growth
        if ahead == _NOTHING and _continues(trunk, branches):
            growth = Chain(self._graph, sampler, trunk, branches[0], depth)
        else:
            growth = Growth(self._graph, sampler, trunk, branches, depth, ahead, min(fed, base))
        self._grown = [branch for branch in branches if branch.slots]
        if dropped is not None:
            dropped.then(lambda: self._graph.stop() if dropped.is_set() else None)
        while growth.goes_on(dropped):
            with suppress(StoppedError):  # If not all was dropped, it was meant for another.
                growth.forward(missing=len(trunk) - len(self._rows))
                self._rows += trunk[len(self._rows) :]
                self._grown = branches
        now = [len(branch.tokens) for branch in branches]
        return max(a - b for a, b in zip(now, had, strict=True)) if max(now) > depth else 0

    def _settle(self, trunk: Sequence[int]) -> None:
        """Make the main rows the longest stretch of `trunk` that the cache can spell."""
        sure = self._sure
        shared = sure + _common(self._rows[sure:], trunk[sure:])
        best: Growing | None = None
        length = shared
        for grown in self._grown:
            if grown.after <= shared:
                fed = grown.tokens[: len(grown.slots)]
                reach = grown.after + _common(fed, trunk[grown.after :])
                if reach > length:
                    best, length = grown, reach
        if best is not None:
            self._graph.move(best.slots[: length - best.after], best.after)
        self._rows[shared:] = trunk[shared:length]
        self._sure = min(length, len(self._committed))
        self._grown = self._early = ()

    def _feed(self, tokens: Sequence[int], *, every: bool = False) -> NDArray[np.float32]:
        """Feed `tokens` behind the main rows, in chunks, plainly causal.

        The logits of the last one, or of `every` one of the last chunk.
        """
        logits = np.empty((0, self._graph.named), dtype=np.float32)
        for at in range(0, len(tokens), _CHUNK):
            chunk, start = tokens[at : at + _CHUNK], len(self._rows)
            fed = np.array(chunk)
            fed[fed >= self._graph.vocabulary] = 0
            places = np.arange(start, start + len(chunk))
            while len(self._rows) == start:
                with suppress(StoppedError):  # What was to stop had ended already: once more.
                    wanted = np.arange(0 if every else len(chunk) - 1, len(chunk))
                    logits = self._graph.forward(fed, places, start, None, wanted)
                    self._rows += chunk
        return logits


def ways(ahead: Guesses) -> list[Guesses]:
    """The ways of guessing up to `ahead`, each wider than the one before it."""
    chains = [Guesses(streams) for streams in range(ahead.streams + 1)]
    return [*chains, ahead] if ahead.siblings else chains


def _most(ways: Sequence[Guesses], left: int, depth: int, room: int) -> int:
    """The widest of `ways` that branches of `depth` can use in `room` slots each.

    `left` places of the context are behind them. The first token of a branch has no guess before
    it, and the last needs none.
    """
    if depth < 3:
        return 0
    widest = len(ways) - 1
    while widest and not (ways[widest].streams <= left and ways[widest].slots(depth) <= room):
        widest -= 1
    return widest


def _continues(trunk: Sequence[int], branches: Sequence[Growing]) -> bool:
    """Whether there is but one branch, which begins behind the whole trunk."""
    (first, *others) = branches
    return not others and first.after == len(trunk) and not first.slots


def _seed(root: Root, after: int, early: Iterable[Growing]) -> Growing:
    """A branch with nothing but its root, or what has grown of it already."""
    for grown in early:
        if grown.after == after and grown.tokens[0] == root.token:
            return Growing(root, after, grown.tokens, grown.slots)
    return Growing(root, after, [root.token])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common start of two sequences."""
    shortest = min(len(a), len(b))
    if list(a[:shortest]) == list(b[:shortest]):
        return shortest
    return next(i for i in range(shortest) if a[i] != b[i])
