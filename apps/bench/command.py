"""`mirror-edge bench`: modes and peers, in turn, on questions in Spec-Bench's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options
from mirror_edge.apps.bench.options import FileOptions, PeerOptions, QuestionOptions
from mirror_edge.apps.groups import spread

if TYPE_CHECKING:
    from mirror_edge.apps.bench.contenders import Contender, Ours
    from mirror_edge.apps.bench.energy import Meter
    from mirror_edge.apps.bench.measures import Run
    from mirror_edge.apps.bench.questions import Question
    from mirror_edge.apps.bench.roofline import Width

__all__ = ["bench_command"]

_REFERENCE = "ar"
_WARM_UP_TOKENS = 32


@spread
def bench_command(
    bundle: options.Bundle = None,
    *,
    modes: Annotated[
        str | None,
        typer.Option(help="Comma-separated; ar always runs first (default: all available)."),
    ] = None,
    asked: QuestionOptions,
    others: PeerOptions,
    files: FileOptions,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    speculation: options.SpeculationOptions,
    devices: options.DeviceOptions,
) -> None:
    """Measure the modes, and other runtimes, on questions in Spec-Bench's format."""
    from mirror_edge import Sampling
    from mirror_edge.apps import output
    from mirror_edge.apps.bench import energy, machine
    from mirror_edge.apps.bench.contenders import Ours
    from mirror_edge.apps.bench.roofline import bandwidth, width
    from mirror_edge.errors import OptionError
    from mirror_edge.text import Text

    output.check(files.json_file, files.html)
    questions = asked.read()
    if others.peer and temperature:
        raise OptionError("--peer: peers are compared at temperature 0; drop --temperature.")
    sampling = Sampling(temperature=temperature, seed=seed)
    threads, meter = machine.threads(devices.target_device), energy.find()
    with devices.load(bundle, on_progress=None) as model:
        names = _modes(modes, can_draft=model.has_draft or speculation.drafter == "ngram")
        ours = [Ours(mode, model, speculation.checked(mode), sampling) for mode in names]
        text, peer_threads = Text.of(model.bundle), others.peer_threads or threads
        contenders: list[Contender] = [*ours, *others.opened(text, peer_threads)]
        chosen, passed = asked.chosen(questions, text, model.context)
        about = {
            "bundle": model.bundle.manifest.name,
            "planted": machine.planted(model.bundle.folder),
            "machine": machine.about(devices.target_device, devices.draft_device),
            "questions": str(asked.questions or "those shipped with mirror-edge"),
            "left_out": [question.line for question in passed],
            "settings": {
                "modes": names,
                "peers": others.peer or [],
                "peer_threads": peer_threads,
                "target_threads": devices.target_threads,
                "draft_threads": devices.draft_threads,
                "draft_process": devices.draft_process,
                "repeat": asked.repeat,
                "limit": asked.limit,
                "max_new_tokens": asked.max_new_tokens,
                "temperature": temperature,
                "seed": seed,
                **vars(speculation),
            },
            "energy": meter if isinstance(meter, str) else "processor packages, by RAPL",
        }
        measured = _measure(chosen, contenders, asked, None if isinstance(meter, str) else meter)
        costs = None if measured.stopped else model.costs("model" if model.has_draft else "ngram")
        manifest = model.bundle.manifest
    if not measured.runs:
        typer.echo("stopped before every contender had answered a question", err=True)
        raise typer.Exit(130)
    curve = None if costs is None else width(costs, manifest, bandwidth(threads))
    _write(about, measured, ours, curve, files)
    if measured.stopped:
        raise typer.Exit(130)


class _Measured(NamedTuple):
    contenders: list[str]
    runs: list[Run]
    stopped: bool
    """By Ctrl-C."""


def _modes(asked: str | None, *, can_draft: bool) -> list[str]:
    """The modes to run, the reference first."""
    if asked is None:
        return ["ar", "sd", "mirror", "auto"] if can_draft else ["ar"]
    return list(dict.fromkeys([_REFERENCE, *(mode.strip() for mode in asked.split(","))]))


def _measure(
    questions: Sequence[Question],
    contenders: Sequence[Contender],
    asked: QuestionOptions,
    meter: Meter | None,
) -> _Measured:
    """Warm up, then measure; Ctrl-C keeps the rounds that are complete."""
    from mirror_edge.apps.bench.measures import complete
    from mirror_edge.apps.bench.rounds import converse, rounds
    from mirror_edge.apps.progress import stages

    runs: list[Run] = []
    repeat, most = asked.repeat, asked.max_new_tokens
    stopped, total = False, repeat * len(questions) * len(contenders)
    with stages() as show:
        try:
            for number, contender in enumerate(contenders, start=1):
                converse(questions[0], contender, 0, min(most, _WARM_UP_TOKENS), None)
                show("Warming up", number / len(contenders))
            for run in rounds(questions, contenders, repeat, most, meter):
                runs.append(run)
                show("Measuring", len(runs) / total)
        except KeyboardInterrupt:
            stopped = True
    names = [one.name for one in contenders]
    return _Measured(names, complete(runs, names), stopped)


def _write(
    about: dict[str, Any],
    measured: _Measured,
    ours: Sequence[Ours],
    curve: Width | None,
    files: FileOptions,
) -> None:
    """Show and write what was measured."""
    from mirror_edge.apps import output
    from mirror_edge.apps.bench import report, table
    from mirror_edge.apps.bench.measures import figures
    from mirror_edge.apps.timeline import Timeline

    found = about | {
        "interrupted": measured.stopped,
        "width_curve": curve and vars(curve),
        **figures(measured.runs, measured.contenders, _REFERENCE),
    }
    table.show(found)
    if files.json_file is not None:
        output.write(files.json_file, json.dumps(found, indent=1) + "\n")
    if files.html is not None:
        drawn = next((one for one in ours if one.name == "mirror"), ours[-1])
        timeline = Timeline.of(drawn.spans, drawn.steps) if drawn.spans else None
        output.write(files.html, report.page(found, curve, timeline, drawn.name))
