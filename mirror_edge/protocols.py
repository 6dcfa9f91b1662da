"""The interfaces of the algorithm: what it needs of a target, a drafter and a lane.

All of them use token ids. Positions are absolute: the first token of the prompt has position 0. The
target's cache rows are addressed by position, so nothing is ever rolled back: a call that names an
earlier `start` simply overwrites what came after it.
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
    """A forward of a `DraftGraph` was stopped; the cache rows that it fed are invalid."""


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

        The exit head names `candidates` tokens per row; with 0 it does not run and None is
        returned. With `width` the window is padded to that many rows.
        """
        ...

    def hidden(self) -> NDArray[Any]:
        """A copy of the last prefix's rows, [len(window), hidden], for an exit head elsewhere."""
        ...

    def suffix(self) -> NDArray[np.float32]:
        """Take the last prefix through layers E+1..N: logits [len(window), vocabulary].

        They are valid until the next call, as are those of `prefill`.
        """
        ...

    def likeliest(self) -> NDArray[np.int64]:
        """The most likely tokens [len(window)] instead of the logits of `suffix`.

        A greedy answer needs nothing else, so nothing else has to leave the device.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class ExitHead(Protocol):
    """The target's exit head on the draft's device, which is idle when the exit head is needed."""

    def signal(self, hidden: NDArray[Any], candidates: int) -> ExitSignal:
        """The `candidates` most likely next tokens of each row of `hidden` [n, hidden]."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class Drafter(Protocol):
    """Predicts what comes next. May be wrong, slow or absent: the text never depends on it."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Start an answer whose committed tokens are `tokens`."""
        ...

    def review(self, tokens: Sequence[int], latest: int, sampler: Sampler) -> list[bool]:
        """Read `tokens` as in `prefill`, and report which of them it would have predicted.

        One bool for each of the `latest` tokens, or for fewer: whether the drafter would have
        chosen it after the tokens before it.
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
        after them. Root (j, v) comes after d1..dj. A drafter may omit roots. Once `dropped` is set,
        the branches are no longer wanted, or only one of them: it may return shorter ones.

        Without roots this is a head start: it may choose a root itself after every row of the
        window, continue these by up to `depth` tokens, and resume from there when the same window's
        roots are named. It returns nothing then.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


@runtime_checkable
class Recovering(Drafter, Protocol):
    """A drafter that becomes available again after a call has failed."""

    @property
    def ready(self) -> bool:
        """Whether it can be called; after a failure it must first read the text. Cheap."""
        ...


class DraftGraph(Protocol):
    """One draft model on one device: a decoder whose rows see what the caller lets them see."""

    context: int
    """Positions of a text that it supports."""
    vocabulary: int
    """Tokens that it can be fed."""
    named: int
    """Tokens that its logits cover, those with the lowest ids."""
    slots: int
    """Rows that the KV cache can hold, including those of running streams."""
    main: int
    """Slots for the text, at most `context`: its first few tokens and the latest. The others are
    for branches."""
    streams: int
    """s, the number of streams a row can have; 0 for a plain draft."""

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

        First come those of the rows `wanted`, then those of the first `ahead` streams of each of
        the m rows `streamed`. They are valid until the next call.

        A row sees the slots before its own. `hidden` [rows, n] marks those of the last n slots, n
        >= rows, that it must not see; None hides nothing. Its streams see what it sees, the row
        itself, and each other up to their own; nothing else ever sees them. Rows fed into an empty
        cache have neither `hidden` nor `streamed`.
        """
        ...

    def stop(self) -> None:
        """Make the running forward, if any, raise `StoppedError`; called from another thread.

        A device may let the forward finish, if it is short or cannot be stopped.
        """
        ...

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the cache rows in `slots` (ascending, none before `start`) to slots `start`…."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class Planner(Protocol):
    """Plans every step of an answer in mode `auto`."""

    @property
    def probing(self) -> bool:
        """Whether the last plan is for one step only; others may be kept for several."""
        ...

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        """The plan for the next step, one of these."""
        ...

    def learn(self, step: StepRecord) -> None:
        """Learn from a step."""
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
        """Have a call made before its result is waited for; the returned function gives its future.

        Others may be started before it. A lane may run the call on the thread that asks for the
        future.
        """
        ...

    def close(self) -> None:
        """Let the queued calls finish, then end the worker."""
        ...
