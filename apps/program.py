"""How a program ends: a known error is one line on standard error and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import TextIOWrapper

import typer

from mirror_edge.errors import MirrorEdgeError


def run(program: Callable[[], object]) -> None:
    """Run `program`; Ctrl-C exits with 130, an error of ours with its own code and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows another one, and the answer goes on.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        program()
    except MirrorEdgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def single(command: Callable[..., None]) -> typer.Typer:
    """A program of one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return app
