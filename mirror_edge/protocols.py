"""The edges of the algorithm: what it asks of a target, of a drafter, and of a lane.

All of them speak token ids. Positions are absolute: the first token of the prompt has position 0.
A cache row is addressed by the position it stands for, so nothing is ever taken back: a call that
names an earlier `start` simply writes over what came after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.hypotheses import Branch, ExitSignal, Root
    from mirror_edge.lanes import Dropped
    from mirror_edge.policy import Strategy
    from mirror_edge.sampling import Sampler
    from mirror_edge.stats import StepRecord

__all__ = [
    "Clock",
    "DraftGraph",
    "Drafter",
    "ExitHead",
    "Lane",
    "Planner",
    "Recovering",
    "StoppedError",
    "Target",
]

P = ParamSpec("P")
T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds, from any origin."""


class StoppedError(Exception):
    """A forward of a `DraftGraph` ended before its end; the cache rows that it fed are void."""


class Target(Protocol):
    """The model whose answers the user gets, split at its exit layer."""

    context: int
    vocabulary: int

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """Feed `tokens` at positions `start`…; return the last row's logits, [1, vocabulary]."""
        ...

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """Feed a window through layers 1..E and the target's own exit head.

        `candidates` is how many the exit head names a row; with 0 it does not run and there is no
        signal. With `width` the window is padded to so many rows, whatever its length.
        """
        ...

    def hidden(self) -> NDArray[Any]:
        """The rows [len(window), hidden] of the last prefix, copied: for an exit head elsewhere."""
        ...

    def suffix(self) -> NDArray[np.float32]:
        """Take the last prefix through layers E+1..N: logits [len(window), vocabulary].

        They are valid until the next call, here as in `prefill`.
        """
        ...

    def likeliest(self) -> NDArray[np.int64]:
        """The likeliest tokens [len(window)] instead of the logits of `suffix`.

        This is all that a greedy answer needs, and all that has to leave the device then.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class ExitHead(Protocol):
    """The target's exit head on another device, the draft's: that one is idle when it is wanted."""

    def signal(self, hidden: NDArray[Any], candidates: int) -> ExitSignal:
        """The `candidates` likeliest next tokens of each row of `hidden` [n, hidden]."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class Drafter(Protocol):
    """Guesses what comes next. May be wrong, slow or absent: the text never depends on it."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Start an answer: `tokens` are the committed tokens."""
        ...

    def review(self, tokens: Sequence[int], latest: int, sampler: Sampler) -> list[bool]:
        """Take `tokens` as in `prefill`, and see how much of them it would have foreseen.

        For each of the `latest` ones, or of as many of them as are worth it, whether it is what
        the drafter would have said behind the tokens before it.
        """
        ...

    def rollout(
        self,
        committed: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
        sampler: Sampler,
        dropped: Dropped | None = None,
    ) -> list[Branch]:
        """Continue every root by up to `depth` tokens (the branch-complete rollout).

        `committed` are the tokens committed since the last call, `drafted` the window's d1..dγ
        after them. Root (j, v) stands after d1..dj. A drafter may leave roots out. Once `dropped`
        is set nobody wants the branches any more, or all but one: it may return shorter ones.

        Without roots it gets a head start: it may choose one itself for every row of the window,
        continue them by up to `depth` tokens, and go on from there when the same window's roots
        are named. It returns nothing then.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


@runtime_checkable
class Recovering(Drafter, Protocol):
    """A drafter that comes back after a call has failed."""

    @property
    def ready(self) -> bool:
        """Whether it can be called; after a failure it has to read the text first. Cheap."""
        ...


class DraftGraph(Protocol):
    """One draft model on one device: a decoder whose rows see what they are told to see."""

    context: int
    """Places of a text that it knows."""
    vocabulary: int
    """Tokens that it can be fed."""
    named: int
    """Tokens that its logits are of, those with the lowest ids."""
    slots: int
    """How many rows the KV cache can hold, streams while they run among them."""
    main: int
    """How many of these are for the text, at most its `context`: the first few tokens and the
    latest; the others are for branches."""
    streams: int
    """s, how many streams a row can have; 0 for a plain draft."""

    def forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
        streamed: NDArray[np.int64] | None = None,
        ahead: int = 0,
    ) -> NDArray[np.float32]:
        """Feed rows into slots `start`…; return logits [len(wanted) + m·ahead, named].

        First those of the rows `wanted`, then those of the first `ahead` streams of each of the m
        rows `streamed`. They are valid until the next call.

        A row sees the slots before its own. `hidden` [rows, n] marks those of the last n slots,
        n >= rows, that it must not see; None hides nothing. Its streams see what it sees, itself,
        and each other up to their own; nobody else ever sees them. Into an empty cache rows are
        fed without either.
        """
        ...

    def stop(self) -> None:
        """Have the forward under way, if any, raise `StoppedError`; called from another thread.

        A device that cannot do that lets it end, as it does with a short one.
        """
        ...

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the cache rows in `slots` (ascending, none before `start`) to `start`…."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class Planner(Protocol):
    """Plans every step of an answer in mode `auto`."""

    @property
    def probing(self) -> bool:
        """Whether the last plan was for one step only; others may be kept for some."""
        ...

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        """One of these, for the next step."""
        ...

    def learn(self, step: StepRecord) -> None:
        """Take in what a step was like."""
        ...


class Lane(Protocol):
    """One device's single worker. Calls run one at a time, in the order they were started."""

    name: str

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Queue a call; `name` is how the trace shows it.

        A call that has begun runs to its end; one that has not can be cancelled.
        """
        ...

    def later(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], Future[T]]:
        """Have a call made by the time that somebody waits for it: what is returned is its future.

        Others may be started before it. A lane may leave the call to whoever asks for the future.
        """
        ...

    def close(self) -> None:
        """Let the queued calls finish, then end the worker."""
        ...
