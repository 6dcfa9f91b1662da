"""`mirror-edge trace`: one answer, and what each lane did for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirror_edge.apps import generate, options
from mirror_edge.apps.groups import spread

if TYPE_CHECKING:
    from mirror_edge.apps.timeline import Timeline
    from mirror_edge.stats import Stats

__all__ = ["trace_command", "write"]


@spread
def trace_command(
    words: generate.Words,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the trace to this JSON file, for Perfetto or Chrome."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write it as a picture to this HTML file.")
    ] = None,
    mode: options.Mode = "auto",
    sampling: options.SamplingOptions,
    max_new_tokens: generate.MaxNewTokens = 256,
    stop: options.Stop = None,
    speculation: options.SpeculationOptions,
    raw: generate.Raw = False,
    system: generate.System = None,
    template: options.Template = None,
    devices: options.DeviceOptions,
) -> None:
    """Answer one prompt, and write what each lane did."""
    from mirror_edge.apps import output as files
    from mirror_edge.apps.timeline import Timeline
    from mirror_edge.errors import OptionError

    if output is None and html is None:
        raise OptionError("nothing to write; give -o FILE, --html FILE or both.")
    files.check(output, html)
    question = generate.question(words, raw=raw, system=system, template=template)
    how, plan = sampling.checked(), speculation.checked(mode)
    with devices.load(question.bundle) as model:
        kept = model.trace.keep()
        result = model.generate(
            question.prompt,
            max_new_tokens=max_new_tokens,
            sampling=how,
            speculation=plan,
            stop=stop or (),
            template=question.variables,
        )
        name = model.bundle.manifest.name
    # Now that the lanes have ended, so have the last spans.
    model.trace.take()
    timeline = Timeline.of(kept, result.stats.steps)
    write(timeline, result.stats, f"{name}, mode {result.mode}", output, html)
    typer.echo(generate.summary(result.mode, result.stats), err=True)


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
