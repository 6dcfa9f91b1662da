"""An answer's timeline: what each lane did in every step, as slices and marks on named threads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mirror_edge.stats import StepRecord
    from mirror_edge.trace import Span, Spans

__all__ = ["THREADS", "Mark", "Slice", "Timeline", "chrome_trace"]

THREADS = ("target", "token channel", "draft")


class Slice(NamedTuple):
    """Something that took from `start` to `end`, in seconds since the timeline's start."""

    thread: str
    name: str
    start: float
    end: float
    args: dict[str, Any]


class Mark(NamedTuple):
    """Something that happened at a moment."""

    thread: str
    name: str
    at: float
    args: dict[str, Any]


@dataclass(frozen=True)
class Timeline:
    """Slices of a thread are disjoint or inside one another; `steps` follow one another."""

    steps: list[Slice]
    """One per step, on the target's thread, with its record."""
    slices: list[Slice]
    """In the order of their starts, the outer before the inner."""
    marks: list[Mark]
    """How the steps ended: `hit`, `miss` or `verdict` (where nothing was looked up)."""

    @classmethod
    def of(cls, spans: Spans, records: Sequence[StepRecord]) -> Timeline:
        """From everything that a trace kept during one answer, and the answer's steps."""
        # What was measured before the answer is no part of it.
        first = min((c.start for c in spans.calls if (c.lane, c.name) == _PREFILL), default=0.0)
        calls = sorted((c for c in spans.calls if c.end > first), key=lambda span: span.start)
        runs = sorted((r for r in spans.runs if r.end > first), key=lambda span: span.start)
        begin = min((span.start for span in chain(calls, runs)), default=0.0)
        drafting = [call for call in calls if call.lane == "draft"]
        steps = [_step(record) for record in records]
        slices = [
            *steps,
            *(_slice("target", call) for call in calls if (call.lane, call.name) == _PREFILL),
            *(_slice("target", run) for run in runs if run.name not in _DRAFTS),
            *(_slice("draft", call) for call in drafting),
            *(_slice("draft", run, _DRAFTS[run.name]) for run in runs if run.name in _DRAFTS),
            *_channel(runs, drafting),
            *_after_suffix(steps, runs, drafting),
        ]
        slices.sort(key=lambda one: (one.start, -one.end))
        marks = [_mark(step) for step in steps]
        return cls(
            [_shifted(one, begin) for one in steps],
            [_shifted(one, begin) for one in slices],
            [mark._replace(at=mark.at - begin) for mark in marks],
        )


_PREFILL = ("target", "prefill")
_HEAD = "exit head"
"""The draft's lane with the target's exit head, where that runs on the draft's device."""
_DRAFTS = {"draft": "forward", "draft exit": "exit"}
"""Sessions on the draft's device, and how they are shown."""


def chrome_trace(timeline: Timeline, about: dict[str, Any]) -> dict[str, Any]:
    """The timeline in the trace-event format that Perfetto and chrome://tracing open."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "mirror-edge"}}
    ]
    threads = {name: number for number, name in enumerate(THREADS, start=1)}
    for name, number in threads.items():
        thread = {"ph": "M", "pid": 1, "tid": number}
        events.append(thread | {"name": "thread_name", "args": {"name": name}})
        events.append(thread | {"name": "thread_sort_index", "args": {"sort_index": number}})
    for one in timeline.slices:
        events.append(
            {
                "ph": "X",
                "name": one.name,
                "cat": one.thread,
                "pid": 1,
                "tid": threads[one.thread],
                "ts": one.start * 1e6,
                "dur": (one.end - one.start) * 1e6,
                "args": one.args,
            }
        )
    for mark in timeline.marks:
        events.append(
            {
                "ph": "i",
                "s": "t",
                "name": mark.name,
                "cat": "outcome",
                "pid": 1,
                "tid": threads[mark.thread],
                "ts": mark.at * 1e6,
                "args": mark.args,
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _step(record: StepRecord) -> Slice:
    """The step, with its record as arguments."""
    args = asdict(record)
    began, seconds = args.pop("began"), args["seconds"]
    return Slice("target", f"{record.mode} step", began, began + seconds, args)


def _mark(step: Slice) -> Mark:
    hit = step.args["hit"]
    name = "verdict" if hit is None else "hit" if hit else "miss"
    counts = {key: step.args[key] for key in ("proposed", "accepted", "committed")}
    return Mark("target", name, step.end, counts)


def _channel(runs: Sequence[Span], drafting: Sequence[Span]) -> list[Slice]:
    """From the exit head's end to the rollout that starts from its candidates.

    With an exit head on the draft's device: from the prefix's end to the exit head.
    """
    ends = {name: [run.end for run in runs if run.name == name] for name in ("prefix", "exit")}
    crossings, before = [], ""
    for call in drafting:
        name, of = ("hidden rows", "prefix") if call.name == _HEAD else ("exit signal", "exit")
        at = bisect_right(ends[of], call.start)
        if at and (call.name == _HEAD or (call.name == "rollout" and before != _HEAD)):
            crossings.append(Slice("token channel", name, ends[of][at - 1], call.start, {}))
        before = call.name
    return crossings


def _after_suffix(
    steps: Sequence[Slice], runs: Sequence[Span], drafting: Sequence[Span]
) -> list[Slice]:
    """What a step did after its suffix, and how long it waited for the draft then and before."""
    ends = [run.end for run in runs if run.name == "suffix"]
    rollouts = [call for call in drafting if call.name == "rollout"]
    starts = [call.start for call in rollouts]
    found = []
    for step in steps:
        if waited := step.args["waited"]:
            found.append(Slice("target", "wait for the draft", step.start, step.start + waited, {}))
        at = bisect_right(ends, step.end)
        if at == 0 or ends[at - 1] < step.start:
            continue
        suffix_end = ends[at - 1]
        found.append(Slice("target", "verify and look up", suffix_end, step.end, {}))
        at = bisect_right(starts, step.end)
        if step.args["hit"] and at and suffix_end < rollouts[at - 1].end <= step.end:
            end = rollouts[at - 1].end
            found.append(Slice("target", "wait for the rollout", suffix_end, end, {}))
    return found


def _slice(thread: str, span: Span, name: str | None = None) -> Slice:
    return Slice(thread, name or span.name, span.start, span.end, {})


def _shifted(one: Slice, begin: float) -> Slice:
    return one._replace(start=one.start - begin, end=one.end - begin)
