"""A head start: the draft continues on its own while the target's prefix runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror_edge.protocols import Clock, Lane

__all__ = ["HeadStart"]

_WITHIN = 0.9
"""Share of the prefix's time that a head start may take."""


class HeadStart:
    """Measures how many draft tokens fit into the prefix's time, and drafts them in it."""

    def __init__(self, lane: Lane, clock: Clock) -> None:
        """Run head starts on the draft's `lane`."""
        self._lane, self._clock = lane, clock
        self._made: Future[None] | None = None
        self._beside = 0.0
        """Seconds that the last prefix took."""
        self._token = 0.0
        """Seconds per token in the last head start; 0 before the first."""

    def fitting(self) -> int:
        """How many tokens fit; one before anything has been measured."""
        return int(_WITHIN * self._beside / self._token) if self._token else 1

    def none(self) -> None:
        """Note that this step has no head start."""
        self._made = None

    def make(self, tokens: int, draft: Callable[[], object]) -> None:
        """Have `draft` draft `tokens` tokens for each branch that it chooses."""

        def call() -> None:
            began = self._clock()
            draft()
            self._token = (self._clock() - began) / tokens

        self._made = self._lane.start("head start", call)

    def beside(self, seconds: float) -> None:
        """Record that this step's prefix took `seconds`."""
        self._beside = seconds

    def made(self) -> Callable[[], object]:
        """A call that waits for this step's head start and raises what it raised."""
        made = self._made
        return (lambda: None) if made is None else made.result
