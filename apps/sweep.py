"""Mode `auto` compared with the best fixed setting, which is found by trying a whole grid.

``python -P -m mirror_edge.apps.sweep [BUNDLE] --log sweep.jsonl`` has every setting of the grid
answer some prompts, a few settings and `ar` in turn. The best of mode `sd` and of mode `mirror`
then answer in turn with `ar` and `auto`. It prints medians of the ratios within a heat, and how
long steps took compared with the law of the step. `auto` starts from what it has learned of the
pair before: run `mirror-edge cache clear` first to measure a first start. With ``--seconds N`` the
program ends after N seconds; run it again to continue from the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS
from mirror_edge.apps.grid import Grid
from mirror_edge.apps.groups import spread
from mirror_edge.apps.heats import Answered, Heat, Log, Part, law
from mirror_edge.apps.standings import AUTO, REFERENCE, best, figures
from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge import Model, Speculation

__all__ = ["DeviceOptions", "Rounds", "sweep"]

_GROUP = 5
"""Settings of the grid that share a heat with the reference."""


@dataclass(frozen=True)
class Rounds:
    """What is answered, and how often."""

    prompts: Annotated[
        int, typer.Option(min=1, max=len(PROMPTS), help="How many prompts to answer.")
    ] = 3
    new_tokens: Annotated[int, typer.Option(min=8, help="Maximum tokens per answer.")] = 96
    repeat: Annotated[int, typer.Option(min=1, help="How often the grid answers them.")] = 1
    finals: Annotated[int, typer.Option(min=1, help="How often the best answer them.")] = 5
    temperature: options.Temperature = 0.0


@dataclass(frozen=True)
class DeviceOptions:
    """Where the models run: on the CPU unless told otherwise."""

    target_device: options.Device = "cpu"
    draft_device: options.Device = "cpu"
    target_threads: options.TargetThreads = None
    draft_threads: options.DraftThreads = None


@spread
def sweep(
    bundle: options.Bundle = None,
    *,
    grid: Grid,
    rounds: Rounds,
    devices: DeviceOptions,
    log: Annotated[
        Path | None, typer.Option(help="Append every heat to this file, and continue from it.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="End after this many seconds, not counting loading.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare `auto` with the best fixed setting and with `ar`."""
    from mirror_edge import load
    from mirror_edge.apps.bench import machine

    settings = grid.settings()
    with load(bundle, **vars(devices), verify=False) as model:
        if not model.has_draft:
            raise OptionError(f"{model.bundle.folder}: has no draft. Export it with --draft.")
        about = {
            "bundle": model.bundle.manifest.name,
            "precision": model.bundle.manifest.target.model.precision,
            "planted": machine.planted(model.bundle.folder),
            "machine": machine.about(devices.target_device, devices.draft_device),
            "threads": [devices.target_threads, devices.draft_threads],
            "grid": list(settings),
            "prompts": rounds.prompts,
            "new_tokens": rounds.new_tokens,
            "repeat": rounds.repeat,
            "temperature": rounds.temperature,
        }
        heats = Log.open(log, about)
        ended = _Run(model, settings, heats, rounds).all(seconds)
    found = about | figures(heats)
    if as_json:
        typer.echo(json.dumps(found | {"complete": ended is None}))
    else:
        _show(found)
    if ended is not None:
        typer.echo(f"{ended}: not everything has been measured.", err=True)
        raise typer.Exit(130 if ended == "stopped" else 0)


class _Task(NamedTuple):
    """A heat to come."""

    part: Part
    number: int
    prompt: str
    settings: list[str]


