"""How well the simulator predicts this machine: its profile is measured, then both are run.

``python -P -m mirror_edge.apps.predict [BUNDLE] --target-device cpu:0 --draft-device cpu:1``
measures T(n) of prefix, exit head, suffix and draft, the hand-over between the lanes and the host's
time of a plain step; records how the models agree on some prompts; answers these prompts in
`ar`, `sd` and `mirror`, in turn with the measuring; and simulates the same answers. Answers to two
other prompts, one before and one behind them, say how much longer forwards take in use. Every
repeat is measured and predicted for itself, since a machine's speed drifts; it prints the medians
of tokens a second, and of their ratio with its range. The draft's streams are not used.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS

if TYPE_CHECKING:
    from mirror_edge.apps.plain_pair import Measured
    from mirror_edge.apps.record import Record
    from mirror_edge.bundle import Bundle
    from mirror_edge.costs import Costs
    from mirror_edge.policy import Mode, Strategy
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.stats import Stats, StepRecord

_MODES: tuple[Mode, ...] = ("ar", "sd", "mirror")
_CALIBRATION = 2
"""Prompts whose answers calibrate."""


def predict(
    bundle: options.Bundle = None,
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
    from mirror_edge.apps.plain_pair import opened
    from mirror_edge.devices import Device
    from mirror_edge.errors import DeviceError
    from mirror_edge.policy import Strategy
    from mirror_edge.runtimes.profile import write
    from mirror_edge.runtimes.recording import Recording
    from mirror_edge.text import Text

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    text = Text.of(read)
    chats = [text.encode_chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    asked, others = chats[:prompts], chats[-_CALIBRATION:]
    plans = {mode: Strategy(mode, window, candidates, branches, 0) for mode in _MODES}
    rounds: list[_Round] = []
    for place in map(Device.parse, (target_device, draft_device)):
        if place.kind != "cpu":
            raise DeviceError(f"device {place}: predict runs on CPU devices. Write cpu or cpu:0.")
    devices = (target_device, target_threads), (draft_device, draft_threads)
    with opened(read, *devices) as pair:
        records = [pair.recorded(tokens, new_tokens, window, candidates) for tokens in asked]
        bar = Console(stderr=True)
        for _ in track(range(repeat), description="Measuring and answering", console=bar):
            one = _Round(pair.measured(seconds / repeat))
            for mode, plan in plans.items():
                first, *run, last = (
                    pair.answered(tokens, new_tokens, plan)
                    for tokens in (others[0], *asked, others[1])
                )
                one.calibration.extend([*first.steps, *last.steps])
                one.real[mode] = run
            rounds.append(one)
    draws = [(one.shared, one.ranks) for one in records]

    def machine(of: Sequence[_Round], mode: Mode) -> Profile:
        steps = [step for one in of for step in one.calibration]
        hand_over = statistics.median(one.measured.hand_over for one in of)
        costs = in_use(typical([one.measured.costs for one in of]), steps)
        spent = host(steps, mode, hand_over)
        return _profile(read, costs, hand_over, spent, draws, plans["mirror"])

    if profile is not None:
        write(machine(rounds, "mirror"), profile)
    if recording is not None:
        about = {"bundle": read.manifest.name, "prompts": prompts, "temperature": 0.0}
        shared = [said for draft, _ in draws for said in draft]
        Recording(about, shared, [rank for _, ranks in draws for rank in ranks]).write(recording)
    figures = {
        mode: _compared(
            [(machine([one], mode), one.real[mode]) for one in rounds], records, plans[mode]
        )
        for mode in _MODES
    }
    if as_json:
        typer.echo(json.dumps({"bundle": read.manifest.name, "modes": figures}))
        return
    for mode, found in figures.items():
        typer.echo(
            f"{mode:7} measured {found['measured']:8.1f} tokens/s, predicted "
            f"{found['predicted']:8.1f}, ratio {found['ratio']:.3f} ({found['least']:.3f} to "
            f"{found['most']:.3f}); tokens a step "
            f"{found['measured_step']:.2f} and {found['predicted_step']:.2f}"
        )


@dataclass(frozen=True)
class _Round:
    """One repeat."""

    measured: Measured
    calibration: list[StepRecord] = field(default_factory=list)
    real: dict[Mode, list[Stats]] = field(default_factory=dict)
    """The answers to the prompts that are asked about."""


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
    rounds: Sequence[tuple[Profile, Sequence[Stats]]], records: Sequence[Record], plan: Strategy
) -> dict[str, float]:
    """Tokens a second and tokens a step, of the real answers and of the simulated ones."""
    from mirror_edge.runtimes.scripts import RecordedScript
    from mirror_edge.runtimes.simulated import simulate

    def simulated(machine: Profile) -> list[Stats]:
        answers = []
        for record in records:
            # Two places in front: the prompt's one token, and the answer's first.
            script = RecordedScript([True, True, *record.shared], [0, 0, *record.ranks])
            tokens = len(record.shared) + 1
            answers.append(simulate(machine, script, plan, prompt_tokens=1, new_tokens=tokens))
        return answers

    pairs = [(real, simulated(machine)) for machine, real in rounds]
    speeds = [(_speed(real), _speed(predicted)) for real, predicted in pairs]
    ratios = [predicted / measured for measured, predicted in speeds]
    return {
        "measured": statistics.median(measured for measured, _ in speeds),
        "predicted": statistics.median(predicted for _, predicted in speeds),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "measured_step": _step(pairs[0][0]),
        "predicted_step": _step(pairs[0][1]),
    }


def _speed(answers: Sequence[Stats]) -> float:
    tokens = sum(stats.generated_tokens - 1 for stats in answers)
    return tokens / sum(stats.decode_seconds for stats in answers)


def _step(answers: Sequence[Stats]) -> float:
    steps = [step.committed for stats in answers for step in stats.steps]
    return sum(steps) / len(steps)


if __name__ == "__main__":
    program.run(program.single(predict))
