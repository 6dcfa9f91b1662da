"""`mirror-edge inspect`: what a bundle holds, and what it needs."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.table import Table

    from mirror_edge.bundle import Bundle, DraftSpec, Manifest, ModelSpec
    from mirror_edge.memory import MemoryPlan
    from mirror_edge.packages import Feature

__all__ = ["inspect_command"]


def inspect_command(
    bundle: options.Bundle = None,
    placement: Annotated[
        bool,
        typer.Option(
            "--placement",
            help="Load the bundle and show which provider runs each graph (Core ML: its plan).",
        ),
    ] = False,
    target_device: options.Device = "auto",
    draft_device: options.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a bundle and show what is in it."""
    from mirror_edge import bundle as bundles
    from mirror_edge.errors import OptionError
    from mirror_edge.memory import plan_memory

    if not placement and (target_device, draft_device) != ("auto", "auto"):
        raise OptionError("--target-device and --draft-device require --placement.")
    read = bundles.read(bundles.demo() if bundle is None else bundle)
    plan = plan_memory(read.manifest)
    coverage = None
    if bundles.COVERAGE in read.manifest.files:
        coverage = json.loads(read.file(bundles.COVERAGE).read_text(encoding="utf-8"))
    places = _placed(read, target_device, draft_device) if placement else {}
    if as_json:
        memory = {**dataclasses.asdict(plan), "total": plan.total}
        manifest = dataclasses.asdict(read.manifest)
        found = {"folder": str(read.folder), **manifest, "memory": memory, "coverage": coverage}
        typer.echo(json.dumps({**found, "placement": places} if placement else found))
    else:
        _show(read.manifest, plan, coverage)
        if placement:
            _show_placement(places)


def _placed(read: Bundle, target_device: str, draft_device: str) -> Mapping[str, Mapping[str, int]]:
    """By graph and provider: the number of nodes."""
    if read.manifest.packages:
        return _planned(read, target_device, draft_device)
    from mirror_edge import load

    with load(
        read.folder,
        target_device=target_device,
        draft_device=draft_device,
        on_progress=options.tell,
    ) as model:
        return model.placement


def _planned(read: Bundle, target_device: str, draft_device: str) -> dict[str, dict[str, int]]:
    """Core ML's own plan: by default with the target on the GPU, the draft on the Neural Engine."""
    from mirror_edge.runtimes.coreml.placement import placement

    units = {"target": _unit(target_device, "gpu"), "draft": _unit(draft_device, "ane")}
    return {
        f"{name} {function}": counts
        for name in read.manifest.packages
        for function, counts in placement(read.file(name), units[name.split("/")[0]]).items()
    }


def _unit(name: str, default: str) -> str:
    """The Core ML unit that a device option names."""
    from mirror_edge.devices import Device, runtime_for
    from mirror_edge.errors import DeviceError
    from mirror_edge.runtimes.coreml.program import EVALUATOR, UNITS

    if name == "auto":
        return default
    device = Device.parse(name)
    runtime_for(device, "coreml")
    if device.unit == EVALUATOR:
        units = ", ".join(f"coreml:{unit}" for unit in UNITS)
        raise DeviceError(f"device {name!r}: Core ML has no plan for it. Choose one of {units}.")
    return device.unit or default


def _show_placement(placed: Mapping[str, Mapping[str, int]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("graph", "provider", "nodes", "share")
    for graph, nodes in placed.items():
        for provider, count in nodes.items():
            share = count / sum(nodes.values())
            table.add_row(graph, provider, str(count), f"{share:.0%}")
    Console().print(table)


def _show(manifest: Manifest, plan: MemoryPlan, coverage: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from mirror_edge.apps.coverage import coverage_table

    target, draft = manifest.target, manifest.draft
    console = Console()
    title = f"[bold]{manifest.name}[/bold] ({manifest.format}, schema {manifest.schema})"
    console.print(title, highlight=False)

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
    if draft is not None and draft.head_vocabulary:
        console.print(
            f"the draft names {draft.named:,} of {draft.model.vocabulary:,} tokens, those with the "
            "lowest ids",
            soft_wrap=True,
        )
    if draft is not None and draft.shared_bytes:
        console.print(
            "the draft is the target's own early exit: no second model on disk, but "
            f"{draft.shared_bytes / 1e6:.1f} MB of the target's weights are loaded once more",
            highlight=False,
        )

    if coverage is not None:
        console.print(coverage_table(coverage["coverage"], coverage["expected_step"]))
    for table in _programs(manifest):
        console.print(table)

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


def _programs(manifest: Manifest) -> Iterator[Table]:
    """Inputs, states and outputs of the functions of each Core ML package."""
    from rich.table import Table

    for name, package in manifest.packages.items():
        size = sum(f.bytes for file, f in manifest.files.items() if file.startswith(f"{name}/"))
        title = f"{name}, {size / 1e6:.2f} MB, {package.system} and later"
        table = Table("function", "", "name, type, shape", title=title, title_justify="left")
        for called, function in package.functions.items():
            for kind in ("inputs", "states", "outputs"):
                features = [_feature(feature) for feature in getattr(function, kind)]
                if features:
                    table.add_row(called, kind, "\n".join(features))
                    called = ""
            table.add_section()
        yield table


def _feature(feature: Feature) -> str:
    sizes = [sorted(set(choices)) for choices in zip(*feature.shapes, strict=True)]
    shape = ", ".join("|".join(str(size) if size else "S" for size in each) for each in sizes)
    return f"{feature.name} {feature.dtype} \\[{shape}]"


def _row(model: ModelSpec) -> tuple[str, ...]:
    return (
        model.architecture,
        str(model.layers),
        str(model.hidden),
        f"{model.vocabulary:,}",
        f"{model.context:,}",
        model.precision,
    )
