"""`mirror-edge inspect`: what a bundle holds, and what it needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mirror_edge.bundle import DraftSpec, Manifest, ModelSpec
    from mirror_edge.memory import MemoryPlan


def inspect_command(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle's folder; left out: the demo pair.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a bundle and show what is in it."""
    from mirror_edge import bundle as bundles
    from mirror_edge.memory import plan_memory

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    plan = plan_memory(read.manifest)
    coverage = None
    if bundles.COVERAGE in read.manifest.files:
        coverage = json.loads(read.file(bundles.COVERAGE).read_text(encoding="utf-8"))
    if as_json:
        memory = {**dataclasses.asdict(plan), "total": plan.total}
        manifest = dataclasses.asdict(read.manifest)
        found = {"folder": str(read.folder), **manifest, "memory": memory, "coverage": coverage}
        typer.echo(json.dumps(found))
    else:
        _show(read.manifest, plan, coverage)


def _show(manifest: Manifest, plan: MemoryPlan, coverage: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from mirror_edge.apps.coverage import coverage_table

    target, draft = manifest.target, manifest.draft
    console = Console()
    console.print(f"[bold]{manifest.name}[/bold] (schema {manifest.schema})", highlight=False)

    models = Table(
        "model", "architecture", "layers", "hidden", "vocabulary", "context", "precision"
    )
    models.add_row("target", *_row(target.model))
    if draft is not None:
        models.add_row("draft", *_row(draft.model))
    console.print(models)
    console.print(
        f"exit after layer {target.exit_layer} of {target.model.layers}, "
        f"its head names {target.exit_vocabulary:,} of {target.model.vocabulary:,} tokens; "
        + ("no draft" if draft is None else _streams(draft)),
        highlight=False,
    )
    if draft is not None and draft.shared_bytes:
        console.print(
            "the draft is the target's own early exit: no second model on disk, but "
            f"{draft.shared_bytes / 1e6:.1f} MB of the target's weights are loaded once more",
            highlight=False,
        )

    if coverage is not None:
        console.print(coverage_table(coverage["coverage"], coverage["expected_step"]))

    files = Table("file", "MB", "SHA-256")
    for name, spec in manifest.files.items():
        files.add_row(name, f"{spec.bytes / 1e6:.2f}", spec.sha256[:16])
    console.print(files)

    memory = Table("memory at full context", "MB")
    for part, size in dataclasses.asdict(plan).items():
        memory.add_row(part.replace("_", " "), f"{size / 1e6:.1f}")
    memory.add_row("total", f"{plan.total / 1e6:.1f}")
    console.print(memory)


def _streams(draft: DraftSpec) -> str:
    if not draft.streams:
        return "no draft streams"
    return f"{draft.streams} draft streams through the top {draft.stream_layers} layers"


def _row(model: ModelSpec) -> tuple[str, ...]:
    return (
        model.architecture,
        str(model.layers),
        str(model.hidden),
        f"{model.vocabulary:,}",
        f"{model.context:,}",
        model.precision,
    )
