"""``mirror-edge distill``: a draft for a target, trained on text that the user gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mirror_edge.export.distillation import Distilled, Status

__all__ = ["distill_command"]


def distill_command(
    target: Annotated[
        str,
        typer.Option(help="The model to draft for: a Hugging Face folder or a name on the hub."),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Text to learn from, repeatable: JSON lines with messages, or with text, or a "
            "file *.txt."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The draft's folder to write.")],
    draft: Annotated[
        str | None,
        typer.Option(help="A draft to go on with, with the same tokenizer; left out: a fresh one."),
    ] = None,
    draft_layers: Annotated[int | None, typer.Option(help="Layers of a fresh draft.")] = None,
    draft_hidden: Annotated[int | None, typer.Option(help="Its hidden size.")] = None,
    draft_heads: Annotated[
        int | None, typer.Option(help="Its heads; by default of size 32 or 64.")
    ] = None,
    draft_kv_heads: Annotated[
        int | None, typer.Option(help="Its key-value heads; by default half as many.")
    ] = None,
    draft_intermediate: Annotated[
        int | None, typer.Option(help="Its MLP's width; by default twice the hidden size.")
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="Text to measure on, repeatable; left out: some of the data."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long to train; 30 unless --tokens is given.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens to train on, instead of --minutes.")
    ] = None,
    streams: Annotated[
        int, typer.Option(help="Tokens a row guesses beyond the next one; 0: a plain draft.")
    ] = 2,
    stream_layers: Annotated[int, typer.Option(help="Layers that these guesses go through.")] = 1,
    stream_weight: Annotated[
        float, typer.Option(help="Of each stream's loss beside the main rows' 1.")
    ] = 0.1,
    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless", help="Train the streams alone; --draft's own predictions stay as is."
        ),
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its height; by default one that suits the draft.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows of text a step.")] = 32,
    length: Annotated[
        int | None, typer.Option(help="Tokens a window; 256, if the target's context allows.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and samples.")] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="auto is the fastest there is.")
    ] = "auto",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Use torch.compile: slow to start, faster in long runs."),
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="How often to write what an interrupted run goes on from.")
    ] = 120.0,
) -> None:
    """Train a draft for a target, and measure it. An interrupted run goes on when called again."""
    from mirror_edge.errors import OptionError
    from mirror_edge.export import DraftShape, Recipe, distill

    shape = (draft_layers, draft_hidden, draft_heads, draft_kv_heads, draft_intermediate)
    if draft is not None and any(number is not None for number in shape):
        raise OptionError("--draft has a shape of its own; leave the --draft-… numbers out.")
    if draft is None and (draft_layers is None or draft_hidden is None):
        raise OptionError(
            "A fresh draft needs --draft-layers and --draft-hidden, for example 2 and 256; or give "
            "one to go on with, --draft FOLDER."
        )
    recipe = Recipe(
        minutes=minutes,
        tokens=tokens,
        streams=streams,
        stream_layers=stream_layers,
        stream_weight=stream_weight,
        lossless=lossless,
        learning_rate=learning_rate,
        batch=batch,
        length=length,
        seed=seed,
        device=device,
        compiled=compiled,
        checkpoint_seconds=checkpoint_seconds,
    )
    with _bar() as show:
        made = distill(
            target,
            draft if draft is not None else DraftShape(*(number or 0 for number in shape)),
            data,
            output,
            held_out=held_out or (),
            recipe=recipe,
            on_progress=show,
        )
    _print(made)


@contextmanager
def _bar() -> Iterator[Callable[[Status], None]]:
    """One bar on standard error: the stage, its loss, and the acceptance as measured last."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1.0)

        def show(status: Status) -> None:
            words = [status.stage]
            if status.loss is not None:
                words.append(f"loss {status.loss:.3f}")
            if status.acceptance is not None:
                words.append(f"acceptance {status.acceptance:.2f}")
            progress.update(task, description="  ".join(words), completed=status.share)

        yield show


def _print(made: Distilled) -> None:
    """Say what was written, and what it is worth."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    run, volume, losses, accepted = made.run, made.volume, made.losses, made.acceptance
    console.print(
        f"{made.parameters:,} parameters saw {run.tokens:,} tokens in {run.seconds / 60:.1f} "
        f"minutes, of {volume.tokens:,} tokens of text and {volume.own_outputs:,} of the target's "
        f"own. Measured on {volume.held_out:,} tokens that were held out, and on the target's "
        "answers to their prompts:\n",
        soft_wrap=True,
    )
    figures = Table("", "", box=None, show_header=False)
    for name, value in (
        ("loss of the target", losses.target),
        ("loss of the draft", losses.draft),
        ("loss of the draft against the target's distribution", losses.distillation),
        ("acceptance a token, temperature 0", accepted.greedy),
        ("acceptance a token, temperature 1, one noise for both", accepted.shared),
        ("  a greedy draft", accepted.greedy_draft),
        ("  independent samples", accepted.independent),
        ("  the most that any way of choosing reaches", accepted.best),
    ):
        figures.add_row(name, f"{value:.3f}")
    for temperature, streams in made.streams.items():
        right = ", ".join(f"{share:.3f}" for share in streams.right)
        figures.add_row(f"stream guesses right, temperature {temperature}", right)
        figures.add_row(
            f"  forwards a branch of {streams.branch}, {streams.branch} without streams",
            f"{streams.forwards:.2f}",
        )
    console.print(figures)
    for note in made.notes:
        console.print(f"\nNote: {note}", soft_wrap=True)
    console.print(f"\n{made.folder}", soft_wrap=True)
