"""The web server that runs the application until it is told to stop."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette

__all__ = ["Host"]

_GRACE = 1
"""Seconds for answers to end in, once the model is closed."""


class Host(uvicorn.Server):
    """Ends in order at Ctrl-C, SIGTERM or when its terminal is closed; at the first of these."""

    def __init__(self, served: Starlette, on_end: Callable[[], None]) -> None:
        """Serve; `on_end` is called first of all when it is to end."""
        super().__init__(
            uvicorn.Config(
                served,
                ws="none",
                access_log=False,
                log_level="error",
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self._on_end = on_end

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have the closed terminal handled as the other signals are, unless it is ignored."""
        with super().capture_signals():
            if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second signal changes nothing, as it is ending already."""
        if not self.should_exit:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers in progress with an error that says so, then the connections."""
        self._on_end()
        await super().shutdown(sockets)
