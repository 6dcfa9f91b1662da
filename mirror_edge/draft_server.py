"""The draft in a child process: opens the bundle's draft graph and answers calls.

``python -m mirror_edge.draft_server FOLDER DEVICE THREADS``, with one end of a socket pair as its
standard input (on Windows, the bytes from `socket.share`); see `process.py` for the other end. It
exits when the other end is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge import bundle as bundles
from mirror_edge.devices import Device, runtime_for
from mirror_edge.hypotheses import Root
from mirror_edge.lanes import Dropped
from mirror_edge.protocols import Drafter
from mirror_edge.rollout import ModelDrafter
from mirror_edge.sampling import FORESIGHT, Sampler, Sampling
from mirror_edge.trace import Trace
from mirror_edge.wire import Asked, Form, Kind, Message, Wire, in_line

if TYPE_CHECKING:
    from mirror_edge.grammar import Constraint, Grammar
    from mirror_edge.text import Text

__all__ = ["serve"]

_OPENING = 600.0
"""Seconds after which opening is aborted, if the parent has not ended it before."""
_GRACE = 1.0
"""Seconds that the parent has to end an overdue call before this process ends itself."""
_ROWS, _ROOTS, _DEPTH = 16, 8, 3
"""Sizes of the warm-up before the first call."""


def main() -> None:
    """Serve until the other end is gone."""
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, device, threads = sys.argv[1:]
    wire = Wire(_connection())
    with contextlib.suppress(EOFError, ConnectionError):
        trace = Trace()
        _end_after(_OPENING)
        try:
            drafter, pace = _open(Path(folder), Device.parse(device), int(threads), trace)
        except Exception as error:
            wire.send(Message.text(Kind.FAILED, 0, str(error)))
            return
        _end_after(None)
        placed = json.dumps(trace.placed).encode()
        wire.send(Message(Kind.READY, 0, list(placed), (pace,)))
        serve(wire, drafter, trace, partial(_constraint, Path(folder)))
        drafter.close()


def serve(
    wire: Wire, drafter: Drafter, trace: Trace, constrain: Callable[[Grammar, int], Constraint]
) -> None:
    """Answer calls until one fails; `constrain` makes constraints for guesses.

    Raises:
        EOFError: once the other end is gone.
        ConnectionError: if it goes in the middle of an answer.
    """
    sampler, place, constraint = Sampler(Sampling(), 1), 0, None
    while True:
        message = wire.receive()
        if message.kind not in (Kind.FORM, Kind.PREFILL, Kind.REVIEW, Kind.ROLLOUT):
            continue  # A drop that arrived after the branches were sent.
        _end_after(message.floats[0] + _GRACE)
        found: Sequence[int] = ()
        try:
            if message.kind is Kind.FORM:
                grammar, vocabulary = Form.of(message)
                constraint = None if grammar is None else constrain(grammar, vocabulary)
            elif message.kind is Kind.PREFILL:
                place = len(message.ints)
                drafter.prefill(message.ints)
            else:
                asked = Asked.of(message)
                if asked[4:] != sampler.settings or sampler.constraint is not constraint:
                    sampler = Sampler(*asked[4:], constraint)
                if message.kind is Kind.REVIEW:
                    place = len(asked.committed)
                    found = drafter.review(asked.committed, asked.depth, sampler)
                else:
                    place += len(asked.committed)
                    dropped = _Dropped(wire, message.call)
                    found = in_line(drafter.rollout(*asked[:4], sampler, dropped))
        except Exception as error:
            wire.send(Message.text(Kind.FAILED, message.call, f"{type(error).__name__}: {error}"))
            return
        _end_after(None)
        times = [moment for run in trace.take()[1] for moment in (run.start, run.end)]
        wire.send(Message(Kind.DONE, message.call, found, times))
        sampler.prepare(place, place + FORESIGHT)


class _Dropped(Dropped):
    """Set once the other end has dropped the call; checks for messages when queried."""

    def __init__(self, wire: Wire, call: int) -> None:
        super().__init__()
        self._wire, self._call = wire, call

    def is_set(self) -> bool:
        while not super().is_set() and self._wire.arrived():
            message = self._wire.receive()
            if (message.kind, message.call) == (Kind.DROP, self._call):
                if message.ints:
                    self.drop_all_but(Root(*message.ints))
                else:
                    self.set()
        return super().is_set()


@cache
def _text(folder: Path) -> Text:
    from mirror_edge.text import Text  # Most answers have no form, and need no tokenizer here.

    return Text.of(bundles.read(folder, verify=False))


def _constraint(folder: Path, grammar: Grammar, vocabulary: int) -> Constraint:
    """The constraint of guesses at answers by the bundle's models."""
    return _text(folder).constrain(grammar, vocabulary, guessing=True)


def _connection() -> socket.socket:
    """The socket passed as standard input, which the null device then replaces."""
    if sys.platform == "win32":
        return socket.fromshare(sys.stdin.buffer.read())
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return connection


def _open(folder: Path, device: Device, threads: int, trace: Trace) -> tuple[ModelDrafter, float]:
    """The draft, warmed up, and its seconds per row."""
    if device.cores:
        os.sched_setaffinity(0, device.cores)
    bundle = bundles.read(folder, verify=False)
    graph = runtime_for(device, bundle.manifest.format).open_draft(bundle, device, threads, trace)
    drafter, pace = ModelDrafter(graph, clock=time.perf_counter), 0.0
    for token in range(2):
        began = time.perf_counter()
        drafter.prefill([token] * _ROWS)
        pace = (time.perf_counter() - began) / _ROWS
    roots = [Root(0, token) for token in range(_ROOTS)]
    drafter.rollout([], [], roots, _DEPTH, Sampler(Sampling(), graph.vocabulary))
    trace.take()
    return drafter, pace


def _end_after(seconds: float | None) -> None:
    """Have the system end this process after `seconds`, even if it hangs; None cancels that."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    elif seconds is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(seconds, exit=True)


if __name__ == "__main__":
    main()
