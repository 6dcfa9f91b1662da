"""The server's log, line by line, on standard error."""

from __future__ import annotations

from contextlib import suppress
from queue import Full, Queue
from threading import Thread

import typer

__all__ = ["Log"]

_MOST = 256
"""Lines that wait to be written; later ones are dropped."""


class Log:
    """Writes from a thread of its own, so that a standard error that nobody reads holds up no
    answer.
    """

    def __init__(self) -> None:
        """An empty log."""
        self._lines: Queue[str] = Queue(_MOST)
        Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Write the line soon, or drop it when too many are waiting."""
        with suppress(Full):
            self._lines.put_nowait(line)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            with suppress(OSError):  # Its reader has gone; the answers go on.
                typer.echo(line, err=True)
