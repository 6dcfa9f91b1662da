"""What the server says of itself, line by line, on standard error."""

from __future__ import annotations

from contextlib import suppress
from queue import Full, Queue
from threading import Thread

import typer

__all__ = ["Teller"]

_MOST = 256
"""Lines that wait to be read; later ones are dropped."""


class Teller:
    """Speaks from a thread of its own: whoever started the server and does not read what it says
    holds up no answer.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self._lines: Queue[str] = Queue(_MOST)
        Thread(target=self._speak, name="teller", daemon=True).start()

    def tell(self, line: str) -> None:
        """Say it soon, or never."""
        with suppress(Full):
            self._lines.put_nowait(line)

    def _speak(self) -> None:
        while True:
            line = self._lines.get()
            with suppress(OSError):  # Whoever read this has gone; the answers go on.
                typer.echo(line, err=True)
