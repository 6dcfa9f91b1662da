"""Lanes: one worker a device, so that two devices run at once and each does one thing at a time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from mirror_edge.errors import ClosedError
from mirror_edge.trace import Span, Trace

__all__ = ["ThreadLane"]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class _Result(asyncio.Future[T]):
    """The future of a call on a thread lane, which other lanes' threads can wait for too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._followers: list[Callable[[Any, BaseException | None], None]] = []
        self._ending = threading.Lock()

    def follow(self, follower: Callable[[Any, BaseException | None], None]) -> None:
        """Tell `follower` the outcome, on the lane's thread if the call has not ended yet."""
        with self._ending:
            if self._outcome is None:
                self._followers.append(follower)
                return
        follower(*self._outcome)

    def end(self, result: Any, error: BaseException | None) -> bool:
        """Note the outcome and tell the followers; whether there were any."""
        with self._ending:
            self._outcome = result, error
        for follower in self._followers:
            follower(result, error)
        return bool(self._followers)

    def settle(self) -> None:
        """On the event loop: what was noted becomes the future's own."""
        assert self._outcome is not None
        result, error = self._outcome
        if self.cancelled():
            return
        if error is None:
            self.set_result(result)
        else:
            self.set_exception(error)


@dataclass(frozen=True)
class _Work:
    result: _Result[Any]
    name: str
    call: Callable[[], Any]


class ThreadLane:
    """A lane on a thread of this process: for devices whose driver releases the GIL."""

    def __init__(self, name: str, trace: Trace, cores: Sequence[int] = ()) -> None:
        """Start the worker; with `cores` it is confined to them where the system can do that."""
        self.name = name
        self._trace = trace
        self._cores = frozenset(cores)
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Queue a call and return the future of its result.

        A queued call always runs to its end, even if its future is cancelled; the next call waits
        for it. That is what makes cancelling an answer safe.
        """
        if self._closed:
            raise ClosedError("the model was closed; load it again.")
        result: _Result[T] = _Result(asyncio.get_running_loop())
        self._queue.put(_Work(result, name, lambda: call(*args, **kwargs)))
        return result

    def follow(
        self, first: asyncio.Future[S], name: str, call: Callable[[S], T]
    ) -> asyncio.Future[T]:
        """Queue `call(the result of first)` when `first`, of another thread lane, has ended.

        The hand-over goes from thread to thread, past the event loop.
        """
        assert isinstance(first, _Result)
        result: _Result[T] = _Result(asyncio.get_running_loop())

        def on_end(value: S, error: BaseException | None) -> None:
            def work() -> T:
                if error is not None:
                    raise error
                return call(value)

            self._queue.put(_Work(result, name, work))

        first.follow(on_end)
        return result

    def close(self) -> None:
        """Let the queued calls finish, then end the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._cores)
        ended: list[_Result[Any]] = []
        while (work := self._queue.get()) is not None:
            begin, value, error = time.perf_counter(), None, None
            try:
                value = work.call()
            except BaseException as raised:
                error = raised
            self._trace.calls.append(Span(self.name, work.name, begin, time.perf_counter()))
            followed = work.result.end(value, error)
            ended.append(work.result)
            if followed and not self._queue.empty():
                # Waking the event loop costs this thread the GIL: the next call goes first.
                continue
            for result in ended:
                try:
                    result.get_loop().call_soon_threadsafe(result.settle)
                except RuntimeError:
                    # The loop was closed while the call ran: nobody is waiting any more.
                    continue
            ended.clear()
