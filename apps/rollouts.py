"""What the draft's streams are worth: forwards and time of a rollout, with and without them.

``python -P -m mirror_edge.apps.rollouts [BUNDLE] [--prompts FILE] [--json]`` has the target answer
every prompt, and then walks along each answer as mode `mirror` does. At every step it rolls out the
one branch that is drafted after a miss, and those of the R likeliest outcomes; it does so with
0 to s streams, and with siblings of the first guess (s+11: eleven), in the same places. It prints
for each, of the single branch and of the R:

- forwards a rollout (the slowest branch decides), and tokens that a branch gains a forward;
- milliseconds a rollout, the median, on one thread.

The branches must be the same with any number of streams; those that differ from the ones without
are counted. In float32 there should be none.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS, lines, opened
from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge.growth import Guesses
    from mirror_edge.hypotheses import Branch, Root
    from mirror_edge.policy import Strategy
    from mirror_edge.protocols import DraftGraph, Target
    from mirror_edge.sampling import Sampler


def rollouts(
    bundle: options.Bundle = None,
    prompts: Annotated[
        Path | None, typer.Option(help="One prompt a line; left out: twenty simple ones.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Repeatable; left out: 0 and 1.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Of an answer, at most.")] = 64,
    window: Annotated[int, typer.Option(min=1, help="γ: tokens a branch.")] = 7,
    candidates: Annotated[int, typer.Option(min=1, help="κ: outcomes at each place.")] = 4,
    branches: Annotated[int, typer.Option(min=1, help="R: branches of a rollout.")] = 8,
    siblings: Annotated[int, typer.Option(min=0, help="Of a stream's first guess.")] = 11,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure rollouts with and without the draft's streams."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling, Speculation, load
    from mirror_edge import bundle as bundles
    from mirror_edge.growth import Guesses
    from mirror_edge.policy import resolve
    from mirror_edge.rollout import ways
    from mirror_edge.sampling import Sampler
    from mirror_edge.text import Message

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    if read.manifest.draft is None:
        raise OptionError(f"{read.folder}: has no draft. Export the bundle with --draft.")
    plan = resolve(Speculation("mirror", window, candidates, branches), can_draft=True)
    asked = PROMPTS if prompts is None else lines(prompts)
    grid = [
        (Sampling(temperature=heat, seed=seed), [Message(role="user", content=prompt)])
        for heat in temperature or (0.0, 1.0)
        for prompt in asked
    ]
    texts = []
    with load(read.folder, verify=False) as model:
        for sampling, prompt in track(grid, "Answering", console=Console(stderr=True)):
            said = model.generate(
                prompt,
                max_new_tokens=new_tokens,
                sampling=sampling,
                speculation=Speculation("ar"),
            )
            before = model.tokenize(prompt)
            texts.append((sampling, [*before, *said.tokens], len(before)))
    found: dict[float, list[Record]] = {}
    streams = read.manifest.draft.streams
    ladder = ways(Guesses(streams, siblings if streams else 0))
    with opened(read, threads=1) as (on, graph):
        for sampling, text, start in track(texts, "Rolling out", console=Console(stderr=True)):
            walk = Walk(on.target, graph, plan, Sampler(sampling, on.target.vocabulary), text)
            records = found.setdefault(sampling.temperature, [Record(ahead) for ahead in ladder])
            walk.measure(max(start, 2), records)
    figures = {f"{heat:g}": [r.figures(window) for r in records] for heat, records in found.items()}
    about = {"bundle": read.manifest.name, "window": window, "branches": branches, "seed": seed}
    if as_json:
        typer.echo(json.dumps(about | {"temperatures": figures}))
    else:
        _show(about, figures)


class Step(NamedTuple):
    """A place on an answer, and the rollouts that belong there."""

    place: int
    """Committed tokens."""
    drafted: tuple[int, ...]
    roots: list[Root]


@dataclass
class Record:
    """What the rollouts with one way of guessing ahead took."""

    ahead: Guesses
    single_forwards: list[int] = field(default_factory=list)
    single_ms: list[float] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    branches: int = 0
    differing: int = 0
    """Branches that are not those without streams."""

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
"""Arguments of a forward that says nothing of streams."""


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
        """Roll out behind every step from `start` on, in all the ways of `records`; the first is
        without streams.
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
        """Where the windows begin, what the draft says there, and which outcomes are likely."""
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
        """All branches of `steps`, and in `record` what they took."""
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


def _show(about: dict[str, Any], figures: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{about['bundle']}: γ={about['window']}, R={about['branches']}, seed {about['seed']}",
        highlight=False,
    )
    table = Table("T", "streams", "R", "rollouts", "forwards", "tokens a forward", "ms", "differ")
    for heat, found in figures.items():
        for of in found:
            for kind, count in (("single", 1), ("many", about["branches"])):
                cells = ["-" if of[kind][n] is None else f"{of[kind][n]:.2f}" for n in of[kind]]
                differ = f"{of['differing']} of {of['branches']}" if kind == "many" else ""
                ahead = (
                    f"{of['streams']}+{of['siblings']}" if of["siblings"] else str(of["streams"])
                )
                table.add_row(heat, ahead, str(count), str(of["rollouts"]), *cells, differ)
    console.print(table)


if __name__ == "__main__":
    program.run(program.single(rollouts))
