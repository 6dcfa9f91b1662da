"""Who answers: a mode of our own, or a peer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mirror_edge.apps.bench.tally import Tally, rollout_forwards, tally

if TYPE_CHECKING:
    from mirror_edge import Model, Sampling, Speculation
    from mirror_edge.stats import StepRecord
    from mirror_edge.text import Message
    from mirror_edge.trace import Spans

__all__ = ["Contender", "Ours", "Said"]


class Said(NamedTuple):
    """An answer to one turn. Times are seconds."""

    text: str
    tokens: tuple[int, ...]
    seconds: float
    first_token: float
    decode_seconds: float
    """From the first token to the last."""
    tally: Tally


class Contender(Protocol):
    """Answers a conversation, turn by turn."""

    @property
    def name(self) -> str:
        """Its name in the figures."""
        ...

    def answer(self, messages: Sequence[Message], most: int) -> Said:
        """Answer the last message in at most `most` tokens."""
        ...

    def forget(self) -> None:
        """Forget the conversations so far, so that the whole next prompt is read."""
        ...


@dataclass
class Ours:
    """A mode of the bundle."""

    name: str
    model: Model
    speculation: Speculation
    sampling: Sampling
    spans: Spans | None = None
    """Of the last answer."""
    steps: Sequence[StepRecord] = ()
    """Likewise."""

    def answer(self, messages: Sequence[Message], most: int) -> Said:
        """See `Contender.answer`."""
        self.spans = self.model.trace.keep()
        began = time.perf_counter()
        result = self.model.generate(
            messages, max_new_tokens=most, sampling=self.sampling, speculation=self.speculation
        )
        seconds = time.perf_counter() - began
        stats = result.stats
        self.steps = stats.steps
        return Said(
            result.text,
            result.tokens,
            seconds,
            stats.time_to_first_token,
            stats.decode_seconds,
            tally(stats.steps, rollout_forwards(self.spans)),
        )

    def forget(self) -> None:
        """See `Contender.forget`: an unrelated word overwrites the caches."""
        self.model.generate(
            "Else", max_new_tokens=1, sampling=self.sampling, speculation=self.speculation
        )
