"""The drafter of one answer, which may be late, be lost, and come back; and a rollout in progress.

None of this ever shows in the text, and the target never waits for long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mirror_edge.errors import OptionError
from mirror_edge.hypotheses import HypothesisTree, Root
from mirror_edge.protocols import Recovering
from mirror_edge.stats import DraftRecord

if TYPE_CHECKING:
    from mirror_edge.hypotheses import Branch
    from mirror_edge.lanes import Dropped
    from mirror_edge.protocols import Drafter, Lane
    from mirror_edge.sampling import Sampler
    from mirror_edge.verify import Verdict

__all__ = ["Drafting", "Rollout"]

T = TypeVar("T")

_log = logging.getLogger("mirror_edge")

_MUCH = 16
"""A draft that has missed this many tokens reads them beside the target, instead of before it."""
_REVIEWED = 64
"""How many of the latest of them it also predicts, to show how well it would have done."""


class Drafting:
    """The drafter as an answer sees it. Used on the target's lane only."""

    def __init__(self, drafter: Drafter | None, lane: Lane) -> None:
        """With a drafter and its lane, or without one."""
        self.record = DraftRecord()
        self._drafter = drafter
        self._lane = lane
        self._reading: Future[None] | None = None
        self._late: Future[Any] | None = None
        self._review: Future[list[bool]] | None = None
        self._lost: Recovering | None = None
        self._begun = False
        self.reviewed: Sequence[bool] | None = None
        """See `StepRecord.reviewed`."""

    @property
    def drafter(self) -> Drafter | None:
        """The drafter, if it is available."""
        return self._drafter if self._late is None else None

    def read(self, tokens: Sequence[int]) -> None:
        """Have it read the committed `tokens`; this is waited for only when it is needed."""
        if (drafter := self._at_hand()) is not None:
            self._reading = self._lane.start("prefill", drafter.prefill, list(tokens))

    def catch_up(self, tokens: Sequence[int], untold: int, sampler: Sampler) -> bool:
        """Whether it must first read much, or everything, which it does while the target goes on.

        It also predicts the latest of the `untold` tokens, those that it has missed.
        """
        if self.drafter is None or (self._begun and untold < _MUCH):
            return False
        if (drafter := self._at_hand()) is not None:
            latest = min(untold, _REVIEWED)
            review = self._lane.start("review", drafter.review, list(tokens), latest, sampler)
            self._late = self._review = review
            self.reviewed = self.reviewed or ()
        return True

    def returned(self, tokens: Sequence[int]) -> bool:
        """Whether it was lost and is back; then it reads `tokens` while the target goes on."""
        drafter = self._lost
        if drafter is None or not drafter.ready:
            return False
        self._drafter, self._lost = drafter, None
        self._late = self._reading = self._lane.start("prefill", drafter.prefill, list(tokens))
        self.record = self.record.returned()
        return True

    def settle(self) -> None:
        """See whether a late call has completed."""
        self.reviewed = None if self._review is None else ()
        if self._late is not None and self._late.done():
            late, self._late = self._late, None
            found = self.take(late, 0.0)
            if late is self._review:
                self._review, self.reviewed = None, tuple(found)

    def take(self, made: Future[list[T]], patience: float) -> list[T]:
        """What it prepared; nothing if it was lost, or needs more than `patience` seconds.

        Raises:
            OptionError: for something its device cannot do.
        """
        until = time.monotonic() + patience
        try:
            if self._reading is not None:
                self._reading.result(patience)
                self._reading = None
            return made.result(max(0.0, until - time.monotonic()))
        except OptionError:
            raise
        except Exception as error:
            done = [work for work in (self._reading, made) if work is not None and work.done()]
            if isinstance(error, TimeoutError) and error not in [work.exception() for work in done]:
                self._late = made
                self.record = self.record.lapsed()
                _log.info("the draft is late; the target continues alone for now.")
            else:
                self._lose(error)
            return []

    def _at_hand(self) -> Drafter | None:
        """The drafter that should read; one that has not come back yet is recorded as lost."""
        drafter, self._begun = self._drafter, True
        if isinstance(drafter, Recovering) and not drafter.ready:
            self._drafter, self._lost = None, drafter
        return self._drafter

    def _lose(self, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        _log.warning("lost the draft; continuing with the target alone: %s", message)
        self.record = self.record.lost(message)
        self._lost = self._drafter if isinstance(self._drafter, Recovering) else None
        self._drafter = self._reading = self._late = None


class Rollout(NamedTuple):
    """A rollout in progress on the draft's lane."""

    take: Callable[[Future[list[Branch]]], list[Branch]]
    """Waits for it, up to the answer's patience."""
    made: Future[list[Branch]] | None
    """None where there was nothing to prepare."""
    ranking: Sequence[Root]
    """All the roots, most likely first, once they are ranked."""
    branches: int | None
    """How many of them are drafted for; None for all."""
    dropped: Dropped

    @property
    def roots(self) -> Sequence[Root]:
        """The roots that are drafted for."""
        return self.ranking[: self.branches]

    def after(self, verdict: Verdict) -> Branch | None:
        """The branch prepared for this outcome: a hit, if there is one.

        If the outcome is among the roots, or these are not chosen yet, the draft is waited for and
        continues with this branch only; otherwise the rollout is stopped.
        """
        if self.made is None:
            return None
        if self.ranking and Root(*verdict) not in self.roots:
            self.dropped.set()
            return None
        if not self.made.done():
            self.dropped.drop_all_but(Root(*verdict))
        return HypothesisTree(self.take(self.made)).lookup(*verdict)

    def rank(self, verdict: Verdict) -> int | None:
        """The outcome's place in the ranking, from 0; None if it is not there."""
        root = Root(*verdict)
        return self.ranking.index(root) if root in self.ranking else None
