"""`mirror-edge cache`: what is kept between runs."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Manage cached files: compiled graphs, shaders, probes, measurements.",
    no_args_is_help=True,
)


@app.command("clear")
def clear_command() -> None:
    """Delete the cache; it is rebuilt when needed."""
    from mirror_edge import kept
    from mirror_edge.errors import OptionError

    try:
        where, size = kept.folder(), kept.clear()
    except OSError as error:
        raise OptionError(f"the cache cannot be deleted: {error}") from error
    typer.echo(f"{where}: {size / 1e6:.1f} MB deleted.")


@app.callback()
def group() -> None:
    """Make `clear` a word of its own: a program of one command has none."""
