"""How well the simulator predicts this machine: its profile is measured, then both are run.

``python -P -m mirror_edge.apps.predict [BUNDLE] --target-device cpu:0 --draft-device cpu:1``
measures T(n) of prefix, exit head, suffix and draft, the hand-over between the lanes and the host's
time of a plain step; records how the models agree on some prompts; answers these prompts in
`ar`, `sd` and `mirror`, in turn with the measuring; and simulates the same answers. Answers to two
other prompts say how much longer forwards take in use. It prints measured and predicted tokens a
second. The draft's streams are not used.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS
from mirror_edge.errors import DeviceError, OptionError

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.apps.record import Record
    from mirror_edge.bundle import Bundle
    from mirror_edge.costs import Costs
    from mirror_edge.policy import Mode, Strategy
    from mirror_edge.protocols import DraftGraph
    from mirror_edge.rollout import ModelDrafter
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.stats import Stats, StepRecord

_MODES: tuple[Mode, ...] = ("ar", "sd", "mirror")
_CALIBRATION = 2
"""Prompts whose answers calibrate."""


def predict(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle's folder; left out: the demo pair.")
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=1, max=len(PROMPTS) - _CALIBRATION, help="How many.")
    ] = 4,
    new_tokens: Annotated[int, typer.Option(min=8, help="Of an answer.")] = 96,
    window: Annotated[int, typer.Option(min=1, help="γ.")] = 4,
    candidates: Annotated[int, typer.Option(min=1, help="κ.")] = 4,
    branches: Annotated[int, typer.Option(min=1, help="R.")] = 8,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each mode, in turn.")] = 3,
    seconds: Annotated[float, typer.Option(help="To measure T(n) for, in all.")] = 10.0,
    target_device: options.Device = "cpu",
    draft_device: options.Device = "cpu",
    target_threads: Annotated[int, typer.Option(min=1)] = 1,
    draft_threads: Annotated[int, typer.Option(min=1)] = 1,
    profile: Annotated[Path | None, typer.Option(help="Write what was measured.")] = None,
    recording: Annotated[Path | None, typer.Option(help="Write how the models agree.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare measured tokens a second with simulated ones."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import bundle as bundles
    from mirror_edge.apps.calibrate import host, in_use, typical
    from mirror_edge.policy import Strategy
    from mirror_edge.runtimes.profile import write
    from mirror_edge.runtimes.recording import Recording
    from mirror_edge.text import Text

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    text = Text.read(read.folder)
    chats = [text.encode_chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    asked, others = chats[:prompts], chats[-_CALIBRATION:]
    plans = {mode: Strategy(mode, window, candidates, branches, 0) for mode in _MODES}
    real: dict[Mode, list[list[Stats]]] = {mode: [] for mode in _MODES}
    measured: list[_Measured] = []
    steps: list[StepRecord] = []
    devices = (target_device, target_threads), (draft_device, draft_threads)
    with _opened(read, *devices) as pair:
        records = [pair.recorded(tokens, new_tokens, window, candidates) for tokens in asked]
        bar = Console(stderr=True)
        for _ in track(range(repeat), description="Measuring and answering", console=bar):
            measured.append(pair.measured(seconds / repeat))
            for mode, plan in plans.items():
                real[mode].append([pair.answered(tokens, new_tokens, plan) for tokens in asked])
                for tokens in others:
                    steps += pair.answered(tokens, new_tokens, plan).steps
    hand_over = statistics.median(one.hand_over for one in measured)
    costs = in_use(typical([one.costs for one in measured]), steps)
    hosts = {mode: host(steps, mode, hand_over) for mode in _MODES}
    draws = [(one.shared, one.ranks) for one in records]
    machine = _profile(read, costs, hand_over, hosts["mirror"], draws, plans["mirror"])
    if profile is not None:
        write(machine, profile)
    if recording is not None:
        about = {"bundle": read.manifest.name, "prompts": prompts, "temperature": 0.0}
        shared = [said for draft, _ in draws for said in draft]
        Recording(about, shared, [rank for _, ranks in draws for rank in ranks]).write(recording)
    figures = {
        mode: _compared(replace(machine, host=hosts[mode]), records, plans[mode], runs)
        for mode, runs in real.items()
    }
    if as_json:
        typer.echo(json.dumps({"bundle": read.manifest.name, "modes": figures}))
        return
    for mode, found in figures.items():
        typer.echo(
            f"{mode:7} measured {found['measured']:8.1f} tokens/s, predicted "
            f"{found['predicted']:8.1f}, ratio {found['ratio']:.3f}; tokens a step "
            f"{found['measured_step']:.2f} and {found['predicted_step']:.2f}"
        )


@dataclass(frozen=True)
class _Measured:
    """Times in seconds; `hand_over` is one way."""

    costs: Costs
    hand_over: float


@dataclass(frozen=True)
class _Pair:
    """A target and its draft on their lanes."""

    on: Decoder
    graph: DraftGraph
    drafter: ModelDrafter
    eos: frozenset[int]

    def measured(self, seconds: float) -> _Measured:
        """What the forwards and a hand-over take."""
        from mirror_edge.measuring import measure

        lane = self.on.target_lane
        costs = lane.start("measure", measure, self.on, self.drafter, seconds).result()
        return _Measured(costs, lane.start("measure", self._hand_over).result())

    def _hand_over(self) -> float:
        clock, taken = self.on.clock, []
        for _ in range(101):
            began = clock()
            self.on.draft_lane.start("measure", lambda: None).result()
            taken.append((clock() - began) / 2)
        return statistics.median(taken)

    def recorded(
        self, prompt: Sequence[int], new_tokens: int, window: int, candidates: int
    ) -> Record:
        """How the models agree on the answer to a prompt."""
        from mirror_edge.apps.record import Record
        from mirror_edge.apps.replay import Replayer
        from mirror_edge.policy import Speculation
        from mirror_edge.sampling import Sampler, Sampling

        asked = Speculation("mirror", window, candidates, "all")
        sampler, into = Sampler(Sampling(), self.on.target.vocabulary), Record()
        Replayer(self.on, self.graph, asked, self.eos).answer(prompt, new_tokens, sampler, into)
        return into

    def answered(self, prompt: Sequence[int], new_tokens: int, plan: Strategy) -> Stats:
        """A real answer."""
        from mirror_edge.answer import Answer
        from mirror_edge.decode import decode
        from mirror_edge.driving import run
        from mirror_edge.sampling import Sampler, Sampling

        answer = Answer(
            on=self.on,
            tokens=list(prompt),
            plan=plan,
            sampler=Sampler(Sampling(), self.on.target.vocabulary),
            drafter=None if plan.mode == "ar" else self.drafter,
            eos=self.eos,
            limit=min(len(prompt) + new_tokens, self.on.target.context),
        )

        async def speak() -> None:
            async for _ in decode(answer):
                pass

        run(speak())
        return answer.stats


@contextmanager
def _opened(read: Bundle, target: tuple[str, int], draft: tuple[str, int]) -> Iterator[_Pair]:
    from mirror_edge.answer import Decoder
    from mirror_edge.devices import Device, runtime_for
    from mirror_edge.growth import Guesses
    from mirror_edge.lanes import ThreadLane
    from mirror_edge.rollout import ModelDrafter
    from mirror_edge.text import Text
    from mirror_edge.trace import Trace

    if read.manifest.draft is None:
        raise OptionError(f"{read.folder}: has no draft. Export the bundle with --draft.")
    trace, places = Trace(), [Device.parse(name) for name, _ in (target, draft)]
    for place in places:
        if place.kind != "cpu":
            raise DeviceError(f"device {place}: predict runs on CPU devices. Write cpu or cpu:0.")
    runtimes = [runtime_for(place, read.manifest.format) for place in places]
    opened = runtimes[0].open_target(read, places[0], target[1], trace)
    graph = runtimes[1].open_draft(read, places[1], draft[1], trace)
    lanes = [
        ThreadLane(name, trace, place.cores)
        for name, place in zip(("target", "draft"), places, strict=True)
    ]
    try:
        decoder = Decoder(opened, lanes[0], lanes[1], trace)
        yield _Pair(decoder, graph, ModelDrafter(graph, Guesses(0)), Text.read(read.folder).eos)
    finally:
        for lane in lanes:
            lane.close()
        graph.close()
        opened.close()


def _profile(
    read: Bundle,
    costs: Costs,
    hand_over: float,
    host: float,
    draws: Sequence[tuple[Sequence[bool], Sequence[int | None]]],
    plan: Strategy,
) -> Profile:
    from mirror_edge.runtimes.profile import Profile, Source, StatedText

    shared = [said for draft, _ in draws for said in draft]
    ranks = [rank for _, found in draws for rank in found]
    within = [sum(rank is not None and rank < k for rank in ranks) for k in range(1, 9)]
    figures = "target.prefix target.exit target.suffix draft.forward hand_over_ms host_ms slow_down"
    spec = read.manifest.draft
    assert spec is not None
    return Profile(
        name=f"{read.manifest.name}, measured here",
        costs=costs,
        branch_rows=spec.branch_rows,
        stream_share=0.0,
        hand_over=hand_over,
        host=host,
        text=StatedText(sum(shared) / len(shared), tuple(n / len(ranks) for n in within)),
        window=plan.window,
        candidates=plan.candidates,
        branches=plan.branches,
        sources=(
            Source(
                (*figures.split(), "text.agreement", "text.coverage"),
                "measured",
                "By python -m mirror_edge.apps.predict.",
                None,
            ),
        ),
    )


def _compared(
    machine: Profile, records: Sequence[Record], plan: Strategy, runs: Sequence[Sequence[Stats]]
) -> dict[str, float]:
    """Tokens a second and tokens a step, of the real answers and of the simulated ones."""
    from mirror_edge.runtimes.scripts import RecordedScript
    from mirror_edge.runtimes.simulated import simulate

    simulated = []
    for record in records:
        # Two places in front: the prompt's one token, and the answer's first.
        draft, ranks = [True, True, *record.shared], [0, 0, *record.ranks]
        script = RecordedScript(draft, ranks)
        tokens = len(record.shared) + 1
        simulated.append(simulate(machine, script, plan, prompt_tokens=1, new_tokens=tokens))
    measured = statistics.median(_speed(run) for run in runs)
    predicted = _speed(simulated)
    return {
        "measured": measured,
        "predicted": predicted,
        "ratio": predicted / measured,
        "measured_step": _step(runs[0]),
        "predicted_step": _step(simulated),
    }


def _speed(answers: Sequence[Stats]) -> float:
    tokens = sum(stats.generated_tokens - 1 for stats in answers)
    return tokens / sum(stats.decode_seconds for stats in answers)


def _step(answers: Sequence[Stats]) -> float:
    steps = [step.committed for stats in answers for step in stats.steps]
    return sum(steps) / len(steps)


if __name__ == "__main__":
    program.run(program.single(predict))
