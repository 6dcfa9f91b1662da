"""What crosses between an answer and a draft in another process: numbers, in frames.

Nothing that arrives is trusted: anything but a reply to the running call is a `WireError`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from mirror_edge.grammar import KINDS, Grammar
from mirror_edge.hypotheses import Branch, Root
from mirror_edge.sampling import Sampling

__all__ = ["Asked", "Form", "Kind", "Message", "Wire", "WireError", "in_line"]

_HEADER = struct.Struct("=4sIIII")
_MAGIC = b"mirE"
_READ = 1 << 16
_MOST = 1 << 24
"""Most numbers in a message."""


class WireError(Exception):
    """What arrived is invalid."""


class Kind(IntEnum):
    """What a message means."""

    READY = 1
    """The draft is open; `floats` has the seconds per row, `ints` (JSON in UTF-8) how many nodes of
    each graph run on which provider."""
    PREFILL = 2
    """`ints` are the committed tokens; `floats` has the seconds that the call may take."""
    ROLLOUT = 3
    """An `Asked`; `floats` begins with the seconds that the call may take."""
    DROP = 4
    """The call's branches are no longer wanted, except that of the root in `ints`, if any."""
    DONE = 5
    """The call's branches or review; `floats` has the start and end of each of its forwards."""
    FAILED = 6
    """Why the draft cannot continue; `ints` is UTF-8."""
    REVIEW = 7
    """An `Asked` with all committed tokens, no roots, and as `depth` how many are reviewed. The
    reply has a 1 for each that was predicted and a 0 for each other."""
    FORM = 8
    """The form of the answers to come: a `Form`. It is answered once the draft can follow it."""


_KINDS = frozenset(Kind)


class Message(NamedTuple):
    """One frame."""

    kind: Kind
    call: int
    """The call it belongs to, counted from 1."""
    ints: Sequence[int] = ()
    floats: Sequence[float] = ()

    @classmethod
    def text(cls, kind: Kind, call: int, text: str) -> Message:
        """A message with a text."""
        return cls(kind, call, list(text.encode()))

    def as_text(self) -> str:
        """The text in it."""
        return bytes(i & 0xFF for i in self.ints).decode(errors="replace")


class Form(NamedTuple):
    """The form of answers over a vocabulary."""

    grammar: Grammar | None
    vocabulary: int

    def message(self, call: int, seconds: float) -> Message:
        """The form as a message; the call may take `seconds`."""
        ints = [self.vocabulary]
        if self.grammar is not None:
            ints += [KINDS.index(self.grammar.kind), *self.grammar.text.encode()]
        return Message(Kind.FORM, call, ints, (seconds,))

    @classmethod
    def of(cls, message: Message) -> Form:
        """The form in a message."""
        vocabulary, *rest = message.ints
        return cls(Grammar(KINDS[rest[0]], bytes(rest[1:]).decode()) if rest else None, vocabulary)


