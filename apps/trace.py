"""`mirror-edge trace`: one answer, and what each lane did for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirror_edge.apps import generate, options

if TYPE_CHECKING:
    from mirror_edge.apps.timeline import Timeline
    from mirror_edge.stats import Stats


def trace_command(
    words: generate.Words,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The trace to write: JSON for Perfetto or Chrome."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a picture, one HTML file.")] = None,
    mode: options.Mode = "auto",
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    max_new_tokens: generate.MaxNewTokens = 256,
    stop: options.Stop = None,
    window: options.Window = None,
    candidates: options.Candidates = None,
    branches: options.Branches = None,
    drafter: options.Drafter = "model",
    strict: options.Strict = False,
    raw: generate.Raw = False,
    system: generate.System = None,
    template: options.Template = None,
    target_device: options.Device = "auto",
    draft_device: options.Device = "auto",
    target_threads: options.Threads = None,
    draft_threads: options.Threads = None,
    draft_process: options.DraftProcess = None,
) -> None:
    """Answer one prompt, and write what each lane did."""
    from mirror_edge import Sampling, load
    from mirror_edge.apps.timeline import Timeline
    from mirror_edge.errors import OptionError

    if output is None and html is None:
        raise OptionError("nothing is to be written; give -o FILE, --html FILE or both.")
    question = generate.question(words, raw=raw, system=system, template=template)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    speculation = options.speculation(mode, window, candidates, branches, drafter, strict)
    with load(
        question.bundle,
        target_device=target_device,
        draft_device=draft_device,
        target_threads=target_threads,
        draft_threads=draft_threads,
        draft_process=draft_process,
        on_progress=options.tell,
    ) as model:
        kept = model.trace.keep()
        result = model.generate(
            question.prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            speculation=speculation,
            stop=stop or (),
            template=question.variables,
        )
        name = model.bundle.manifest.name
    # Now that the lanes have ended, so have the last spans.
    model.trace.take()
    timeline = Timeline.of(kept, result.stats.steps)
    write(timeline, result.stats, f"{name}, mode {result.mode}", output, html)
    typer.echo(generate.summary(result), err=True)


def write(
    timeline: Timeline, stats: Stats, title: str, output: Path | None, html: Path | None
) -> None:
    """Write a timeline as a trace, as a picture, or both.

    Raises:
        OptionError: for a file that cannot be written.
    """
    from mirror_edge.apps import output as files
    from mirror_edge.apps.picture import figures, page
    from mirror_edge.apps.timeline import chrome_trace

    found = stats.as_dict()
    if output is not None:
        about = {"title": title, "stats": found}
        files.write(output, json.dumps(chrome_trace(timeline, about)))
    if html is not None:
        files.write(html, page(timeline, title, figures(found)))
