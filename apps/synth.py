"""``mirror-edge synth``: a planted pair, to benchmark a model size without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["synth_command"]

_SHAPE = "a known shape such as qwen2.5-0.5b, or LAYERSxHIDDEN or LAYERSxHIDDENxVOCABULARY"


def synth_command(
    target_shape: Annotated[str, typer.Option(help=f"Shape of the target: {_SHAPE}.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the pair to.")],
    draft_shape: Annotated[
        str, typer.Option(help="Shape of the draft, likewise; its vocabulary is the target's.")
    ] = "4x256",
    agreement: Annotated[
        float, typer.Option(help="Share of tokens on which draft and target agree.")
    ] = 0.8,
    exit_coverage: Annotated[
        float,
        typer.Option(help="Share of tokens that are among the exit head's 8 most likely."),
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pair.")] = 0,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Data type of the weights.")
    ] = "bfloat16",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite an existing planted pair.")
    ] = False,
) -> None:
    """Write a planted pair: random weights of a real size that agree as often as you specify."""
    from rich.console import Console

    from mirror_edge.apps.progress import stages
    from mirror_edge.errors import MissingExtraError

    try:
        from mirror_edge.export.synth import Asked, synth
    except ImportError as error:
        raise MissingExtraError(
            f"A planted pair needs the package {error.name}, which is not installed. "
            "Install it with: pip install 'mirror-edge[export]'"
        ) from error
    asked = Asked(target_shape, draft_shape, agreement, exit_coverage, seed)
    with stages() as show:
        made = synth(asked, output, dtype=dtype, force=force, on_progress=show)
    console = Console()
    console.print(
        f"{made.folder}: a planted pair of {made.target_parameters / 1e6:,.1f}M and "
        f"{made.draft_parameters / 1e6:,.1f}M parameters. Its language is artificial: "
        "say so wherever you publish a measurement of it.",
        soft_wrap=True,
    )
    target, draft = made.folder / "target", made.folder / "draft"
    console.print(f"\nNext: mirror-edge export {target} --draft {draft} -o BUNDLE", soft_wrap=True)
