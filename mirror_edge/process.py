"""The drafter in a child process, so that a driver that hangs or aborts does not end the answer.

Only numbers cross (`wire.py`). A child that dies, misses its deadline or sends an invalid reply is
killed, and another is started in the background; it must read the text before it can draft again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mirror_edge.child import Child, ChildError
from mirror_edge.errors import ClosedError, DraftLostError, MirrorEdgeError
from mirror_edge.trace import Span, Trace
from mirror_edge.wire import Asked, Form, Kind, Message, WireError

if TYPE_CHECKING:
    from mirror_edge.devices import Device
    from mirror_edge.hypotheses import Branch, Root
    from mirror_edge.lanes import Dropped
    from mirror_edge.sampling import Sampler

__all__ = ["ProcessDrafter"]

T = TypeVar("T")

_log = logging.getLogger("mirror_edge")

_SILENCE = 2.0
"""Seconds that a call may take beyond the usual; they double after each consecutive failure."""
_MOST_DOUBLINGS = 5
_FORMING = 30.0
"""Seconds that a child may take to read its tokenizer and prepare a grammar."""
_USUAL = 4.0
"""How many times its usual time a call may take."""
_FIRST_DELAY, _LAST_DELAY, _ENOUGH = 0.25, 60.0, 30
"""Seconds before a restart: the first, doubled per consecutive failure, up to the last, and how
many doublings are enough for that. The first restart is immediate."""
_CLOSING = 5.0
"""Seconds to wait for a child that even the system cannot end."""


class ProcessDrafter:
    """A `Drafter` over a bundle's draft graph in a child process. It is `Recovering`."""

    def __init__(self, folder: Path, device: Device, threads: int, trace: Trace) -> None:
        """Open the draft of the bundle in `folder`; its runs are recorded in `trace`.

        Raises:
            DeviceError: if the child cannot open it, with the child's reason.
        """
        self._new_child = partial(Child, folder, device, threads)
        self._trace = trace
        self._calls = count(1)
        self._failures = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._why = ""
        self._told: Child | None = None
        self._formed: tuple[Child | None, Form] = None, Form(None, 0)
        """The form that a child was last told of."""
        self._child: Child | None = None
        self._child = self._latest = self._start()
        self._keeper = threading.Thread(target=self._keep, name="draft-process", daemon=True)
        self._keeper.start()

    @property
    def ready(self) -> bool:
        """See `Recovering.ready`."""
        return self._child is not None

    @property
    def pid(self) -> int:
        """The process ID of the latest child."""
        return self._latest.process.pid

    def prefill(self, tokens: Sequence[int]) -> None:
        """See `Drafter.prefill`.

        Raises:
            DraftLostError: if the child is lost during the call, or is not back yet.
        """
        child = self._child
        if child is None:
            raise DraftLostError(self._why)
        rows = len(tokens)
        message = Message(Kind.PREFILL, next(self._calls), tokens, (self._deadline(child, rows),))
        self._ask(child, message, rows)
        self._told = child

    def review(self, tokens: Sequence[int], latest: int, sampler: Sampler) -> list[bool]:
        """See `Drafter.review`. Raises as `prefill`."""
        child = self._child
        if child is None:
            raise DraftLostError(self._why)
        self._form(child, sampler)
        asked = Asked(tokens, (), (), latest, *sampler.settings)
        deadline = self._deadline(child, len(tokens))
        message = asked.message(next(self._calls), deadline, Kind.REVIEW)
        reply = self._ask(child, message, len(tokens))
        right = self._understood(child, asked.reviewed, reply)
        self._told = child
        return right

    def rollout(
        self,
        committed: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
        sampler: Sampler,
        dropped: Dropped | None = None,
    ) -> list[Branch]:
        """See `Drafter.rollout`.

        Raises:
            DraftLostError: if the child is lost during the call, or was after it last read the
                text.
        """
        child = self._child
        if child is None or child is not self._told:
            raise DraftLostError(self._why)
        self._form(child, sampler)
        rows = len(committed) + len(drafted) + depth * len(roots)
        asked = Asked(committed, drafted, roots, depth, *sampler.settings)
        message = asked.message(next(self._calls), self._deadline(child, rows))
        reply = self._ask(child, message, rows, dropped)
        branches = self._understood(child, asked.answered, reply)
        self._failures = 0
        return branches

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._closing.set()
            latest = self._latest
        latest.end()
        self._keeper.join(_CLOSING)
        latest.release()

    def _deadline(self, child: Child, rows: int) -> float:
        """Seconds that a call feeding `rows` rows may take."""
        patience = _SILENCE * 2.0 ** min(self._failures, _MOST_DOUBLINGS)
        return patience + _USUAL * max(child.pace) * rows

    def _form(self, child: Child, sampler: Sampler) -> None:
        """Tell the child which form the answer must have, if it does not know."""
        known = self._formed[1] if self._formed[0] is child else Form(None, 0)
        constraint = sampler.constraint
        form = Form(None if constraint is None else constraint.grammar, sampler.vocabulary)
        if form != known and (form.grammar or known.grammar):
            self._ask(child, form.message(next(self._calls), _FORMING), 0)
            self._formed = child, form

    def _ask(
        self, child: Child, message: Message, rows: int, dropped: Dropped | None = None
    ) -> Message:
        """The child's reply; its runs go into the trace."""
        try:
            reply = child.ask(message, rows, dropped)
        except ChildError as error:
            raise self._lost(child, str(error)) from error
        times = reply.floats
        runs = zip(times[::2], times[1::2], strict=True)
        self._trace.runs.extend([Span("draft", "draft", *run) for run in runs])
        return reply

    def _understood(self, child: Child, read: Callable[[Message], T], reply: Message) -> T:
        """The reply as decoded by `read`."""
        try:
            return read(reply)
        except WireError as error:
            raise self._lost(child, f"invalid reply: {error}") from error

    def _lost(self, child: Child, why: str) -> DraftLostError:
        """Kill the child, so that the keeper starts another; return the error to raise."""
        with self._lock:
            if self._child is child:
                self._child, self._why = None, f"the draft's process was lost: {why}."
        child.kill()
        return DraftLostError(self._why)

    def _keep(self) -> None:
        """Replace the child whenever it has ended; runs on a thread of its own."""
        while True:
            child = self._latest
            child.process.wait()
            if self._closing.is_set():
                return
            _log.info("%s", self._lost(child, child.how_it_ended()))
            child.release()
            began = time.perf_counter()
            while (back := self._restart()) is None:
                if self._closing.is_set():
                    return
            self._child = back
            _log.info("the draft is back after %.1f s.", time.perf_counter() - began)

    def _restart(self) -> Child | None:
        """Another child, or None if it cannot be started; consecutive failures delay it more."""
        doubled = 2.0 ** min(self._failures, _ENOUGH)
        if self._failures and self._closing.wait(min(_LAST_DELAY, _FIRST_DELAY * doubled)):
            return None
        self._failures += 1
        try:
            return self._start()
        except MirrorEdgeError as error:
            if not self._closing.is_set():
                _log.warning("the draft could not be restarted: %s", error)
            return None

    def _start(self) -> Child:
        with self._lock:
            if self._closing.is_set():
                raise ClosedError("the model was closed; load it again.")
            self._latest = child = self._new_child()
        try:
            child.open()
        except BaseException:
            child.kill()
            child.process.wait()
            child.release()
            raise
        self._trace.placed |= {name: Counter(nodes) for name, nodes in child.placed.items()}
        return child
