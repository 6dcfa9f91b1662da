"""Lanes on a virtual clock: calls overlap as on devices, but take only virtual time.

Time passes only when a thread sleeps on the clock or waits for a result. One thread runs at a time,
always the one whose event comes first, so a run is deterministic.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

from mirror_edge.trace import Span, Trace

__all__ = ["VirtualClock", "VirtualLane"]

P = ParamSpec("P")
T = TypeVar("T")


class _Due(NamedTuple):
    """An event: an action at a time on the clock."""

    moment: float
    order: int
    action: Callable[[], None]
    makes: Future[Any] | None
    """The future that the action completes, if it takes time and so needs its own thread."""


class VirtualClock:
    """A clock that starts at 0 and advances when a thread sleeps or waits on it.

    That thread is either a worker of this clock or the main program, outside the lanes. The workers
    run while the main program sleeps or waits.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.now = 0.0
        self.worker: _Worker | None = None
        """The worker that is running; None for the main program."""
        self._due: list[_Due] = []
        self._order = count()
        self._wanted: Callable[[float], bool] = lambda _: True
        """Whether the main program must resume before a given time."""

    def __call__(self) -> float:
        """Seconds since the start."""
        return self.now

    def at(
        self, moment: float, action: Callable[[], None], makes: Future[Any] | None = None
    ) -> None:
        """Schedule `action` for `moment`.

        An action that takes time names the future that it `makes`; it runs on a worker's thread, or
        on the main program's if that is waiting for this future.
        """
        heappush(self._due, _Due(moment, next(self._order), action, makes))

    def sleep(self, seconds: float) -> None:
        """Let this much time pass."""
        until, worker = self.now + seconds, self.worker
        if worker is None:
            self._wanted = lambda moment: moment > until
            while self._due and self._due[0].moment <= until:
                self._turn()
            self.now = until
        elif (self._due and self._due[0].moment <= until) or self._wanted(until):
            self.at(until, worker.resume)
            worker.pause()
        else:  # No other event comes before the worker's next one.
            self.now = until

    def wait(self, future: Future[Any]) -> None:
        """Let time pass until `future` is done."""
        worker = self.worker
        if worker is not None:
            future.add_done_callback(lambda _: self.at(self.now, worker.resume))
            worker.pause()
            return
        while not future.done():
            if not self._due:
                raise RuntimeError("deadlock: nothing on this clock will complete the future")
            self._wanted = lambda _: future.done()
            self._turn(future)

    def _turn(self, waited_for: Future[Any] | None = None) -> None:
        due = heappop(self._due)
        self.now = max(self.now, due.moment)
        if due.makes is None or due.makes is waited_for:
            due.action()
        else:
            _Worker.begin(self, due.action)


class _Worker:
    """A thread that runs only from `resume` to its next `pause`, while the caller waits."""

    idle: ClassVar[list[_Worker]] = []
    """Threads without work, reused because starting one takes as long as a step."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.work: Callable[[], None] = lambda: None
        self._turn, self._back = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._back.acquire()
        # A worker that is never resumed must not keep the process alive.
        threading.Thread(target=self._run, daemon=True).start()

    @classmethod
    def begin(cls, clock: VirtualClock, work: Callable[[], None]) -> None:
        """Run `work` on an idle or new thread, up to its first pause."""
        worker = cls.idle.pop() if cls.idle else cls()
        worker.clock, worker.work = clock, work
        worker.resume()

    def resume(self) -> None:
        before, self.clock.worker = self.clock.worker, self
        self._turn.release()
        self._back.acquire()
        self.clock.worker = before

    def pause(self) -> None:
        self._back.release()
        self._turn.acquire()

    def _run(self) -> None:
        self._turn.acquire()
        while True:
            self.work()
            self.idle.append(self)
            self.pause()


class VirtualFuture(Future[T]):
    """A future whose result is waited for on the virtual clock."""

    def __init__(self, clock: VirtualClock) -> None:
        """A future for a call on a lane of `clock`."""
        super().__init__()
        self._clock = clock

    def result(self, timeout: float | None = None) -> Any:
        """See `Future.result`; `timeout`, which is in real time, is ignored."""
        del timeout
        if not self.done():
            self._clock.wait(self)
        return super().result()


class _Call(NamedTuple):
    future: VirtualFuture[Any]
    name: str
    arrives: float
    work: Callable[[], Any]
    cost: Callable[[], float]


class VirtualLane:
    """A `Lane` whose calls take the time that they sleep on the clock."""

    def __init__(
        self,
        name: str,
        trace: Trace,
        clock: VirtualClock,
        cost: Callable[..., float] | None = None,
        hand_over: float = 0.0,
    ) -> None:
        """A lane of `clock`.

        `cost(call name, *arguments)` returns the seconds that a call takes besides its own sleeps.
        `hand_over` is the time in seconds for a call to reach the lane, and for its result to reach
        the waiting thread.
        """
        self.name = name
        self._trace, self._clock, self._cost, self._hand_over = trace, clock, cost, hand_over
        self._calls: deque[_Call] = deque()
        self._busy = False

    def start(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """See `Lane.start`."""
        future: VirtualFuture[T] = VirtualFuture(self._clock)

        def cost() -> float:
            return 0.0 if self._cost is None else self._cost(name, *args, **kwargs)

        arrives = self._clock.now + self._hand_over
        self._calls.append(_Call(future, name, arrives, lambda: call(*args, **kwargs), cost))
        if not self._busy:
            self._next()
        return future

    def later(
        self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], Future[T]]:
        """See `Lane.later`."""
        queued = self.start(name, call, *args, **kwargs)
        return lambda: queued

    def close(self) -> None:
        """Nothing to release."""

    def _next(self) -> None:
        self._busy = bool(self._calls)
        if self._busy:
            call = self._calls.popleft()
            begins = max(self._clock.now, call.arrives)
            self._clock.at(begins, lambda: self._do(call), call.future)

    def _do(self, call: _Call) -> None:
        clock, future = self._clock, call.future
        if future.set_running_or_notify_cancel():
            begin = clock.now
            if cost := call.cost():
                clock.sleep(cost)
                self._trace.runs.append(Span(self.name, call.name, begin, clock.now))
            tell: Callable[[], None]
            try:
                tell = partial(future.set_result, call.work())
            except BaseException as error:
                tell = partial(future.set_exception, error)
            self._trace.calls.append(Span(self.name, call.name, begin, clock.now))
            if self._hand_over:
                clock.at(clock.now + self._hand_over, tell)
            else:
                tell()
        self._next()
