"""``mirror-edge export``: two models in, one bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mirror_edge.export.pipeline import Exported

__all__ = ["export_command"]

_Precision = Literal["int4", "int4-mixed", "int8", "fp16", "fp32"]


def export_command(
    target: Annotated[
        str,
        typer.Argument(
            help="The model whose answers you want: a Hugging Face folder, a name on the hub, a "
            "folder in ONNX Runtime GenAI's format, or one written by optimum-cli; with --format "
            "coreml also an ONNX bundle."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")],
    draft: Annotated[
        str | None,
        typer.Option(
            help="The small model that drafts, with the target's tokenizer; early-exit uses the "
            "target's own first layers (default: none; the n-gram drafter needs no model)."
        ),
    ] = None,
    exit_layer: Annotated[
        str,
        typer.Option(
            help="Layer after which the exit head sits; auto is the middle layer, or the best one "
            "found by --calibrate."
        ),
    ] = "auto",
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file (JSON lines, or plain *.txt) to fit the exit head to; repeatable."
        ),
    ] = None,
    exit_rank: Annotated[
        int | None, typer.Option(help="Rank of the fitted correction, 8 to 128 (default: 64).")
    ] = None,
    precision: Annotated[
        _Precision | None,
        typer.Option(
            help="Weight precision (default: int4; fixed for ONNX folders). int4-mixed is int4 "
            "with the LM head and other sensitive matrices in int8, which is closer to the model."
        ),
    ] = None,
    draft_precision: Annotated[
        _Precision | None,
        typer.Option(help="The draft's weight precision (default: the same; int4 for int4-mixed)."),
    ] = None,
    format: Annotated[
        Literal["onnx", "coreml"],
        typer.Option(help="Bundle format: ONNX Runtime, or Core ML for Apple devices."),
    ] = "onnx",
    context: Annotated[
        int | None,
        typer.Option(
            help="Context length of the Core ML programs (default: the model's, at most 4096)."
        ),
    ] = None,
    draft_for: Annotated[
        str | None,
        typer.Option(help="Also write the draft for this kind of NPU: qnn or openvino."),
    ] = None,
    draft_vocabulary: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Limit the draft to the N most common tokens, i.e. the lowest ids (default: all). "
            "This speeds up drafts with a large vocabulary.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing bundle.")] = False,
) -> None:
    """Make a bundle from a target model and its draft, and check it against both."""
    from mirror_edge.apps.progress import stages
    from mirror_edge.errors import OptionError
    from mirror_edge.export import export

    if exit_layer != "auto" and not exit_layer.isdecimal():
        raise OptionError(f"--exit-layer {exit_layer}: must be auto or a whole number.")
    with stages() as show:
        made = export(
            target,
            draft,
            output,
            exit_layer=None if exit_layer == "auto" else int(exit_layer),
            precision=precision,
            draft_precision=draft_precision,
            calibrate=calibrate or (),
            exit_rank=exit_rank,
            format=format,
            context=context,
            draft_for=draft_for,
            draft_vocabulary=draft_vocabulary,
            force=force,
            on_progress=show,
        )
    _print(made)


def _print(made: Exported) -> None:
    """Print what was written, and how exact it is."""
    from rich.console import Console
    from rich.table import Table

    from mirror_edge.apps.coverage import coverage_table

    console, manifest = Console(), made.manifest
    target, draft = manifest.target, manifest.draft
    models = Table("", "architecture", "layers", "hidden", "precision", "context", box=None)
    for name, spec in (("target", target.model), ("draft", draft.model if draft else None)):
        if spec is not None:
            shape = (spec.layers, spec.hidden, spec.precision, spec.context)
            models.add_row(name, spec.architecture, *map(str, shape))
    console.print(models)
    console.print(
        f"\nExit after layer {target.exit_layer} of {target.model.layers}; the exit head names "
        f"{target.exit_vocabulary:,} of {target.model.vocabulary:,} tokens.\n"
    )
    if made.calibration is not None:
        found = made.calibration.content()
        rank = (
            f"rank {found['rank']}"
            if found["rank"]
            else "without a correction, which did not help there"
        )
        console.print(
            f"Coverage on {found['held_out_rows']:,} held-out tokens (how often the next token is "
            f"among κ candidates; {rank}), and the expected duration of a step, in target passes:",
            soft_wrap=True,
        )
        console.print(coverage_table(found["coverage"], found["expected_step"]))
        console.print()
    files = Table("file", "size", "contents", box=None)
    for file, entry in manifest.files.items():
        files.add_row(file, _size(entry.bytes), _CONTENTS.get(file, ""))
    console.print(files)
    console.print("\nLargest deviations found, in standard deviations of the logits:")
    for name, off in made.deviations.items():
        console.print(f"  {name}: {off:.2g}")
    for note in made.notes:
        console.print(f"\nNote: {note}", soft_wrap=True)
    total = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"\n{made.folder}: {_size(total)}", soft_wrap=True)


_CONTENTS = {
    "target/prefix.onnx": "embedding and the layers up to the exit",
    "target/exit.onnx": "the exit head: candidates for the draft",
    "target/suffix.onnx": "the layers after the exit, and the LM head",
    "target/weights.bin": "the weights of the target's graphs",
    "target/exit.bin": "the exit head's own weights",
    "target/draft.onnx": "the draft: the target's own layers up to the exit",
    "draft/draft.onnx": "the draft, with positions and mask as inputs",
    "draft/fixed_prefill.onnx": "the draft for NPUs, reading a prompt",
    "draft/fixed_rollout.onnx": "the draft for NPUs, drafting branches",
    "draft/weights.bin": "the draft's weights",
    "tokenizer.json": "the tokenizer of both models",
    "tokenizer_config.json": "its settings",
    "generation_config.json": "end-of-sequence tokens and sampling defaults",
    "coverage.json": "measured coverage of the exit heads",
    "chat_template.jinja": "how a conversation becomes a prompt",
}


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
