"""The draft model as a drafter: all branches of a rollout advance together.

The first cache slots hold the main rows (committed and drafted tokens, in order), the next ones the
branches of the last rollout. When a branch comes true, its rows are moved up to the main ones, so
nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.chain import Chain
from mirror_edge.foresight import Foresight
from mirror_edge.growth import Growing, Growth, Guesses, embedded, first_free, known
from mirror_edge.hypotheses import Branch, Root
from mirror_edge.lanes import Dropped
from mirror_edge.protocols import StoppedError
from mirror_edge.trunk import FIRST, Trunk, common

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.protocols import Clock, DraftGraph
    from mirror_edge.sampling import Sampler

__all__ = ["ModelDrafter", "ways"]

_CHUNK = 256
"""Most rows of a forward without branches."""
_JUDGED = 32
"""Rows of a review whose logits are computed at once: with large vocabularies, tens of
megabytes."""
_NOTHING = Guesses(0)
_SIBLINGS = 11
"""Siblings of a stream's first guess, where a clock can show whether they pay off."""


class ModelDrafter:
    """A `Drafter` over one draft graph."""

    def __init__(
        self, graph: DraftGraph, ahead: Guesses | None = None, clock: Clock | None = None
    ) -> None:
        """Draft with `graph`, whose cache then belongs to this drafter.

        It guesses `ahead` of its branches, by default with all of the graph's streams. With a
        `clock` it guesses in whichever way up to that proves fastest; by default these include
        siblings.
        """
        self._graph, self._clock = graph, clock
        if ahead is None:
            ahead = Guesses(graph.streams, _SIBLINGS if clock and graph.streams else 0)
        self._ways = ways(ahead)
        self._foresight = Foresight(len(self._ways) - 1)
        self._committed: list[int] = []
        self._rows: list[int] = []
        self._gone = 0
        """How many tokens, after the first few, no longer have rows."""
        self._sure = 0
        """How many of the main rows are known to be those of the committed tokens."""
        self._grown: Sequence[Growing] = ()
        """The last rollout's branches that have rows."""
        self._early: Sequence[Growing] = ()
        """Those of them that were grown in a head start."""

    @property
    def forgotten(self) -> int:
        """Tokens of the text that no longer have rows: a row's slot is its position minus this."""
        return self._gone

    def prefill(self, tokens: Sequence[int]) -> None:
        """Take `tokens` as the committed ones, keeping the cache rows that they share."""
        trunk = self._taken(tokens)
        self._feed(trunk, len(trunk))
        self._sure = len(self._rows)

    def review(self, tokens: Sequence[int], latest: int, sampler: Sampler) -> list[bool]:
        """See `Drafter.review`. For a text beyond the draft's context the result is empty."""
        trunk, right = self._taken(tokens), []
        end = len(trunk)
        begin = max(1, end - latest) if end + trunk.gone == len(tokens) else end
        for first in range(begin, end, _JUDGED):
            last = min(first + _JUDGED, end)
            chosen = sampler.choose(*self._logits_after(trunk, first - 1, last - 1, sampler))
            right += (chosen == np.array(trunk.rows[first:last])).tolist()
        self._feed(trunk, end - 1)  # The last row is fed with the branches to come.
        self._sure = len(self._rows)
        return right

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
        trunk, early = self._settled(drafted)
        if not roots:
            self._head_start(trunk, depth, sampler, dropped)
            return []
        graph, base = self._graph, len(self._committed) - trunk.gone
        # The last row is fed with the branches, unless the cache is empty without it.
        self._feed(trunk, max(1, len(trunk) - 1))
        furthest = base + max(root.row for root in roots)
        context = graph.context - trunk.gone
        depth = min(depth, context - furthest - 1)
        kept = roots[: max(0, graph.slots - len(trunk)) // depth] if depth > 0 else ()
        if not kept:
            return []
        if graph.slots - first_free(trunk, early) < depth * len(kept):
            early = ()
        room = graph.slots - first_free(trunk, early)
        branches = [_seed(root, base + root.row, early) for root in kept]
        most = _most(self._ways, context - furthest - depth, depth, room // len(kept))
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

    def _taken(self, tokens: Sequence[int]) -> Trunk:
        """The trunk to be read, with `tokens` as the committed ones."""
        if self._gone and not self._remembers(tokens):
            self._rows, self._grown, self._gone = [], (), 0
        self._committed, self._sure = list(tokens), 0
        return self._settled(())[0]

    def _head_start(
        self, trunk: Trunk, depth: int, sampler: Sampler, dropped: Dropped | None
    ) -> None:
        """Grow a branch by `depth` tokens after every row of the window, which ends `trunk`.

        Their roots are the tokens that the draft considers most likely there, other than the
        window's own.
        """
        graph, base, end = self._graph, len(self._committed) - trunk.gone, len(trunk)
        if not base <= end < base + _CHUNK:
            return
        logits, places, histories = self._logits_after(trunk, base - 1, end, sampler)
        best = sampler.best(logits, places, 2, histories).tolist()
        drafted = [*trunk.rows[base:], None]
        roots = [
            Root(row, next(token for token in tokens if token != drafted[row]))
            for row, tokens in enumerate(best)
        ]
        left = graph.context - trunk.gone - end - 1
        depth = min(depth, left, (graph.slots - end) // len(roots))
        if depth > 0:
            early = [Growing(root, base + root.row, [root.token]) for root in roots]
            self._grow(trunk, early, depth, _NOTHING, sampler, dropped)
            self._early = [branch for branch in early if branch.slots]

    def _grow(
        self,
        trunk: Trunk,
        branches: list[Growing],
        depth: int,
        ahead: Guesses,
        sampler: Sampler,
        dropped: Dropped | None,
    ) -> int:
        """Grow `branches` after `trunk`, of which the cache lacks at most the last row.

        Return the most tokens that one of them gained; 0 if none reached `depth`.
        """
        fed, base = len(self._rows), len(self._committed) - trunk.gone
        had = [len(branch.tokens) for branch in branches]
        growth: Chain | Growth
        if ahead == _NOTHING and _continues(trunk, branches):
            growth = Chain(self._graph, sampler, trunk, branches[0], depth)
        else:
            growth = Growth(self._graph, sampler, trunk, branches, depth, ahead, min(fed, base))
        self._grown = [branch for branch in branches if branch.slots]
        dropped = dropped or Dropped()
        stop = partial(self._stop_if, dropped)
        dropped.tell(stop)
        try:
            while growth.goes_on(dropped):
                with suppress(StoppedError):  # Unless all was dropped, it was for an earlier call.
                    growth.forward(missing=len(trunk) - len(self._rows))
                    self._rows += trunk.rows[len(self._rows) :]
                    self._grown = branches
        finally:
            dropped.tell_no_more(stop)
        now = [len(branch.tokens) for branch in branches]
        return max(a - b for a, b in zip(now, had, strict=True)) if max(now) > depth else 0

    def _stop_if(self, dropped: Dropped) -> None:
        if dropped.is_set():
            self._graph.stop()

    def _settled(self, drafted: Sequence[int]) -> tuple[Trunk, Sequence[Growing]]:
        """The committed tokens and `drafted`, with as many of their rows in place as the cache has.

        And the branches of a head start that was made after exactly these tokens.
        """
        tokens = [*self._committed, *drafted]
        del tokens[self._graph.context :]
        trunk = Trunk(tokens, self._gone)
        early = self._early if self._rows[self._sure :] == trunk.rows[self._sure :] else ()
        self._settle(trunk.rows)
        if len(trunk) > self._graph.main and self._forget(len(trunk)):
            return Trunk(tokens, self._gone), ()
        return trunk, early

    def _settle(self, rows: Sequence[int]) -> None:
        """Make the main rows the longest beginning of `rows` that the cache can provide."""
        sure = self._sure
        shared = sure + common(self._rows[sure:], rows[sure:])
        best: Growing | None = None
        length = shared
        for grown in self._grown:
            if grown.after <= shared:
                fed = grown.tokens[: len(grown.slots)]
                reach = grown.after + common(fed, rows[grown.after :])
                if reach > length:
                    best, length = grown, reach
        if best is not None:
            self._graph.move(best.slots[: length - best.after], best.after)
        self._rows[shared:] = rows[shared:length]
        self._sure = min(length, len(self._committed) - self._gone)
        self._grown = self._early = ()

    def _forget(self, rows: int) -> bool:
        """Drop the oldest of the trunk's `rows` main rows, to leave a quarter of their slots free.

        The first few stay, and so does the window. Return whether any were dropped.
        """
        most, base = self._graph.main, len(self._committed) - self._gone
        end = min(FIRST + rows - (most - most // 4), base - 1)
        if end <= FIRST:
            return False
        if end < len(self._rows):
            self._graph.move(range(end, len(self._rows)), FIRST)
        del self._rows[FIRST:end]
        self._sure -= min(self._sure, end) - min(self._sure, FIRST)
        self._gone += end - FIRST
        return True

    def _remembers(self, tokens: Sequence[int]) -> bool:
        """Whether `tokens` begin with the forgotten ones, and enough of the others remain."""
        end = FIRST + self._gone
        known = list(tokens[:end]) == self._committed[:end]
        return known and len(tokens) - self._gone >= self._graph.main // 2

    def _logits_after(
        self, trunk: Trunk, first: int, end: int, sampler: Sampler
    ) -> tuple[NDArray[np.float32], list[int], list[list[int]] | None]:
        """The logits after the main rows from `first` to `end`, a chunk of them at most.

        And the positions of the tokens that they predict, and the tokens before each, if needed.
        """
        self._feed(trunk, first)
        del self._rows[first:]  # Their logits were not kept.
        logits = self._feed(trunk, end, every=True)[:, : known(self._graph, sampler)]
        rows = range(first + 1, first + 1 + len(logits))
        histories = [trunk.before(row) for row in rows] if sampler.needs_history else None
        return logits, [row + trunk.gone for row in rows], histories

    def _feed(self, trunk: Trunk, end: int, *, every: bool = False) -> NDArray[np.float32]:
        """Feed the missing main rows up to `end`, in chunks, with causal attention.

        Return the logits of the last row, or of `every` row of the last chunk.
        """
        logits = np.empty((0, self._graph.named), dtype=np.float32)
        while (start := len(self._rows)) < end:
            stop, gone = min(end, start + _CHUNK), trunk.gone
            if gone and start < FIRST:
                stop, gone = min(stop, FIRST), 0
            fed = embedded(self._graph, trunk.rows[start:stop])
            places = np.arange(start + gone, stop + gone)
            wanted = np.arange(0 if every else len(fed) - 1, len(fed))
            with suppress(StoppedError):  # The stop was meant for an earlier call: try again.
                logits = self._graph.forward(fed, places, start, None, wanted)
                self._rows += trunk.rows[start:stop]
        return logits


def ways(ahead: Guesses) -> list[Guesses]:
    """The ways of guessing up to `ahead`, from narrow to wide."""
    chains = [Guesses(streams) for streams in range(ahead.streams + 1)]
    return [*chains, ahead] if ahead.siblings else chains


def _most(ways: Sequence[Guesses], left: int, depth: int, room: int) -> int:
    """The index of the widest of `ways` that branches of `depth` can use in `room` slots each.

    `left` positions of the context come after them. The first token of a branch has no guess before
    it, and the last needs none.
    """
    if depth < 3:
        return 0
    widest = len(ways) - 1
    while widest and not (ways[widest].streams <= left and ways[widest].slots(depth) <= room):
        widest -= 1
    return widest


def _continues(trunk: Trunk, branches: Sequence[Growing]) -> bool:
    """Whether there is just one branch, with no rows, directly after the whole trunk."""
    (first, *others) = branches
    return not others and first.after == len(trunk) and not first.slots


def _seed(root: Root, after: int, early: Iterable[Growing]) -> Growing:
    """A branch with only its root, or with what a head start has grown of it."""
    for grown in early:
        if grown.after == after and grown.tokens[0] == root.token:
            return Growing(root, after, grown.tokens, grown.slots)
    return Growing(root, after, [root.token])
