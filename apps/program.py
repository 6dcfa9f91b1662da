"""How a program ends: a known error is one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

from mirror_edge.errors import MirrorEdgeError

if TYPE_CHECKING:
    import typer


def run(program: Callable[[], object]) -> None:
    """Run `program`; Ctrl-C exits with 130, an error of ours with its own code and no traceback.

    One that is told to end, or whose terminal is closed, cleans up first, as after Ctrl-C.
    """
    for number, usual in _told_by():
        if signal.getsignal(number) is usual:
            signal.signal(number, _told)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows another one, and the answer goes on.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        program()
    except MirrorEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_told.code or error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _told.code:
            sys.exit(_told.code)
        if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # What is still in the buffer would fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = error.filename or "the output"
        print(f"error: {what} cannot be written ({error.strerror}).", file=sys.stderr)
        sys.exit(2)


class _Told:
    """Ends the program at a signal, and remembers that it has.

    Imports catch whatever is raised in them: they go on, or tell of a missing package instead.
    """

    code = 0

    def __call__(self, number: int, _frame: object) -> NoReturn:
        self.code = 128 + number
        self.end()

    def end(self) -> NoReturn:
        if self.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(self.code)


_told = _Told()


def end_if_told() -> None:
    """End a program that goes on all the same, at its next sign of life."""
    if _told.code:
        _told.end()


def _told_by() -> Iterator[tuple[int, object]]:
    """The signals that end a program, and what handles them unless somebody else does."""
    yield signal.SIGINT, signal.default_int_handler
    yield signal.SIGTERM, signal.SIG_DFL
    if sys.platform != "win32":
        yield signal.SIGHUP, signal.SIG_DFL


def main() -> None:
    """The console script. Ctrl-C ends it in peace while its commands are still being imported."""

    def command() -> None:
        from mirror_edge.apps.cli import app

        app()

    run(command)


def single(command: Callable[..., None]) -> typer.Typer:
    """A program of one command."""
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return app
