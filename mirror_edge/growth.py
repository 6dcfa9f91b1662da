"""Branches as they grow: which rows a forward feeds, what they see, and what is kept of them.

A forward feeds a branch's last token and, if the draft has streams, guesses of what follows it, as
a small tree. The draft's own choice after every row shows which guesses are right, and the streams
of the last right row provide the next guesses. A branch has exactly the tokens it would have
without streams, and gains 1 to s + 1 tokens per forward (Speculative Streaming, arXiv 2402.11131,
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.hypotheses import Root
    from mirror_edge.lanes import Dropped
    from mirror_edge.protocols import DraftGraph
    from mirror_edge.sampling import Sampler
    from mirror_edge.trunk import Trunk

__all__ = ["Growing", "Growth", "Guesses", "embedded", "first_free", "known"]

_JUST_FIRST: Sequence[int] = (0,)
"""The right rows of a branch without guesses."""


class Guesses(NamedTuple):
    """What a branch is fed after its last token: one guess from each stream, in a chain.

    Siblings are alternatives to the first guess: the same stream's next most likely tokens.
    """

    streams: int
    siblings: int = 0

    def behind(self, missing: int) -> int:
        """How many guesses are fed while `missing` tokens are missing; the last needs no guess."""
        chain = min(self.streams, missing - 1)
        return chain + self.siblings if chain > 0 else 0

    @cache  # noqa: B019 - one entry per kind of guesses and depth
    def slots(self, depth: int) -> int:
        """The most slots that a branch of `depth` tokens takes: all of its guesses are wrong."""
        fed = depth + sum(map(self.behind, range(1, depth)))
        return fed + (1 + self.streams + self.siblings) * self.streams


@dataclass(slots=True)
class Growing:
    """A branch in progress, and its rows in the cache."""

    root: Root
    after: int
    """How many main rows it continues."""
    tokens: list[int]
    """Root and drafted tokens; the last one has not been fed."""
    slots: list[int] = field(default_factory=list)
    """Slots of the tokens that have."""
    guesses: list[int] = field(default_factory=list)
    """The streams' guesses of what follows `tokens`: rows 1 and up, after the last token's row
    0."""
    parents: tuple[int, ...] = ()
    """The row that each guess follows. Rows are in order of depth."""

    def path(self, row: int) -> list[int]:
        """The guesses that lead to `row`, its own last."""
        found: list[int] = []
        while row:
            found.append(self.guesses[row - 1])
            row = self.parents[row - 1]
        return found[::-1]


class Growth:
    """The branches of one rollout, growing to `depth` tokens each."""

    def __init__(
        self,
        graph: DraftGraph,
        sampler: Sampler,
        trunk: Trunk,
        branches: Sequence[Growing],
        depth: int,
        ahead: Guesses,
        first: int,
    ) -> None:
        """Grow `branches`, which continue the main rows `trunk` and see those before `first`.

        `ahead` is the most that is guessed per branch. Branches may already have rows, after the
        trunk's.
        """
        self._graph, self._sampler, self._trunk = graph, sampler, trunk
        self._depth, self._ahead = depth, ahead
        self._first = first
        self._slot = first_free(trunk, branches)
        self._known = known(graph, sampler)
        self.growing = [pair for pair in enumerate(branches) if len(pair[1].tokens) <= depth]
        """The unfinished ones, with their indices."""
        width = self._slot - first + len(branches) * ahead.slots(depth)
        self._hidden: NDArray[np.bool_] | None = None
        """[branches, slots from `first` on]: what the rows of each branch must not see. None for a
        single branch without siblings that continues the whole trunk: its wrong rows are at the
        end."""
        together = branches[0].after + len(branches[0].slots) == self._slot
        if len(branches) > 1 or not together or ahead.siblings:
            self._hidden = np.ones((len(branches), width), dtype=np.bool_)
            parents = np.array([[branch.after] for branch in branches])
            self._hidden[:, : len(trunk) - first] = np.arange(first, len(trunk)) >= parents
            for own, branch in enumerate(branches):
                self._hidden[own, np.array(branch.slots, dtype=np.intp) - first] = False

    def goes_on(self, dropped: Dropped | None) -> bool:
        """Whether wanted branches are unfinished; those no longer wanted stop growing."""
        if dropped is not None and dropped.is_set():
            self.growing = []
        elif dropped is not None and dropped.all_but is not None:
            self.growing = [pair for pair in self.growing if pair[1].root == dropped.all_but]
        return bool(self.growing)

    def forward(self, missing: int = 0) -> None:
        """Run one forward. The last `missing` rows of the trunk are fed first, plainly causal."""
        start, slot, ahead = self._slot - missing, self._slot, self._worth_running()
        tokens, positions = list(self._trunk.rows[start:]), list(range(start, slot))
        owners: list[int] = []
        streamed: list[int] = []
        for own, branch in self.growing:
            depths, place = _depths(branch.parents), branch.after + len(branch.slots)
            if ahead:
                streamed += range(len(tokens), len(tokens) + self._worth_guessing(branch))
            tokens.append(branch.tokens[-1])
            tokens += branch.guesses
            positions += [place + depth for depth in depths]
            owners += [own] * len(depths)
        logits = self._graph.forward(
            embedded(self._graph, tokens),
            np.array(positions) + self._trunk.gone,
            start,
            None if self._hidden is None else self._unseen(self._hidden, owners, missing),
            np.arange(missing, len(tokens)),
            np.array(streamed) if ahead else None,
            ahead,
        )[:, : self._known]
        self._take(logits, positions[missing:], ahead)

    def _unseen(
        self, hidden: NDArray[np.bool_], owners: list[int], missing: int
    ) -> NDArray[np.bool_]:
        """[rows, slots] that the rows of this forward must not see.

        They see their own branch so far, and of its guesses only those that lead to them.
        """
        own, begin = np.array(owners), self._slot - self._first
        end = begin + len(owners)
        hidden[own, np.arange(begin, end)] = False
        unseen: NDArray[np.bool_] = hidden[own, :end]
        if self._ahead.siblings:
            at = 0
            for _, branch in self.growing:
                apart = _apart(branch.parents)
                rows = slice(at, at + len(apart))
                unseen[rows, begin:][:, rows] |= apart
                at += len(apart)
        if missing:
            unseen = np.concatenate([np.zeros((missing, end), dtype=np.bool_), unseen])
        return unseen

    def _worth_running(self) -> int:
        """How many streams can still save a forward, in the branch that lacks the most tokens."""
        if not self._ahead.streams:
            return 0
        furthest = self._depth - 1 - min(len(branch.tokens) for _, branch in self.growing)
        return max(0, min(self._ahead.streams, furthest))

    def _worth_guessing(self, branch: Growing) -> int:
        """How many of a branch's rows, the first ones, leave at least two tokens to be found."""
        deepest = self._depth - 1 - len(branch.tokens)
        return sum(depth < deepest for depth in _depths(branch.parents))

    def _take(self, logits: NDArray[np.float32], positions: list[int], ahead: int) -> None:
        """Keep the right rows and the choice after each, and guess what follows the last ones."""
        chosen = self._choices(logits[: len(positions)], positions)
        guessing: list[tuple[Growing, int]] = []
        owners: list[int] = []
        wrong: list[int] = []
        first, stream = 0, len(positions)
        for own, branch in self.growing:
            right, end = _JUST_FIRST, first + 1 + len(branch.guesses)
            useful = self._worth_guessing(branch) if ahead else 0
            if branch.guesses:
                right = _right(branch, chosen[first:end])
                missed = [row for row in range(first, end) if row - first not in right]
                owners += [own] * len(missed)
                wrong += missed
                branch.guesses, branch.parents = [], ()
            if right[-1] < useful:
                guessing.append((branch, stream + right[-1] * ahead))
            branch.tokens += [chosen[first + row] for row in right]
            branch.slots += [self._slot + first + row for row in right]
            first, stream = end, stream + useful * ahead
        # Wrong rows between right ones are hidden; those at the end are overwritten.
        if wrong and self._hidden is not None:
            self._hidden[owners, np.array(wrong) + (self._slot - self._first)] = True
        self._slot = self.growing[-1][1].slots[-1] + 1
        self.growing = [pair for pair in self.growing if len(pair[1].tokens) <= self._depth]
        if guessing:
            self._guess(logits, guessing, range(ahead))

    def _choices(self, logits: NDArray[np.float32], positions: list[int]) -> list[int]:
        """The draft's own choice after every row of the branches, which are at `positions`."""
        histories = None
        if self._sampler.needs_history:
            histories = [
                [*self._trunk.before(branch.after), *branch.tokens, *branch.path(row)]
                for _, branch in self.growing
                for row in range(1 + len(branch.guesses))
            ]
        next_place = 1 + self._trunk.gone
        places = [position + next_place for position in positions]
        chosen: list[int] = self._sampler.choose(logits, places, histories).tolist()
        return chosen

    def _guess(
        self, logits: NDArray[np.float32], guessing: list[tuple[Growing, int]], numbers: range
    ) -> None:
        """Have streams guess what follows each branch, given its first stream's row in `logits`."""
        for k in numbers:
            wanted = [pair for pair in guessing if k < self._depth - len(pair[0].tokens)]
            if not wanted:
                break
            found = _rows(logits, [row + k for _, row in wanted])
            ahead_of = k + self._trunk.gone
            places = [branch.after + len(branch.tokens) + ahead_of for branch, _ in wanted]
            # The second guess follows the first one, whose siblings are in between.
            follows = 1 if k == 1 else len(wanted[0][0].guesses)
            histories = None
            if self._sampler.needs_history:
                histories = [
                    [*self._trunk.before(branch.after), *branch.tokens, *branch.path(follows)]
                    for branch, _ in wanted
                ]
            several = 1 + self._ahead.siblings if k == 0 else 1
            best = self._sampler.best(found, places, several, histories)
            for (branch, _), tokens in zip(wanted, best.tolist(), strict=True):
                branch.guesses += tokens
                branch.parents += (follows,) * len(tokens)