class Asked(NamedTuple):
    """A request for a rollout or a review; see `Drafter`."""

    committed: Sequence[int]
    drafted: Sequence[int]
    roots: Sequence[Root]
    depth: int
    sampling: Sampling
    vocabulary: int
    start: int = 0
    """Where the answer begins."""

    def message(self, call: int, seconds: float, kind: Kind = Kind.ROLLOUT) -> Message:
        """The request as a message; the call may take `seconds`."""
        s = self.sampling
        # The noise depends only on the seed's low 64 bits.
        seed = (int(s.seed) + (1 << 63)) % (1 << 64) - (1 << 63)
        top_k = min(s.top_k, self.vocabulary)
        ints = [self.depth, self.vocabulary, self.start, top_k, seed]
        ints += [len(self.committed), len(self.drafted)]
        ints += self.committed
        ints += self.drafted
        for root in self.roots:
            ints += root
        penalties = s.repetition_penalty, s.presence_penalty, s.frequency_penalty
        floats = (seconds, s.temperature, s.top_p, s.min_p, *penalties)
        return Message(kind, call, ints, floats)

    @classmethod
    def of(cls, message: Message) -> Asked:
        """The request in a message."""
        depth, vocabulary, start, top_k, seed, committed, drafted, *rest = message.ints
        _, temperature, top_p, min_p, repetition, presence, frequency = message.floats
        told, roots = committed + drafted, rest[committed + drafted :]
        return cls(
            rest[:committed],
            rest[committed:told],
            list(map(Root, roots[::2], roots[1::2])),
            depth,
            Sampling(temperature, top_k, top_p, min_p, repetition, presence, frequency, seed),
            vocabulary,
            start,
        )

    def answered(self, message: Message) -> list[Branch]:
        """The branches in the reply to this.

        Raises:
            WireError: for anything but branches of its roots, each at most once.
        """
        ints, at, wanted, branches = message.ints, 0, set(self.roots), []
        while at < len(ints):
            if len(ints) < at + 3:
                raise WireError("a truncated branch")
            root, length = Root(ints[at], ints[at + 1]), ints[at + 2]
            tokens = tuple(ints[at + 3 : at + 3 + max(0, length)])
            if root not in wanted:
                raise WireError(f"a branch of {tuple(root)}, which was not asked for")
            if not 0 < length == len(tokens) <= self.depth:
                raise WireError(
                    f"a branch of {length} tokens, where at most {self.depth} were asked for"
                )
            if min(tokens) < 0 or max(tokens) >= self.vocabulary:
                raise WireError(
                    f"a branch with a token outside the vocabulary of {self.vocabulary:,}"
                )
            wanted.remove(root)
            branches.append(Branch(root, tokens))
            at += 3 + length
        return branches

    def reviewed(self, message: Message) -> list[bool]:
        """What the reply to this, as a review, reports of the latest tokens.

        Raises:
            WireError: for anything else.
        """
        if len(message.ints) > self.depth or not {0, 1}.issuperset(message.ints):
            raise WireError("a review of the wrong tokens")
        return [bool(right) for right in message.ints]


def in_line(branches: Sequence[Branch]) -> list[int]:
    """Branches as the numbers of a reply."""
    ints: list[int] = []
    for root, tokens in branches:
        ints += (*root, len(tokens), *tokens)
    return ints


class Wire:
    """One end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        """Speak over a connected stream socket, which becomes this wire's own."""
        if connection.family == socket.AF_INET:  # On systems without Unix socket pairs.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._unread = bytearray()
        self._sending = threading.Lock()

    def send(self, message: Message, seconds: float | None = None) -> None:
        """Send a message whole, from any thread; the other end has `seconds` to accept it.

        Raises:
            TimeoutError: if it does not accept it.
            ConnectionError: if it is gone.
        """
        kind, call, ints, floats = message
        header = _HEADER.pack(_MAGIC, kind, call, len(ints), len(floats))
        content = header + array("q", ints).tobytes() + array("d", floats).tobytes()
        with self._sending:
            if seconds is not None:
                self._socket.settimeout(seconds)
            self._socket.sendall(content)

    def receive(self, seconds: float | None = None) -> Message:
        """The next message; with `seconds`, wait no longer for the whole of it.

        Raises:
            WireError: for anything but a message.
            TimeoutError: if it does not arrive in time.
            EOFError: if the other end is gone.
        """
        until = None if seconds is None else time.monotonic() + seconds
        magic, number, call, ints, floats = _HEADER.unpack(self._take(_HEADER.size, until))
        if magic != _MAGIC or ints + floats > _MOST or number not in _KINDS:
            raise WireError("bytes that are not a message")
        body = self._take(8 * (ints + floats), until)
        numbers, times = array("q", body[: 8 * ints]), array("d", body[8 * ints :])
        return Message(Kind(number), call, numbers.tolist(), times.tolist())

    def arrived(self) -> bool:
        """Whether there is something to receive."""
        return bool(self._unread) or bool(select.select([self._socket], [], [], 0.0)[0])

    def end(self) -> None:
        """Tell the other end, and any thread waiting at this one, that nothing more will come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()

    def _take(self, size: int, until: float | None) -> bytes:
        unread = self._unread
        while len(unread) < size:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0.0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                arrived = self._socket.recv(_READ)
            except ConnectionError as error:
                raise EOFError from error
            if not arrived:
                raise EOFError
            unread += arrived
        taken = bytes(unread[:size])
        del unread[:size]
        return taken
