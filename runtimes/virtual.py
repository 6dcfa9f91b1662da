"""Lanes on a virtual clock: the real scheduler with stated times, and no devices to wait for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from mirror_edge.trace import Span, Trace

__all__ = ["VirtualClock", "VirtualLane"]

P = ParamSpec("P")
T = TypeVar("T")


class VirtualClock:
    """A clock that starts at 0 and moves when somebody sleeps or waits."""

    def __init__(self) -> None:
        """At 0."""
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds since the start."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class VirtualLane:
    """A lane whose calls are computed at once and end when their stated time is over."""

    def __init__(
        self, name: str, trace: Trace, clock: VirtualClock, cost: Callable[..., float]
    ) -> None:
        """`cost` is asked for (call name, *arguments) and answers in seconds.

        A call that sleeps on the clock itself takes that time too.
        """
        self.name = name
        self._trace, self._clock, self._cost = trace, clock, cost
        self._busy_until = 0.0

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """See `Lane.start`."""
        clock, caller = self._clock, self._clock.now
        clock.now = begin = max(caller, self._busy_until)
        cost = self._cost(name, *args, **kwargs)
        clock.sleep(cost)
        future: _Waiting[T] = _Waiting(clock)
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        future.ends = self._busy_until = clock.now
        self._trace.calls.append(Span(self.name, name, begin, clock.now))
        if cost:
            self._trace.runs.append(Span(self.name, name, begin, begin + cost))
        clock.now = caller
        return future

    def close(self) -> None:
        """Nothing to release."""


class _Waiting(Future[T]):
    """Whoever wants the result is at its end then."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.ends = 0.0

    def result(self, timeout: float | None = None) -> Any:
        del timeout
        self._clock.now = max(self._clock.now, self.ends)
        return super().result()
