"""Branches as they grow: which rows a forward feeds, what they see, and what comes of them.

A forward feeds a branch's last token and, where the draft has streams, the guesses of what comes
after it. The draft's own choice behind every row tells which guesses are right, and the streams of
the last right row are the next guesses: a branch has the text it would have without streams, and
gains 1 to s + 1 tokens a forward (Speculative Streaming, arXiv 2402.11131, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.hypotheses import Root
    from mirror_edge.lanes import Dropped
    from mirror_edge.protocols import DraftGraph
    from mirror_edge.sampling import Sampler

__all__ = ["Growing", "Growth", "most_rows"]


@dataclass(slots=True)
class Growing:
    """A branch under way, and how the cache has it."""

    root: Root
    after: int
    """Main rows it continues."""
    tokens: list[int]
    """Root and drafted tokens; the last one is not fed."""
    slots: list[int] = field(default_factory=list)
    """Of the fed ones."""
    guesses: list[int] = field(default_factory=list)
    """What the streams say comes after `tokens`."""


@cache
def most_rows(depth: int, streams: int) -> int:
    """Rows a branch takes at most until it has `depth` tokens: all of its guesses are wrong."""
    return depth + sum(min(streams, left - 1) for left in range(1, depth))


class Growth:
    """The branches of one rollout, on their way to `depth` tokens each."""

    def __init__(
        self,
        graph: DraftGraph,
        sampler: Sampler,
        trunk: Sequence[int],
        branches: Sequence[Growing],
        depth: int,
        streams: int,
        first: int,
    ) -> None:
        """`branches` stand behind the main rows `trunk`, and all of them see those before `first`.

        At most `streams` of the graph's streams are used.
        """
        self._graph, self._sampler, self._trunk = graph, sampler, trunk
        self._depth, self._streams = depth, streams
        self._first, self._slot = first, len(trunk)
        self._known = min(graph.vocabulary, sampler.vocabulary)
        """Tokens that draft and target both know."""
        self.growing = list(enumerate(branches))
        """Those that have not arrived yet, with their numbers."""
        width = len(trunk) - first + len(branches) * most_rows(depth, streams)
        self._hidden = np.ones((len(branches), width), dtype=np.bool_)
        """Slots, from `first` on, that the rows of each branch must not see."""
        parents = np.array([[branch.after] for branch in branches])
        self._hidden[:, : len(trunk) - first] = np.arange(first, len(trunk)) >= parents

    def goes_on(self, dropped: Dropped | None) -> bool:
        """Whether branches are left to grow, once those that nobody wants are left out."""
        if dropped is not None and dropped.is_set():
            self.growing = []
        elif dropped is not None and dropped.all_but is not None:
            self.growing = [pair for pair in self.growing if pair[1].root == dropped.all_but]
        return bool(self.growing)

    def forward(self, missing: int = 0) -> None:
        """One forward. The last `missing` rows of the trunk go along, plainly causal."""
        start, slot, ahead = self._slot - missing, self._slot, self._worth_running()
        tokens, positions = list(self._trunk[start:]) if missing else [], list(range(start, slot))
        owners: list[int] = []
        streamed: list[int] = []
        for own, branch in self.growing:
            rows, place = 1 + len(branch.guesses), branch.after + len(branch.slots)
            if ahead:
                streamed += range(len(tokens), len(tokens) + self._worth_guessing(branch))
            tokens.append(branch.tokens[-1])
            tokens += branch.guesses
            positions += range(place, place + rows)
            owners += [own] * rows
        logits = self._graph.forward(
            self._embedded(tokens),
            np.array(positions),
            start,
            self._unseen(owners, missing),
            np.arange(missing, len(tokens)),
            np.array(streamed) if ahead else None,
            ahead,
        )[:, : self._known]
        self._take(logits, positions[missing:], ahead)

    def _embedded(self, tokens: list[int]) -> NDArray[np.int64]:
        """`tokens` as they are fed: the target's padding ids have no embedding in the draft."""
        fed = np.array(tokens)
        if self._known < self._sampler.vocabulary:
            fed[fed >= self._graph.vocabulary] = 0
        return fed

    def _unseen(self, owners: list[int], missing: int) -> NDArray[np.bool_]:
        """What the rows of this forward must not see: they see their own branch so far."""
        own, begin = np.array(owners), self._slot - self._first
        end = begin + len(owners)
        self._hidden[own, np.arange(begin, end)] = False
        unseen: NDArray[np.bool_] = self._hidden[own, :end]
        if missing:
            unseen = np.concatenate([np.zeros((missing, end), dtype=np.bool_), unseen])
        return unseen

    def _worth_running(self) -> int:
        """How many streams can still be right in time, in the branch that lacks most."""
        if not self._streams:
            return 0
        furthest = self._depth - 1 - min(len(branch.tokens) for _, branch in self.growing)
        return max(0, min(self._streams, furthest))

    def _worth_guessing(self, branch: Growing) -> int:
        """How many of a branch's rows, the first ones, leave two tokens to be found at least."""
        return max(0, min(1 + len(branch.guesses), self._depth - 1 - len(branch.tokens)))

    def _take(self, logits: NDArray[np.float32], positions: list[int], ahead: int) -> None:
        """Keep the guesses that are the draft's own choices, and the choice behind them."""
        rows, slot = len(positions), self._slot
        histories = None
        if self._sampler.needs_history:
            histories = [
                [*self._trunk[: branch.after], *branch.tokens, *branch.guesses[:right]]
                for _, branch in self.growing
                for right in range(1 + len(branch.guesses))
            ]
        places = [position + 1 for position in positions]
        chosen = self._sampler.choose(logits[:rows], places, histories).tolist()
        guessing: list[tuple[Growing, int]] = []
        owners: list[int] = []
        wrong: list[int] = []
        at, stream = 0, rows
        for own, branch in self.growing:
            guesses, right, useful = branch.guesses, 0, 0
            if self._streams:
                while right < len(guesses) and guesses[right] == chosen[at + right]:
                    right += 1
                useful = self._worth_guessing(branch) if ahead else 0
                if right < useful:
                    guessing.append((branch, stream + right * ahead))
                owners += [own] * (len(guesses) - right)
                wrong += range(at + right + 1, at + len(guesses) + 1)
                branch.guesses = []
            branch.tokens += chosen[at : at + right + 1]
            branch.slots += range(slot + at, slot + at + right + 1)
            at += 1 + len(guesses)
            stream += useful * ahead
        # Wrong rows at the end are written over, those between are not seen any more.
        self._slot = self.growing[-1][1].slots[-1] + 1
        if wrong:
            self._hidden[owners, np.array(wrong) + (slot - self._first)] = True
        self.growing = [pair for pair in self.growing if len(pair[1].tokens) <= self._depth]
        if guessing:
            self._guess(logits, guessing, range(ahead))

    def _guess(
        self, logits: NDArray[np.float32], guessing: list[tuple[Growing, int]], numbers: range
    ) -> None:
        """Ask the streams for what comes behind each branch, given the logits row of its first."""
        sampler = self._sampler
        # With a repetition penalty a guess depends on those before it: one stream after the other.
        for some in [[k] for k in numbers] if sampler.needs_history else [numbers]:
            wanted = [
                (branch, row + k, branch.after + len(branch.tokens) + k)
                for branch, row in guessing
                for k in some
                if k < self._depth - len(branch.tokens)
            ]
            if not wanted:
                break
            histories = None
            if sampler.needs_history:
                histories = [
                    [*self._trunk[: branch.after], *branch.tokens, *branch.guesses]
                    for branch, _, _ in wanted
                ]
            found = _rows(logits, [row for _, row, _ in wanted])
            chosen = sampler.choose(found, [place for _, _, place in wanted], histories)
            for (branch, _, _), token in zip(wanted, chosen.tolist(), strict=True):
                branch.guesses.append(token)


def _rows(logits: NDArray[np.float32], rows: list[int]) -> NDArray[np.float32]:
    """Some rows in rising order; a view where they stand together."""
    together = rows[-1] - rows[0] == len(rows) - 1
    return logits[rows[0] : rows[-1] + 1] if together else logits[rows]
