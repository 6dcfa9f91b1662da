"""`mirror-edge coverage`: how well a bundle's exit head predicts its target on a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["coverage_command", "coverage_table"]


def coverage_command(
    files: Annotated[
        list[Path], typer.Argument(help="Text: JSON lines of conversations, or plain *.txt files.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder (default: the demo pair).")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=64, help="How many tokens of the text to measure on.")
    ] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how often the target's next token is among the exit head's κ candidates."""
    from rich.console import Console

    from mirror_edge import bundle as bundles
    from mirror_edge.apps.plain_pair import opened_target
    from mirror_edge.apps.progress import stages
    from mirror_edge.export import sample
    from mirror_edge.export.coverage import coverage, entries, rows_of
    from mirror_edge.text import Text

    drawn = sample.draw(files)
    read = bundles.read(bundles.demo() if bundle is None else bundle)
    spec = read.manifest.target
    sampled = sample.texts_of(drawn, Text.of(read), spec.model.context, rows)
    texts = [text for document in sampled for text in document]
    with opened_target(read) as target, stages() as show:
        found = coverage(
            rows_of(target, spec.exit_layer, texts, lambda at: show("Measuring coverage", at))
        )
    content = {
        "bundle": read.manifest.name,
        "rows": sum(map(len, texts)),
        "coverage": entries(found),
    }
    if as_json:
        typer.echo(json.dumps(content))
        return
    console = Console()
    console.print(f"{content['bundle']}, {content['rows']:,} tokens of text", highlight=False)
    console.print(coverage_table(entries(found)))


def coverage_table(
    entries: Sequence[Mapping[str, Any]], steps: Mapping[str, float] | None = None
) -> Table:
    """Ω_κ by exit head and temperature, and the expected steps of the fitted ones."""
    from rich.table import Table

    kappas = list(entries[0]["shares"])
    extra = ["step"] if steps else []
    table = Table("layer", "exit head", "T", *(f"κ={kappa}" for kappa in kappas), *extra, box=None)
    for entry in entries:
        cells = [f"{entry['shares'][kappa]:.3f}" for kappa in kappas]
        if steps and entry["head"] == "fitted" and entry["temperature"] == 0:
            cells.append(f"{steps[str(entry['layer'])]:.3f}")
        table.add_row(str(entry["layer"]), entry["head"], f"{entry['temperature']:g}", *cells)
    return table
