"""A walk along an answer that rolls out at every step, and the record of what that took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mirror_edge.growth import Guesses
    from mirror_edge.hypotheses import Branch, Root
    from mirror_edge.policy import Strategy
    from mirror_edge.protocols import DraftGraph, Target
    from mirror_edge.sampling import Sampler

__all__ = ["Counting", "Record", "Step", "Walk"]


class Step(NamedTuple):
    """A place on an answer, and the rollouts that belong there."""

    place: int
    """Committed tokens."""
    drafted: tuple[int, ...]
    roots: list[Root]


@dataclass
class Record:
    """The rollouts with one way of guessing ahead."""

    ahead: Guesses
    single_forwards: list[int] = field(default_factory=list)
    single_ms: list[float] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    branches: int = 0
    differing: int = 0
    """Branches that are not the same without streams."""

    def figures(self, window: int) -> dict[str, Any]:
        """Means of the counts, medians of the times."""

        def of(forwards: list[int], times: list[float]) -> dict[str, float | None]:
            if not forwards:
                return dict.fromkeys(("forwards", "tokens_a_forward", "ms"))
            mean = statistics.mean(forwards)
            return {
                "forwards": mean,
                "tokens_a_forward": window / mean,
                "ms": statistics.median(times),
            }

        return {
            **self.ahead._asdict(),
            "rollouts": len(self.forwards),
            "branches": self.branches,
            "differing": self.differing,
            "single": of(self.single_forwards, self.single_ms),
            "many": of(self.forwards, self.ms),
        }


_MAIN_ROWS = 5
"""Arguments of a forward that names no streams."""


class Counting:
    """A `DraftGraph` that counts the forwards of branches: those of main rows name no streams."""

    def __init__(self, graph: DraftGraph) -> None:
        """Count what `graph` does."""
        self.context, self.main = graph.context, graph.main
        self.vocabulary, self.named = graph.vocabulary, graph.named
        self.slots, self.streams = graph.slots, graph.streams
        self.move, self.stop, self.close = graph.move, graph.stop, graph.close
        self.forwards = 0
        self._graph = graph

    def forward(self, *arguments: Any) -> Any:
        """See `DraftGraph.forward`."""
        self.forwards += len(arguments) > _MAIN_ROWS
        return self._graph.forward(*arguments)


@dataclass
class Walk:
    """Along one answer, step by step."""

    target: Target
    graph: DraftGraph
    plan: Strategy
    sampler: Sampler
    text: list[int]
    """Prompt and answer."""

    def measure(self, start: int, records: Sequence[Record]) -> None:
        """Roll out after every step from `start` on, in all ways of `records`, the first of which
        is without streams.
        """
        steps = list(self._steps(start))
        expected: list[Branch] = []
        for record in records:
            found = self._rolled_out(steps, record)
            expected = expected or found
            pairs = list(zip(expected, found, strict=True))
            record.branches += len(pairs)
            record.differing += sum(a != b for a, b in pairs)

    def _steps(self, start: int) -> Iterator[Step]:
        """Where the windows begin, what the draft proposes there, and which outcomes are likely."""
        from mirror_edge.growth import Guesses
        from mirror_edge.hypotheses import Root, choose_roots
        from mirror_edge.rollout import ModelDrafter

        text, plan, drafter = self.text, self.plan, ModelDrafter(self.graph, Guesses(0))
        self.target.prefill(text[: start - 1], 0)
        drafter.prefill(text[: start - 1])
        told, place, agreed, judged = start - 1, start, 0, 0
        while place < min(len(text), self.target.context - plan.window):
            root = Root(0, text[place - 1])
            (branch,) = drafter.rollout(
                text[told : place - 1], (), [root], plan.window, self.sampler
            )
            told, drafted = place - 1, branch.tokens
            signal = self.target.prefix(
                (text[place - 1], *drafted), place - 1, plan.pool(self.sampler.sampling)
            )
            assert signal is not None
            agreement = (agreed + 1) / (judged + 2)
            roots = choose_roots(signal, drafted, place, plan.candidates, agreement, self.sampler)
            yield Step(place, drafted, roots[: plan.branches])
            accepted = 0
            while accepted < len(drafted) and [drafted[accepted]] == text[place + accepted :][:1]:
                accepted += 1
            agreed, judged = agreed + accepted, judged + min(accepted + 1, len(drafted))
            place += accepted + 1

    def _rolled_out(self, steps: Sequence[Step], record: Record) -> list[Branch]:
        """All branches of `steps`; what they took goes into `record`."""
        from mirror_edge.hypotheses import Root
        from mirror_edge.rollout import ModelDrafter

        graph, text, depth = Counting(self.graph), self.text, self.plan.window
        drafter, told = ModelDrafter(graph, record.ahead), steps[0].place - 1
        drafter.prefill(text[:told])
        branches: list[Branch] = []
        for place, drafted, roots in steps:
            began, before = time.perf_counter(), graph.forwards
            root = Root(0, text[place - 1])
            branches += drafter.rollout(text[told : place - 1], (), [root], depth, self.sampler)
            between, middle = time.perf_counter(), graph.forwards
            branches += drafter.rollout([text[place - 1]], drafted, roots, depth, self.sampler)
            ended, told = time.perf_counter(), place
            record.single_forwards.append(middle - before)
            record.single_ms.append(1e3 * (between - began))
            record.forwards.append(graph.forwards - middle)
            record.ms.append(1e3 * (ended - between))
        return branches
