"""How a program ends: a known error is one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

from mirror_edge.errors import MirrorEdgeError

if TYPE_CHECKING:
    import typer


def run(program: Callable[[], object]) -> None:
    """Run `program`; Ctrl-C exits with 130, an error of ours with its own code and no traceback.

    One that is told to end, or whose terminal is closed, cleans up first, as after Ctrl-C.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows another one, and the answer goes on.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        program()
    except MirrorEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # What is still in the buffer would fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = error.filename or "the output"
        print(f"error: {what} cannot be written ({error.strerror}).", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """The console script. Ctrl-C ends it in peace while its commands are still being imported."""

    def command() -> None:
        from mirror_edge.apps.cli import app

        app()

    run(command)


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def single(command: Callable[..., None]) -> typer.Typer:
    """A program of one command."""
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return app
