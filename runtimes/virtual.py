"""Lanes on a virtual clock: the real scheduler with stated times, and no devices to wait for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from mirror_edge.trace import Span, Trace

__all__ = ["VirtualLane", "run"]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Where a real loop would wait, the virtual one moves its clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Never block."""
        if timeout is None:
            raise RuntimeError("nothing is scheduled on the virtual clock: a deadlock")
        self.now += max(0.0, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a clock that starts at 0 and jumps from event to event."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


class VirtualLane:
    """A lane whose calls are computed at once and end when their stated time is over."""

    def __init__(self, name: str, trace: Trace, cost: Callable[..., float]) -> None:
        """`cost` is asked for (call name, *arguments) and answers in seconds."""
        self.name = name
        self._trace, self._cost = trace, cost
        self._busy_until = 0.0

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """See `Lane.start`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        begin = max(loop.time(), self._busy_until)
        self._busy_until = end = begin + self._cost(name, *args, **kwargs)
        span = Span(self.name, name, begin, end)
        try:
            result = call(*args, **kwargs)
        except Exception as error:
            loop.call_at(end, self._finish, span, future, None, error)
        else:
            loop.call_at(end, self._finish, span, future, result, None)
        return future

    def follow(
        self, first: asyncio.Future[S], name: str, call: Callable[[S], T]
    ) -> asyncio.Future[T]:
        """See `Lane.follow`."""

        async def after() -> T:
            return await self.start(name, call, await first)

        return asyncio.ensure_future(after())

    def close(self) -> None:
        """Nothing to release."""

    def _finish(
        self, span: Span, future: asyncio.Future[Any], result: Any, error: Exception | None
    ) -> None:
        self._trace.calls.append(span)
        self._trace.runs.append(span)
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
