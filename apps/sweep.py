"""Mode `auto` beside the best fixed setting, which is found by trying all of a grid.

``python -P -m mirror_edge.apps.sweep [BUNDLE] --log sweep.jsonl`` has every setting of the grid
answer some prompts, a few settings and `ar` in turn. The best of mode `sd` and of mode `mirror`
then answer in turn with `ar` and `auto`. It prints medians of the ratios within a heat, and how
long steps took beside the law of the step. `auto` goes on from what it has learnt of the pair
before: `mirror-edge cache clear` makes this its first start. With ``--seconds`` it ends after so
many, and goes on from the log when it is started again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS
from mirror_edge.apps.heats import Answered, Heat, Log, Part, law, quartiles, ratios
from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge import Model, Speculation

_REFERENCE, _AUTO = "ar", "auto"
_GROUP = 5
"""Settings of the grid that share a heat with the reference."""


def sweep(
    bundle: options.Bundle = None,
    windows: Annotated[str, typer.Option(help="γ, with commas.")] = "1,2,3,4,5,7",
    candidates: Annotated[str, typer.Option(help="κ, with commas.")] = "8",
    branches: Annotated[str, typer.Option(help="R, with commas.")] = "2,8,32",
    exit_heads: Annotated[str, typer.Option(help="target and draft, with commas.")] = "target",
    prompts: Annotated[int, typer.Option(min=1, max=len(PROMPTS), help="How many.")] = 3,
    new_tokens: Annotated[int, typer.Option(min=8, help="Of an answer.")] = 96,
    repeat: Annotated[int, typer.Option(min=1, help="How often the grid answers them.")] = 1,
    finals: Annotated[int, typer.Option(min=1, help="How often the best answer them.")] = 5,
    temperature: options.Temperature = 0.0,
    target_device: options.Device = "cpu",
    draft_device: options.Device = "cpu",
    target_threads: options.Threads = None,
    draft_threads: options.Threads = None,
    log: Annotated[Path | None, typer.Option(help="Keep every heat here, and go on.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so many, loading apart.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare `auto` with the best fixed setting and with `ar`."""
    from mirror_edge import Sampling, load
    from mirror_edge.apps.bench import machine
    from mirror_edge.policy import ExitPlace

    places = exit_heads.split(",")
    if not set(places) <= set(get_args(ExitPlace)):
        raise OptionError(f"--exit-heads is {exit_heads!r}; write target, draft, or both.")
    grid = _grid(
        _numbers("--windows", windows),
        _numbers("--candidates", candidates),
        _numbers("--branches", branches),
        places,
    )
    with load(
        bundle,
        target_device=target_device,
        draft_device=draft_device,
        target_threads=target_threads,
        draft_threads=draft_threads,
        verify=False,
    ) as model:
        if not model.has_draft:
            raise OptionError(f"{model.bundle.folder}: has no draft. Export it with --draft.")
        about = {
            "bundle": model.bundle.manifest.name,
            "precision": model.bundle.manifest.target.model.precision,
            "planted": machine.planted(model.bundle.folder),
            "machine": machine.about(target_device, draft_device),
            "threads": [target_threads, draft_threads],
            "grid": list(grid),
            "prompts": prompts,
            "new_tokens": new_tokens,
            "repeat": repeat,
            "temperature": temperature,
        }
        heats = Log.open(log, about)
        run = _Run(model, grid, heats, PROMPTS[:prompts], new_tokens, Sampling(temperature))
        ended = run.all(repeat, finals, seconds)
    found = about | _figures(heats)
    if as_json:
        typer.echo(json.dumps(found | {"complete": ended is None}))
    else:
        _show(found)
    if ended is not None:
        typer.echo(f"{ended}: not all has been measured.", err=True)
        raise typer.Exit(130 if ended == "stopped" else 0)


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise OptionError(f"{option} is {text!r}; write numbers from 1 on, with commas.")
    return found


