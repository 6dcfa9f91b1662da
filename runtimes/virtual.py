"""Lanes on a virtual clock: the real scheduler with stated times, and no devices to wait for.

Time passes only while somebody sleeps or waits for a result. Whoever is at work meanwhile takes
turns, one at a time, the one whose moment comes first: a run is the same every time.
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
    """Something to do at a moment to come."""

    moment: float
    order: int
    action: Callable[[], None]
    makes: Future[Any] | None
    """The result that comes of it, if it takes time: it is work, and gets a thread of its own."""


class VirtualClock:
    """A clock that starts at 0 and moves when somebody sleeps or waits.

    That is either a worker of this clock or the program outside, which lets the workers take
    their turns while it sleeps or waits itself.
    """

    def __init__(self) -> None:
        """At 0."""
        self.now = 0.0
        self.worker: _Worker | None = None
        """Who is at work; None for the program outside."""
        self._due: list[_Due] = []
        self._order = count()
        self._wanted: Callable[[float], bool] = lambda _: True
        """Whether the program outside wants to go on before some moment."""

    def __call__(self) -> float:
        """Seconds since the start."""
        return self.now

    def at(
        self, moment: float, action: Callable[[], None], makes: Future[Any] | None = None
    ) -> None:
        """Have something done at a moment to come, beside whoever is at work then.

        What takes time says which result it `makes`: whoever waits for that one does it in place.
        """
        heappush(self._due, _Due(moment, next(self._order), action, makes))

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        until, worker = self.now + seconds, self.worker
        if worker is None:
            self._wanted = lambda moment: moment > until
            while self._due and self._due[0].moment <= until:
                self._turn()
            self.now = until
        elif (self._due and self._due[0].moment <= until) or self._wanted(until):
            self.at(until, worker.resume)
            worker.pause()
        else:  # It would be this worker's turn again.
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
                raise RuntimeError("nobody on this clock is at work on what is waited for")
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
    """A thread that runs only between `resume` and its next `pause`, while the resumer waits."""

    idle: ClassVar[list[_Worker]] = []
    """Threads without work: to begin one takes as long as a whole step."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.work: Callable[[], None] = lambda: None
        self._turn, self._back = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._back.acquire()
        # One that is never resumed must not keep the program from ending.
        threading.Thread(target=self._run, daemon=True).start()

    @classmethod
    def begin(cls, clock: VirtualClock, work: Callable[[], None]) -> None:
        """Do `work` up to its first pause."""
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
    """Whoever asks for the result waits for it on the virtual clock."""

    def __init__(self, clock: VirtualClock) -> None:
        """For a call that some lane of `clock` is to make."""
        super().__init__()
        self._clock = clock

    def result(self, timeout: float | None = None) -> Any:
        """See `Future.result`; a time-out is none of the virtual clock."""
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
    """A lane whose calls take the time that they sleep on the clock."""

    def __init__(
        self,
        name: str,
        trace: Trace,
        clock: VirtualClock,
        cost: Callable[..., float] | None = None,
        hand_over: float = 0.0,
    ) -> None:
        """A lane of `clock`.

        `cost` is asked for (call name, *arguments) and answers in seconds: what a call takes
        before its own sleeps. `hand_over` is how long a call takes to arrive here, and its result
        to be known to those who wait for it.
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
