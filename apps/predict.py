"""How well the simulator predicts this machine: its profile is measured, then both are run.

``python -P -m mirror_edge.apps.predict [BUNDLE] --target-device cpu:0 --draft-device cpu:1``
measures T(n) of prefix, exit head, suffix and draft, the hand-over between the lanes and the host's
time of a plain step; records how the models agree on some prompts; answers these prompts in
`ar`, `sd` and `mirror`, in turn with the measuring; and simulates the same answers. Answers to two
other prompts, one before and one after them, show how much longer forwards take in use. Every
repeat is measured and predicted separately, since a machine's speed drifts; it prints the medians
of tokens per second, and of their ratio with its range. The draft's streams are not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS
from mirror_edge.apps.groups import spread
from mirror_edge.apps.prediction import MODES, Prediction, Round

if TYPE_CHECKING:
    from mirror_edge.apps.plain_pair import PlainPair
    from mirror_edge.policy import Mode, Strategy

__all__ = ["DeviceOptions", "FileOptions", "Setting", "predict"]

_CALIBRATION = 2
"""Prompts whose answers calibrate."""


@dataclass(frozen=True)
class Setting:
    """How modes `sd` and `mirror` answer."""

    window: Annotated[int, typer.Option(min=1, help="γ.")] = 4
    candidates: Annotated[int, typer.Option(min=1, help="κ.")] = 4
    branches: Annotated[int, typer.Option(min=1, help="R.")] = 8

    def plans(self) -> dict[Mode, Strategy]:
        """The strategy of every mode."""
        from mirror_edge.policy import Strategy

        numbers = self.window, self.candidates, self.branches
        return {mode: Strategy(mode, *numbers, width=0) for mode in MODES}


@dataclass(frozen=True)
class DeviceOptions:
    """Cores and threads of the CPU for each model."""

    target_device: options.Device = "cpu"
    draft_device: options.Device = "cpu"
    target_threads: Annotated[int, typer.Option(min=1, help="CPU threads for the target.")] = 1
    draft_threads: Annotated[int, typer.Option(min=1, help="CPU threads for the draft.")] = 1

    def checked(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Device and threads of target and draft.

        Raises:
            DeviceError: for another device than the CPU.
        """
        from mirror_edge.devices import Device
        from mirror_edge.errors import DeviceError

        for place in map(Device.parse, (self.target_device, self.draft_device)):
            if place.kind != "cpu":
                raise DeviceError(
                    f"device {str(place)!r}: predict runs on CPU devices only. Write cpu or cpu:0."
                )
        return (self.target_device, self.target_threads), (self.draft_device, self.draft_threads)


@dataclass(frozen=True)
class FileOptions:
    """Where to write what was measured."""

    profile: Annotated[
        Path | None, typer.Option(help="Write the measured profile to this TOML file.")
    ] = None
    recording: Annotated[
        Path | None, typer.Option(help="Write how the models agree to this JSON file.")
    ] = None

    def write(self, found: Prediction) -> None:
        """Write the files that were asked for."""
        from mirror_edge.runtimes.profile import write

        if self.profile is not None:
            write(found.profile(found.rounds, "mirror"), self.profile)
        if self.recording is not None:
            found.recording().write(self.recording)


@spread
def predict(
    bundle: options.Bundle = None,
    *,
    prompts: Annotated[
        int,
        typer.Option(min=1, max=len(PROMPTS) - _CALIBRATION, help="How many prompts to answer."),
    ] = 4,
    new_tokens: Annotated[int, typer.Option(min=8, help="Maximum tokens per answer.")] = 96,
    setting: Setting,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each mode, in turn.")] = 3,
    seconds: Annotated[float, typer.Option(help="Total seconds to measure T(n) for.")] = 10.0,
    devices: DeviceOptions,
    files: FileOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare measured tokens per second with simulated ones."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import bundle as bundles
    from mirror_edge.apps import output
    from mirror_edge.apps.plain_pair import opened
    from mirror_edge.text import Text

    places = devices.checked()
    output.check(files.profile, files.recording)
    read = bundles.read(bundles.demo() if bundle is None else bundle)
    text = Text.of(read)
    chats = [text.encode_chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    asked, others = chats[:prompts], chats[-_CALIBRATION:]
    found = Prediction(read, setting.plans())
    with opened(read, *places) as pair:
        for tokens in asked:
            record = pair.recorded(tokens, new_tokens, setting.window, setting.candidates)
            found.records.append(record)
        bar = Console(stderr=True)
        for _ in track(range(repeat), description="Measuring and answering", console=bar):
            one = Round(pair.measured(seconds / repeat))
            _answer(pair, (others[0], *asked, others[1]), new_tokens, found.plans, one)
            found.rounds.append(one)
    files.write(found)
    figures = found.figures()
    if as_json:
        typer.echo(json.dumps({"bundle": read.manifest.name, "modes": figures}))
    else:
        _show(figures)


def _answer(
    pair: PlainPair,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    plans: Mapping[Mode, Strategy],
    into: Round,
) -> None:
    """Answer in every mode; the first prompt and the last one calibrate."""
    for mode, plan in plans.items():
        first, *run, last = (pair.answered(tokens, new_tokens, plan) for tokens in prompts)
        into.calibration.extend([*first.steps, *last.steps])
        into.real[mode] = run


def _show(figures: Mapping[Mode, Mapping[str, float]]) -> None:
    for mode, found in figures.items():
        typer.echo(
            f"{mode:7} measured {found['measured']:8.1f} tokens/s, predicted "
            f"{found['predicted']:8.1f}, ratio {found['ratio']:.3f} ({found['least']:.3f} to "
            f"{found['most']:.3f}); tokens per step "
            f"{found['measured_step']:.2f} and {found['predicted_step']:.2f}"
        )


if __name__ == "__main__":
    program.run(program.single(predict))