def _grid(
    windows: Sequence[int],
    candidates: Sequence[int],
    branches: Sequence[int],
    places: Sequence[Any],
) -> dict[str, Speculation]:
    """The fixed settings, by what they are called."""
    from mirror_edge import Speculation

    serial = {f"sd γ={window}": Speculation("sd", window) for window in windows}
    mirrored = {
        f"mirror γ={window} κ={each} R={roots} exit={place}": Speculation(
            "mirror", window, each, roots, exit_head=place
        )
        for window in windows
        for each in candidates
        for roots in branches
        for place in places
        if roots <= each * (window + 1)
    }
    return serial | mirrored


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
    grid: dict[str, Speculation]
    log: Log
    prompts: Sequence[str]
    new_tokens: int
    sampling: Any

    def all(self, repeat: int, finals: int, seconds: float | None) -> str | None:
        """Run the heats that the log lacks; why it ended before the last one, if it did."""
        from rich.console import Console
        from rich.progress import Progress

        parts: tuple[tuple[Part, int], ...] = ("grid", repeat), ("final", finals)
        measured, until = False, None if seconds is None else time.perf_counter() + seconds
        with Progress(console=Console(stderr=True)) as bar:
            try:
                for part, rounds in parts:
                    tasks = list(self._tasks(part, rounds))
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

    def _tasks(self, part: Part, rounds: int) -> Iterator[_Task]:
        """The heats of a part; the finals' settings are those that were best in the grid."""
        names = list(self.grid)
        if part == "grid":
            groups = [names[at : at + _GROUP] for at in range(0, len(names), _GROUP)]
        else:
            groups = [[*best(self.log).values(), _AUTO]]
        number = 0
        for _ in range(rounds):
            for prompt in self.prompts:
                for group in groups:
                    yield _Task(part, number, prompt, group)
                    number += 1

    def _heat(self, task: _Task) -> Heat:
        """The reference first; who follows it changes from heat to heat."""
        turn = task.number % len(task.settings)
        order = [_REFERENCE, *task.settings[turn:], *task.settings[:turn]]
        expected: tuple[int, ...] | None = None
        answers: dict[str, Answered] = {}
        for name in order:
            tokens, answers[name] = self._answer(name, task.prompt, expected)
            expected = expected or tokens
        return Heat(task.part, task.number, answers)

    def _answer(
        self, name: str, prompt: str, expected: tuple[int, ...] | None
    ) -> tuple[tuple[int, ...], Answered]:
        from mirror_edge import Speculation
        from mirror_edge.apps.bench.contenders import Ours

        how = self.grid.get(name) or Speculation(name, drafter="model")  # type: ignore[arg-type]
        ours = Ours(name, self.model, how, self.sampling)
        ours.forget()
        said = ours.answer([{"role": "user", "content": prompt}], self.new_tokens)
        later = ours.steps[1:]
        return said.tokens, Answered(
            tokens=len(said.tokens) - 1,
            seconds=said.decode_seconds,
            same=expected is None or said.tokens == expected,
            stepped=sum(step.seconds for step in later),
            law=law(later),
        )


def best(log: Log) -> dict[str, str]:
    """The fastest setting of each mode in the grid."""
    found: dict[str, tuple[float, str]] = {}
    for name, (_, median, _) in _over(log, "grid").items():
        mode = name.split()[0]
        found[mode] = max(found.get(mode, (0.0, "")), (median, name))
    return {mode: name for mode, (_, name) in found.items() if mode != _REFERENCE}


def _over(log: Log, part: Part) -> dict[str, tuple[float, float, float]]:
    """By setting: how much faster than the reference, the median between the quartiles."""
    heats = log.of(part)
    names = dict.fromkeys(name for heat in heats for name in heat.answers)
    return {name: quartiles(ratios(heats, name, _REFERENCE)) for name in names}


def _figures(log: Log) -> dict[str, Any]:
    """All that the heats say."""
    finals = log.of("final")
    found: dict[str, Any] = {"grid_over_ar": _over(log, "grid"), "finals": len(finals)}
    if not finals:
        return found
    own = {name: [heat.answers[name] for heat in finals] for name in finals[0].answers}
    over = _over(log, "final")
    fixed = max((name for name in own if name != _AUTO), key=lambda name: over[name][1])
    serial, mirrored = (next(n for n in own if n.startswith(m)) for m in ("sd", "mirror"))
    return found | {
        "tokens_per_second": {
            name: statistics.median(one.speed for one in answers) for name, answers in own.items()
        },
        "over_ar": over,
        "measured_over_law": {
            name: sum(one.stepped for one in answers) / sum(one.law for one in answers)
            for name, answers in own.items()
        },
        "same_text": all(one.same for answers in own.values() for one in answers),
        "best_fixed": fixed,
        "auto_over_best_fixed": quartiles(ratios(finals, _AUTO, fixed)),
        "auto_over_ar": over[_AUTO],
        "mirror_over_sd": quartiles(ratios(finals, mirrored, serial)),
    }


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
    typer.echo("the grid, tokens a second over ar's (median, quartiles):")
    for name, over in found["grid_over_ar"].items():
        typer.echo(f"  {name:32} {_range(over)}")
    if not found["finals"]:
        return
    typer.echo(f"{found['finals']} heats of the best, tokens a second, over ar's, step over law:")
    for name, speed in found["tokens_per_second"].items():
        over = _range(found["over_ar"][name])
        typer.echo(f"  {name:32} {speed:8.1f}  {over}  {found['measured_over_law'][name]:.3f}")
    typer.echo(f"all texts the same: {'yes' if found['same_text'] else 'no'}")
    typer.echo(f"auto over {found['best_fixed']}: {_range(found['auto_over_best_fixed'])}")
    typer.echo(f"auto over ar: {_range(found['auto_over_ar'])}")
    typer.echo(f"mirror over sd: {_range(found['mirror_over_sd'])}")


def _range(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    program.run(program.single(sweep))
