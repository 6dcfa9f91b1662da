"""The process that runs the draft: how it is started, called and ended."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge.errors import DeviceError
from mirror_edge.interpreter import command, environment
from mirror_edge.lanes import Dropped
from mirror_edge.wire import Kind, Message, Wire, WireError

if TYPE_CHECKING:
    from mirror_edge.devices import Device

__all__ = ["Child", "ChildError"]

_OPENING = 300.0
"""Seconds allowed for opening the draft: some drivers compile it first."""
_ENDING = 2.0
"""Seconds allowed for a child to release its device."""
_RECENT = 32
"""How many of the latest calls are timed."""


class ChildError(Exception):
    """What went wrong with a child."""


class Child:
    """A child process and the connection to it."""

    def __init__(self, folder: Path, device: Device, threads: int) -> None:
        """Start the process.

        Raises:
            DeviceError: if the system refuses another process.
        """
        self.pace: deque[float] = deque(maxlen=_RECENT)
        """Seconds per row in the latest calls."""
        self.placed: dict[str, dict[str, int]] = {}
        """How many nodes of each graph run on which provider, once the draft is open."""
        self._device = device
        words = command("mirror_edge.draft_server", str(folder), str(device), str(threads))
        try:
            self.process, connection = _spawn(words)
        except OSError as error:
            raise DeviceError(f"{device}: the draft's process did not start: {error}.") from error
        self._wire = Wire(connection)
        self._asking = threading.Lock()

    def open(self) -> None:
        """Wait until the draft is open.

        Raises:
            DeviceError: if it does not open.
        """
        try:
            reply = self._receive(_OPENING)
        except ChildError as error:
            raise DeviceError(f"{self._device}: the draft did not open: {error}.") from error
        if reply.kind is not Kind.READY or len(reply.floats) != 1:
            raise DeviceError(f"{self._device}: the draft did not open: invalid reply.")
        self.pace.append(reply.floats[0])
        try:
            self.placed = json.loads(reply.as_text())
        except ValueError:
            raise DeviceError(
                f"{self._device}: the draft reported an invalid node placement."
            ) from None

    def ask(self, message: Message, rows: int, dropped: Dropped | None = None) -> Message:
        """The reply to a call that feeds `rows` rows and may take `message.floats[0]` seconds.

        Raises:
            ChildError: if no valid reply arrives in time.
        """
        seconds, began = message.floats[0], time.perf_counter()
        with self._asking:
            try:
                self._wire.send(message, seconds)
            except TimeoutError:
                raise ChildError(f"it accepted no data for {seconds:.1f} s") from None
            except OSError:
                raise ChildError(self.how_it_ended()) from None
            dropped = dropped or Dropped()
            drop = partial(self._drop, message.call, dropped)
            dropped.tell(drop)
            try:
                reply = self._receive(seconds)
            finally:
                dropped.tell_no_more(drop)
        if (reply.kind, reply.call) != (Kind.DONE, message.call) or len(reply.floats) % 2:
            raise ChildError("invalid reply: it belongs to another call")
        if rows:
            self.pace.append((time.perf_counter() - began) / rows)
        return reply

    def how_it_ended(self) -> str:
        """How the process ended, as a clause of a message."""
        try:
            code = self.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            return "it closed the connection"
        if code >= 0:
            return f"it exited with code {code}"
        return f"it was killed by {next((s.name for s in signal.Signals if s == -code), -code)}"

    def end(self) -> None:
        """Let the process release its device and exit; kill it if it does not."""
        self._wire.end()
        try:
            self.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()

    def release(self) -> None:
        """Close the connection, once the process has ended."""
        with self._asking:
            self._wire.close()

    def _drop(self, call: int, dropped: Dropped) -> None:
        """Tell the child which branches are no longer wanted; called from any thread."""
        only = () if dropped.is_set() or dropped.all_but is None else dropped.all_but
        with contextlib.suppress(OSError):  # The thread that waits for the reply notices.
            self._wire.send(Message(Kind.DROP, call, only))

    def _receive(self, seconds: float) -> Message:
        try:
            message = self._wire.receive(seconds)
        except TimeoutError:
            raise ChildError(f"it did not reply within {seconds:.1f} s") from None
        except (EOFError, OSError):
            raise ChildError(self.how_it_ended()) from None
        except WireError as error:
            raise ChildError(f"invalid reply: {error}") from None
        if message.kind is Kind.FAILED:
            raise ChildError(message.as_text())
        return message


def _spawn(words: list[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process running `words`, and this end of a socket pair.

    The other end is the process's standard input. Its standard output is discarded and its standard
    error is passed through. Ctrl-C does not reach it.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undo, theirs:
        undo.enter_context(ours)
        if sys.platform == "win32":
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment(),
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW,
            )
            assert process.stdin is not None
            with process.stdin as entrance:
                entrance.write(theirs.share(process.pid))
        else:
            process = subprocess.Popen(
                words,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment(),
                process_group=0,
            )
        undo.pop_all()
    return process, ours
