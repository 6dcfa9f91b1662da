"""Lanes: one worker a device, so that two devices run at once and each does one thing at a time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from mirror_edge.trace import Span, Trace

__all__ = ["ThreadLane"]

P = ParamSpec("P")
T = TypeVar("T")

_Work = tuple[asyncio.Future[Any], str, Callable[[], Any]]


class ThreadLane:
    """A lane on a thread of this process: for devices whose driver releases the GIL."""

    def __init__(self, name: str, trace: Trace, cores: Sequence[int] = ()) -> None:
        """Start the worker; with `cores` it is confined to them where the system can do that."""
        self.name = name
        self._trace = trace
        self._cores = frozenset(cores)
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Queue a call and return the future of its result.

        A call that has begun always runs to its end, even if its future is cancelled; the next
        call waits for it. That is what makes cancelling an answer safe.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put((future, name, lambda: call(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Let the queued calls finish, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        if self._cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._cores)
        while (work := self._queue.get()) is not None:
            future, name, call = work
            begin, result, error = time.perf_counter(), None, None
            try:
                result = call()
            except BaseException as raised:
                error = raised
            self._trace.calls.append(Span(self.name, name, begin, time.perf_counter()))
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                # The loop was closed while the call ran: nobody is waiting any more.
                continue


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