@dataclass
class _Run:
    """What is measured, on one loaded model."""

    model: Model
    settings: dict[str, Speculation]
    log: Log
    rounds: Rounds

    def all(self, seconds: float | None) -> str | None:
        """Run the heats that the log lacks; why it ended before the last one, if it did."""
        from rich.console import Console
        from rich.progress import Progress

        parts: tuple[tuple[Part, int], ...] = (
            ("grid", self.rounds.repeat),
            ("final", self.rounds.finals),
        )
        measured, until = False, None if seconds is None else time.perf_counter() + seconds
        with Progress(console=Console(stderr=True)) as bar:
            try:
                for part, times in parts:
                    tasks = list(self._tasks(part, times))
                    done = {heat.number for heat in self.log.of(part)}
                    shown = bar.add_task(part, total=len(tasks), completed=len(done))
                    for task in tasks:
                        if task.number in done:
                            continue
                        if until is not None and measured and time.perf_counter() > until:
                            return "out of time"
                        self.log.add(self._heat(task))
                        measured = True
                        bar.advance(shown)
            except KeyboardInterrupt:
                return "stopped"
        return None

    def _tasks(self, part: Part, times: int) -> Iterator[_Task]:
        """The heats of a part; the finals' settings are those that were best in the grid."""
        names = list(self.settings)
        if part == "grid":
            groups = [names[at : at + _GROUP] for at in range(0, len(names), _GROUP)]
        else:
            groups = [[*best(self.log).values(), AUTO]]
        number = 0
        for _ in range(times):
            for prompt in PROMPTS[: self.rounds.prompts]:
                for group in groups:
                    yield _Task(part, number, prompt, group)
                    number += 1

    def _heat(self, task: _Task) -> Heat:
        """The reference first; who follows it changes from heat to heat."""
        turn = task.number % len(task.settings)
        order = [REFERENCE, *task.settings[turn:], *task.settings[:turn]]
        expected: tuple[int, ...] | None = None
        answers: dict[str, Answered] = {}
        for name in order:
            tokens, answers[name] = self._answer(name, task.prompt, expected)
            expected = expected or tokens
        return Heat(task.part, task.number, answers)

    def _answer(
        self, name: str, prompt: str, expected: tuple[int, ...] | None
    ) -> tuple[tuple[int, ...], Answered]:
        from mirror_edge import Sampling, Speculation
        from mirror_edge.apps.bench.contenders import Ours

        how = self.settings.get(name) or Speculation(name, drafter="model")  # type: ignore[arg-type]
        ours = Ours(name, self.model, how, Sampling(self.rounds.temperature))
        ours.forget()
        said = ours.answer([{"role": "user", "content": prompt}], self.rounds.new_tokens)
        later = ours.steps[1:]
        return said.tokens, Answered(
            tokens=len(said.tokens) - 1,
            seconds=said.decode_seconds,
            same=expected is None or said.tokens == expected,
            stepped=sum(step.seconds for step in later),
            law=law(later),
        )


def _show(found: dict[str, Any]) -> None:
    place = found["machine"]["emulated"] or (
        f"target on {found['machine']['target_device']}, "
        f"draft on {found['machine']['draft_device']}, threads {found['threads']}"
    )
    planted = found["planted"]
    typer.echo(f"{found['bundle']}, {found['precision']}; {place}")
    if planted:
        typer.echo(
            f"a planted pair, {planted['target_shape']} and {planted['draft_shape']}, agreement "
            f"{planted['agreement']:g}: its language is artificial"
        )
    typer.echo("the grid, tokens per second relative to ar (median, quartiles):")
    for name, over in found["grid_over_ar"].items():
        typer.echo(f"  {name:32} {_range(over)}")
    if not found["finals"]:
        return
    typer.echo(
        f"{found['finals']} heats of the best: tokens per second, relative to ar, step over law:"
    )
    for name, speed in found["tokens_per_second"].items():
        over = _range(found["over_ar"][name])
        typer.echo(f"  {name:32} {speed:8.1f}  {over}  {found['measured_over_law'][name]:.3f}")
    typer.echo(f"all texts identical: {'yes' if found['same_text'] else 'no'}")
    typer.echo(f"auto over {found['best_fixed']}: {_range(found['auto_over_best_fixed'])}")
    typer.echo(f"auto over ar: {_range(found['auto_over_ar'])}")
    typer.echo(f"mirror over sd: {_range(found['mirror_over_sd'])}")


def _range(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    program.run(program.single(sweep))
