"""How a program ends: a known error is one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

from mirror_edge.errors import MirrorEdgeError, OptionError

if TYPE_CHECKING:
    import typer


_OF_FILES = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
"""Failures that are not the program's: of a path that was given, or of the disk."""
_ALONE = {"mode", "max_new_tokens", "stop"}
"""Parameters whose options are in none of the groups that commands share."""


def run(program: Callable[[], object]) -> None:
    """Run `program`; Ctrl-C exits with 130, an error of ours with its own code and no traceback.

    One that is told to end, or whose terminal is closed, cleans up first, as after Ctrl-C.
    """
    _open_closed_streams()
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
        said = str(error) if not isinstance(error, OptionError) else as_option(str(error))
        print(f"error: {said}", file=sys.stderr)
        sys.exit(_told.code or error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _told.code:
            sys.exit(_told.code)
        if not isinstance(error, OSError) or error.errno not in _OF_FILES:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # What is still in the buffer would fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = "written" if error.errno in (errno.ENOSPC, errno.EROFS) else "used"
        named = error.filename or "the output"
        print(f"error: {named} cannot be {what} ({error.strerror}).", file=sys.stderr)
        sys.exit(2)


def as_option(message: str) -> str:
    """A message of the library about a parameter, about the option that it came from."""
    from mirror_edge.apps.options import DeviceOptions, SamplingOptions, SpeculationOptions

    groups = (DeviceOptions, SamplingOptions, SpeculationOptions)
    options = {option.name for group in groups for option in fields(group)} | _ALONE
    name = message.split(" ", 1)[0].removesuffix(":")
    return f"--{name.replace('_', '-')}{message[len(name) :]}" if name in options else message


def _open_closed_streams() -> None:
    """Standard streams that were closed read nothing, and take whatever is written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


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
