"""`mirror-edge distill`: a draft for a target, trained on the user's own text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mirror_edge.apps.groups import spread

if TYPE_CHECKING:
    from mirror_edge.export import DraftShape, Recipe
    from mirror_edge.export.distillation import Distilled, Status

__all__ = ["DraftOptions", "RecipeOptions", "distill_command"]


@dataclass(frozen=True)
class DraftOptions:
    """A draft to continue training, or the shape of a new one."""

    draft: Annotated[
        str | None,
        typer.Option(
            help="A draft to continue training, with the target's tokenizer (default: a new one)."
        ),
    ] = None
    draft_layers: Annotated[int | None, typer.Option(help="Layers of a new draft.")] = None
    draft_hidden: Annotated[int | None, typer.Option(help="Hidden size of a new draft.")] = None
    draft_heads: Annotated[
        int | None,
        typer.Option(help="Attention heads of a new draft (default: heads of size 32 or 64)."),
    ] = None
    draft_kv_heads: Annotated[
        int | None,
        typer.Option(help="Key-value heads of a new draft (default: half of its heads)."),
    ] = None
    draft_intermediate: Annotated[
        int | None,
        typer.Option(help="MLP width of a new draft (default: twice its hidden size)."),
    ] = None

    def checked(self) -> str | DraftShape:
        """As the library takes it.

        Raises:
            OptionError: for a draft and a shape, for neither, or for an impossible shape.
        """
        from mirror_edge.errors import OptionError
        from mirror_edge.export import DraftShape

        draft, layers, hidden, *rest = vars(self).values()
        if draft is not None:
            if any(number is not None for number in (layers, hidden, *rest)):
                raise OptionError("--draft already has a shape; drop the other --draft-… options.")
            return str(draft)
        if layers is None or hidden is None:
            raise OptionError(
                "A new draft needs --draft-layers and --draft-hidden, for example 2 and 256. To "
                "continue training an existing one, give --draft FOLDER."
            )
        return DraftShape(layers, hidden, *(number or 0 for number in rest))


@dataclass(frozen=True)
class RecipeOptions:
    """How the draft is trained."""

    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes to train for (default: 30, unless --tokens is given)."),
    ] = None
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to train on, instead of --minutes.")
    ] = None
    streams: Annotated[
        int, typer.Option(help="Tokens that a row guesses beyond the next one; 0: a plain draft.")
    ] = 2
    stream_layers: Annotated[int, typer.Option(help="Layers that these guesses pass through.")] = 1
    stream_weight: Annotated[
        float, typer.Option(help="Weight of each stream's loss (the main loss has weight 1).")
    ] = 0.1
    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless",
            help="Train only the streams; --draft's own predictions stay unchanged.",
        ),
    ] = False
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate (default: chosen for the draft).")
    ] = None
    batch: Annotated[int, typer.Option(help="Text windows per step.")] = 32
    length: Annotated[
        int | None,
        typer.Option(help="Tokens per window (default: 256, or less if the context is short)."),
    ] = None
    seed: Annotated[
        int, typer.Option(help="Seed for initial weights, data order and sampling.")
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        typer.Option(help="Device to train on; auto is the fastest one present."),
    ] = "auto"
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Use torch.compile: slower to start, faster in long runs."),
    ] = False
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 120.0

    def checked(self) -> Recipe:
        """As the library takes it.

        Raises:
            OptionError: naming the option that cannot be honoured.
        """
        from mirror_edge.export import Recipe

        return Recipe(**vars(self))


@spread
def distill_command(
    *,
    target: Annotated[
        str,
        typer.Option(help="The model to draft for: a Hugging Face folder or a name on the hub."),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Text to learn from: JSON lines with messages or with text, or a file *.txt; "
            "repeatable."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the draft to.")],
    draft: DraftOptions,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="Text to measure on (default: part of the data); repeatable."),
    ] = None,
    recipe: RecipeOptions,
) -> None:
    """Train a draft for a target, and measure it.

    Run the same command again to resume an interrupted run.
    """
    from mirror_edge.export import distill

    with _bar() as show:
        made = distill(
            target,
            draft.checked(),
            data,
            output,
            held_out=held_out or (),
            recipe=recipe.checked(),
            on_progress=show,
        )
    _print(made)


@contextmanager
def _bar() -> Iterator[Callable[[Status], None]]:
    """One bar on standard error: the stage, its loss, and the acceptance last measured."""
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
    """Print what was written, and how good it is."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    run, volume, losses, accepted = made.run, made.volume, made.losses, made.acceptance
    console.print(
        f"{made.parameters:,} parameters, trained on {run.tokens:,} tokens in "
        f"{run.seconds / 60:.1f} minutes, drawn from {volume.tokens:,} tokens of text and "
        f"{volume.own_outputs:,} that the target wrote. Measured on {volume.held_out:,} held-out "
        "tokens, and on the target's answers to their prompts:\n",
        soft_wrap=True,
    )
    figures = Table("", "", box=None, show_header=False)
    for name, value in (
        ("loss of the target", losses.target),
        ("loss of the draft", losses.draft),
        ("loss of the draft against the target's distribution", losses.distillation),
        ("acceptance per token, temperature 0", accepted.greedy),
        ("acceptance per token, temperature 1, shared noise", accepted.shared),
        ("  a greedy draft", accepted.greedy_draft),
        ("  independent sampling", accepted.independent),
        ("  theoretical maximum", accepted.best),
    ):
        figures.add_row(name, f"{value:.3f}")
    for temperature, streams in made.streams.items():
        right = ", ".join(f"{share:.3f}" for share in streams.right)
        figures.add_row(f"correct stream guesses, temperature {temperature}", right)
        figures.add_row(
            f"  forwards per branch of {streams.branch} ({streams.branch} without streams)",
            f"{streams.forwards:.2f}",
        )
    console.print(figures)
    for note in made.notes:
        console.print(f"\nNote: {note}", soft_wrap=True)
    console.print(f"\n{made.folder}", soft_wrap=True)
