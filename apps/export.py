"""``mirror-edge export``: two models in, one bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mirror_edge.export.pipeline import Exported

__all__ = ["export_command"]

PrecisionOption = Literal["int4", "int8", "fp16", "fp32"]


def export_command(
    target: Annotated[
        str,
        typer.Argument(
            help="The model whose answers you want: a Hugging Face folder, a name on the hub, "
            "a folder in ONNX Runtime GenAI's format, or one written by optimum-cli; for Core ML "
            "also a bundle."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder to write.")],
    draft: Annotated[
        str | None,
        typer.Option(
            help="The small model that guesses ahead, with the same tokenizer; early-exit: the "
            "target's own first layers; left out: none, the n-gram drafter needs no model."
        ),
    ] = None,
    exit_layer: Annotated[
        str,
        typer.Option(
            help="After how many layers the target names its candidates; auto is half, or what "
            "--calibrate finds best."
        ),
    ] = "auto",
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file of text (JSON lines, or plain *.txt) that the exit head is fitted to; "
            "repeatable."
        ),
    ] = None,
    exit_rank: Annotated[
        int | None, typer.Option(help="Of the fitted correction, 8 to 128.  [default: 64]")
    ] = None,
    precision: Annotated[
        PrecisionOption | None,
        typer.Option(help="Of the weights; int4 unless TARGET is an ONNX folder."),
    ] = None,
    draft_precision: Annotated[
        PrecisionOption | None, typer.Option(help="Of the draft's weights; as --precision.")
    ] = None,
    format: Annotated[
        Literal["onnx", "coreml"],
        typer.Option(help="What the graphs are: for ONNX Runtime, or for Apple's devices."),
    ] = "onnx",
    context: Annotated[
        int | None,
        typer.Option(help="Tokens that Core ML programs are made for; 4096 at most unless told."),
    ] = None,
    draft_for: Annotated[
        str | None,
        typer.Option(help="Also write the draft for NPUs of this kind: qnn or openvino."),
    ] = None,
    draft_vocabulary: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many tokens the draft can say, the commonest (lowest ids); by default all. "
            "Fewer make it faster where the vocabulary is large.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle.")] = False,
) -> None:
    """Make a bundle of a target model and its draft, and check it against both."""
    from mirror_edge.apps.progress import stages
    from mirror_edge.errors import OptionError
    from mirror_edge.export import export

    if exit_layer != "auto" and not exit_layer.isdecimal():
        raise OptionError(f"--exit-layer {exit_layer}: must be auto or a number.")
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
    """Say what was written."""
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
        rank = f"rank {found['rank']}" if found["rank"] else "the plain head foresees best there"
        console.print(
            f"Coverage on {found['held_out_rows']:,} held-out tokens (how often the next token is "
            f"among κ candidates; {rank}), and what a step is expected to take, in "
            "passes of the target:",
            soft_wrap=True,
        )
        console.print(coverage_table(found["coverage"], found["expected_step"]))
        console.print()
    files = Table("file", "size", "what it is", box=None)
    for file, entry in manifest.files.items():
        files.add_row(file, _size(entry.bytes), _CONTENTS.get(file, ""))
    console.print(files)
    console.print("\nChecked, in standard deviations of the logits:")
    for name, off in made.deviations.items():
        console.print(f"  {name}: {off:.2g}")
    for note in made.notes:
        console.print(f"\nNote: {note}", soft_wrap=True)
    total = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"\n{made.folder}: {_size(total)}", soft_wrap=True)


_CONTENTS = {
    "target/prefix.onnx": "embedding and the layers up to the exit",
    "target/exit.onnx": "the exit head: candidates for the draft",
    "target/suffix.onnx": "the layers behind the exit, and the LM head",
    "target/weights.bin": "the weights of the target's graphs",
    "target/exit.bin": "the exit head's own weights",
    "target/draft.onnx": "the target's own layers up to the exit, as the draft",
    "draft/draft.onnx": "the draft, with positions and mask as inputs",
    "draft/fixed_prefill.onnx": "the draft for NPUs, reading a prompt",
    "draft/fixed_rollout.onnx": "the draft for NPUs, rolling out",
    "draft/weights.bin": "the draft's weights",
    "tokenizer.json": "the tokenizer that both share",
    "tokenizer_config.json": "its settings",
    "generation_config.json": "which tokens end an answer",
    "coverage.json": "how well exit heads foresee, as measured here",
    "chat_template.jinja": "how a conversation becomes a prompt",
}


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
