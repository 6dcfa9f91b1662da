"""What ran when: spans of time on named lanes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Span", "Spans", "Trace", "covered", "overlap"]


class Span(NamedTuple):
    """Something that ran on a lane from `start` to `end`, in seconds of the trace's clock."""

    lane: str
    name: str
    start: float
    end: float
    sent: int = 0
    """Bytes copied to a device's own memory."""
    read: int = 0
    """Bytes copied back from it."""


class Spans(NamedTuple):
    """What ended during some interval."""

    calls: list[Span]
    """Calls on the lanes."""
    runs: list[Span]
    """Runs of device sessions inside them."""


class Trace:
    """Spans that have ended: `calls` on the lanes, and `runs` of device sessions inside them."""

    def __init__(self) -> None:
        """An empty trace."""
        self.calls: list[Span] = []
        self.runs: list[Span] = []
        self.placed: dict[str, Counter[str]] = {}
        """How many nodes of each graph run on which provider; graphs are named like their runs."""
        self._kept: Spans | None = None

    def keep(self) -> Spans:
        """Remember spans from now on; the returned object grows with every `take`."""
        self._kept = Spans([], [])
        return self._kept

    def take(self) -> Spans:
        """What has ended since the last `take`."""
        calls, self.calls = self.calls, []
        runs, self.runs = self.runs, []
        if self._kept is not None:
            self._kept.calls.extend(calls)
            self._kept.runs.extend(runs)
        return Spans(calls, runs)


def covered(
    spans: Iterable[Span], since: float = float("-inf"), until: float = float("inf")
) -> float:
    """Seconds between `since` and `until` in which at least one of `spans` runs."""
    total = 0.0
    for start, end in sorted([(span.start, span.end) for span in spans]):
        end = min(end, until)
        if end > since:
            total += max(0.0, end - max(start, since))
            since = end
    return total


def overlap(spans: Iterable[Span], others: Iterable[Span]) -> float:
    """Seconds in which one of `spans` and one of `others` both run (each set disjoint)."""
    others = list(others)
    return sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in spans for b in others)
