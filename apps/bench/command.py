"""`mirror-edge bench`: modes and peers, in turn, on questions in Spec-Bench's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options
from mirror_edge.apps.groups import spread

if TYPE_CHECKING:
    from mirror_edge.apps.bench.contenders import Contender, Ours
    from mirror_edge.apps.bench.energy import Meter
    from mirror_edge.apps.bench.measures import Run
    from mirror_edge.apps.bench.questions import Question
    from mirror_edge.apps.bench.roofline import Width

_REFERENCE = "ar"
_WARM_UP_TOKENS = 32


@spread
def bench_command(
    bundle: options.Bundle = None,
    *,
    modes: Annotated[
        str | None,
        typer.Option(help="With commas; ar comes first in any case. Left out: all that can run."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="In Spec-Bench's format, question.jsonl; left out: twelve of our own."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many questions of each group, the first that fit.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often all of them are asked.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Of a turn's answer.")] = 128,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime-genai=FOLDER, llama.cpp=FILE.gguf or transformers=TARGET[,DRAFT]; "
            "repeatable."
        ),
    ] = None,
    peer_threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of a peer; left out: as many as the target has cores."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report with plots, one HTML file.")
    ] = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    speculation: options.SpeculationOptions,
    devices: options.DeviceOptions,
) -> None:
    """Measure the modes, and peers beside them, on questions in Spec-Bench's format."""
    from mirror_edge import Sampling
    from mirror_edge.apps import output
    from mirror_edge.apps.bench import energy, machine, peers
    from mirror_edge.apps.bench.contenders import Ours
    from mirror_edge.apps.bench.questions import SHIPPED, choose, read
    from mirror_edge.apps.bench.roofline import bandwidth, width
    from mirror_edge.apps.bench.rounds import fits
    from mirror_edge.errors import ContextError, OptionError
    from mirror_edge.text import Text

    output.check(json_file, html)
    asked = read(questions or SHIPPED)
    if peer and temperature:
        raise OptionError("--peer: peers are compared at temperature 0; leave --temperature out.")
    sampling = Sampling(temperature=temperature, seed=seed)
    threads = machine.threads(devices.target_device)
    with devices.load(bundle, on_progress=None) as model:
        ours = []
        for mode in _modes(modes, can_draft=model.has_draft or speculation.drafter == "ngram"):
            ours.append(Ours(mode, model, speculation.checked(mode), sampling))
        folder = model.bundle.folder
        text = Text.of(model.bundle)
        others = [peers.peer(words, text, peer_threads or threads) for words in peer or ()]
        if len({one.name for one in others}) < len(others):
            raise OptionError("--peer: name every peer once.")
        chosen, passed = choose(
            asked, limit, lambda one: fits(one, text, model.context, max_new_tokens)
        )
        if not chosen:
            raise ContextError(
                f"no question fits into the context of {model.context:,} tokens with answers of "
                f"{max_new_tokens:,}; lower --max-new-tokens."
            )
        contenders: list[Contender] = [*ours, *others]
        about = {
            "bundle": model.bundle.manifest.name,
            "planted": machine.planted(folder),
            "machine": machine.about(devices.target_device, devices.draft_device),
            "questions": str(questions) if questions else "those that come with mirror-edge",
            "left_out": [question.line for question in passed],
            "settings": {
                "modes": [one.name for one in ours],
                "peers": peer or [],
                "peer_threads": peer_threads or threads,
                "target_threads": devices.target_threads,
                "draft_threads": devices.draft_threads,
                "draft_process": devices.draft_process,
                "repeat": repeat,
                "limit": limit,
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "seed": seed,
                **vars(speculation),
            },
        }
        meter = energy.find()
        about["energy"] = meter if isinstance(meter, str) else "processor packages, by RAPL"
        measured = _measure(
            chosen,
            contenders,
            repeat,
            max_new_tokens,
            None if isinstance(meter, str) else meter,
        )
        costs = None if measured.stopped else model.costs("model" if model.has_draft else "ngram")
        manifest = model.bundle.manifest
    curve = None if costs is None else width(costs, manifest, bandwidth(threads))
    _finish(about, measured, ours, [one.name for one in contenders], curve, json_file, html)


class _Measured(NamedTuple):
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
    repeat: int,
    most: int,
    meter: Meter | None,
) -> _Measured:
    """Warm up, then measure; Ctrl-C keeps the rounds that are complete."""
    from mirror_edge.apps.bench.measures import complete
    from mirror_edge.apps.bench.rounds import converse, rounds
    from mirror_edge.apps.progress import stages

    runs: list[Run] = []
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
    return _Measured(complete(runs, [one.name for one in contenders]), stopped)


def _finish(
    about: dict[str, Any],
    measured: _Measured,
    ours: Sequence[Ours],
    names: Sequence[str],
    curve: Width | None,
    json_file: Path | None,
    html: Path | None,
) -> None:
    """Show and write what was measured."""
    from mirror_edge.apps import output
    from mirror_edge.apps.bench import report, table
    from mirror_edge.apps.bench.measures import figures
    from mirror_edge.apps.timeline import Timeline

    if not measured.runs:
        typer.echo("stopped before every contender had answered a question", err=True)
        raise typer.Exit(130)
    found = about | {
        "interrupted": measured.stopped,
        "width_curve": curve and vars(curve),
        **figures(measured.runs, names, _REFERENCE),
    }
    table.show(found)
    if json_file is not None:
        output.write(json_file, json.dumps(found, indent=1) + "\n")
    if html is not None:
        drawn = next((one for one in ours if one.name == "mirror"), ours[-1])
        timeline = Timeline.of(drawn.spans, drawn.steps) if drawn.spans else None
        output.write(html, report.page(found, curve, timeline, drawn.name))
    if measured.stopped:
        raise typer.Exit(130)
