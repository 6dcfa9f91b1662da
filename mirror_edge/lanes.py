"""Lanes: one worker per device, so that several devices run at once, each one call at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from mirror_edge.errors import ClosedError, DeviceError
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from mirror_edge.hypotheses import Root

__all__ = ["Dropped", "ThreadLane"]

P = ParamSpec("P")
T = TypeVar("T")


class _Work(NamedTuple):
    future: Future[Any]
    name: str
    call: Callable[[], Any]


class Dropped:
    """Tells a lane that its work for another is no longer wanted, or only a part of it."""

    def __init__(self) -> None:
        """Everything is still wanted."""
        self._set = False
        self.all_but: Root | None = None
        """The only root whose branch is still wanted, once that is known."""
        self._told: list[Callable[[], None]] = []

    def tell(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever less is wanted: at once if it already is, possibly twice."""
        self._told.append(call)
        if self.is_set() or self.all_but is not None:
            call()

    def tell_no_more(self, call: Callable[[], None]) -> None:
        """Undo `tell`."""
        self._told.remove(call)

    def is_set(self) -> bool:
        """Whether nothing is wanted any more."""
        return self._set

    def set(self) -> None:
        """Drop everything."""
        if not self._set:
            self._set = True
            self._tell()

    def drop_all_but(self, root: Root) -> None:
        """Drop everything except the branch of `root`."""
        self.all_but = root
        self._tell()

    def _tell(self) -> None:
        for call in tuple(self._told):
            call()


class ThreadLane:
    """A lane on a thread of this process: for devices whose driver releases the GIL."""

    def __init__(
        self, name: str, trace: Trace, cores: Sequence[int] = (), *, shared: bool = False
    ) -> None:
        """Start the worker, confined to `cores` if there are any and the system supports that.

        A `shared` lane has no device of its own. While it is idle, a call passed to `later` runs on
        the thread that waits for it, which is faster than waking two threads in turn.

        Raises:
            DeviceError: if the system refuses these cores.
        """
        self.name, self._shared = name, shared
        self._trace = trace
        self._cores = frozenset(cores)
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._left: set[Future[Any]] = set()
        """Futures of the calls that are queued or running."""
        self._device = threading.Lock()
        self._entry = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()
        if self._cores and hasattr(os, "sched_setaffinity"):
            try:
                self.start("confine", os.sched_setaffinity, 0, self._cores).result()
            except OSError as error:
                self.close()
                listed = ", ".join(map(str, sorted(self._cores)))
                raise DeviceError(f"this process cannot use core {listed}: {error}.") from error

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """See `Lane.start`."""
        future: Future[T] = Future()
        with self._entry:  # Nothing may be queued after the end marker.
            if self._closed:
                raise ClosedError("the model was closed; load it again.")
            self._left.add(future)
            self._queue.put(_Work(future, name, lambda: call(*args, **kwargs)))
        return future

    def later(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], Future[T]]:
        """See `Lane.later`."""
        if not self._shared or self._left:
            queued = self.start(name, call, *args, **kwargs)
            return lambda: queued

        def here() -> Future[T]:
            if self._left or self._closed:
                return self.start(name, call, *args, **kwargs)
            future: Future[T] = Future()
            self._do(_Work(future, name, lambda: call(*args, **kwargs)))
            return future

        return here

    def close(self) -> None:
        """Let the queued calls finish, then end the thread."""
        with self._entry:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            self._do(work)
            del work  # It references its answer, and the next call may be long in coming.

    def _do(self, work: _Work) -> None:
        if not work.future.set_running_or_notify_cancel():
            self._left.discard(work.future)
            return
        with self._device:
            begin = time.perf_counter()
            result, failure = None, None
            try:
                result = work.call()
            except BaseException as error:
                failure = error
            self._trace.calls.append(Span(self.name, work.name, begin, time.perf_counter()))
        self._left.discard(work.future)
        if failure is None:
            work.future.set_result(result)
        else:
            work.future.set_exception(failure)