def known(graph: DraftGraph, sampler: Sampler) -> int:
    """How many tokens both cover."""
    return min(graph.named, sampler.vocabulary)


def embedded(graph: DraftGraph, tokens: Sequence[int]) -> NDArray[np.int64]:
    """`tokens` as fed to the draft, which has no embedding for the target's padding ids."""
    fed = np.array(tokens)
    fed[fed >= graph.vocabulary] = 0
    return fed


def first_free(trunk: Trunk, branches: Sequence[Growing]) -> int:
    """The first slot after all rows of trunk and branches."""
    return max([len(trunk), *(branch.slots[-1] + 1 for branch in branches if branch.slots)])


def _right(branch: Growing, chosen: Sequence[int]) -> Sequence[int]:
    """The rows of `branch` that are right, given the choice after each: a path from row 0."""
    right = [0]
    for row, (parent, guess) in enumerate(zip(branch.parents, branch.guesses, strict=True), 1):
        if parent == right[-1] and guess == chosen[parent]:
            right.append(row)
    return right


@cache
def _depths(parents: tuple[int, ...]) -> tuple[int, ...]:
    """How many guesses each row is from the branch's last token."""
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    return tuple(depths)


@cache
def _apart(parents: tuple[int, ...]) -> NDArray[np.bool_]:
    """[rows, rows]: which of a branch's rows come before which without leading to them."""
    leads = np.eye(1 + len(parents), dtype=np.bool_)
    for row, parent in enumerate(parents, 1):
        leads[row] |= leads[parent]
    return np.tril(~leads)


def _rows(logits: NDArray[np.float32], rows: list[int]) -> NDArray[np.float32]:
    """Some rows in ascending order; a view if they are adjacent."""
    together = rows[-1] - rows[0] == len(rows) - 1
    return logits[rows[0] : rows[-1] + 1] if together else logits[rows]
