"""Lanes: one worker a device, so that two devices run at once and each does one thing at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mirror_edge.errors import ClosedError
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from mirror_edge.hypotheses import Root

__all__ = ["Dropped", "ThreadLane"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Work:
    future: Future[Any]
    name: str
    call: Callable[[], Any]


class Dropped(threading.Event):
    """Set by one lane once it no longer wants what another is at work on, or only a part of it."""

    def __init__(self) -> None:
        """All is still wanted."""
        super().__init__()
        self.all_but: Root | None = None
        """The one root whose branch is still wanted, once that is known."""
        self._then: list[Callable[[], None]] = []

    def then(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever less is wanted, at once if it is; twice may happen."""
        self._then.append(call)
        if self.is_set() or self.all_but is not None:
            call()

    def set(self) -> None:
        """See `Event.set`."""
        super().set()
        self._tell()

    def drop_all_but(self, root: Root) -> None:
        """Go on with the branch of `root` alone."""
        self.all_but = root
        self._tell()

    def _tell(self) -> None:
        for call in self._then:
            call()


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
    ) -> Future[T]:
        """See `Lane.start`."""
        if self._closed:
            raise ClosedError("the model was closed; load it again.")
        future: Future[T] = Future()
        self._queue.put(_Work(future, name, lambda: call(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Let the queued calls finish, then end the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._cores)
        while (work := self._queue.get()) is not None:
            self._do(work)

    def _do(self, work: _Work) -> None:
        if not work.future.set_running_or_notify_cancel():
            return
        begin = time.perf_counter()
        try:
            result = work.call()
        except BaseException as error:
            self._trace.calls.append(Span(self.name, work.name, begin, time.perf_counter()))
            work.future.set_exception(error)
        else:
            self._trace.calls.append(Span(self.name, work.name, begin, time.perf_counter()))
            work.future.set_result(result)
