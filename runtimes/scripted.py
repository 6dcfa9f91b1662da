"""Scripted devices for tests: a toy language instead of weights.

A `Language` maps the tokens so far to the next token's logits. The scripted target, exit head and
draft each have one, and the more similar these are, the more often they agree. Calls can take a
given time, by sleeping in real time (on a thread lane) or on a virtual clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.virtual import VirtualClock
from mirror_edge.trace import Span, Trace
from mirror_edge.trunk import FIRST

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Language",
    "ScriptedDraft",
    "ScriptedExitHead",
    "ScriptedTarget",
    "Seconds",
    "blend",
    "random_language",
]

Language = Callable[[Sequence[int]], "NDArray[np.float32]"]
"""From the tokens so far to logits [vocabulary]."""

Seconds = float | Callable[[int], float]
"""The time of a call, or a function from its number of rows to its time."""


def random_language(seed: int, vocabulary: int, order: int = 2, sharpness: float = 2.0) -> Language:
    """A language whose logits are a fixed random function of the last `order` tokens."""
    known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def logits(tokens: Sequence[int]) -> NDArray[np.float32]:
        key = tuple(tokens[-order:])
        if key not in known:
            draw = np.random.default_rng([seed, *key])
            known[key] = (sharpness * draw.standard_normal(vocabulary)).astype(np.float32)
        return known[key]

    return logits


def blend(language: Language, other: Language, share: float) -> Language:
    """A language that mixes the logits of `language` and, with weight `share`, of `other`."""

    def logits(tokens: Sequence[int]) -> NDArray[np.float32]:
        mixed = (1.0 - share) * language(tokens) + share * other(tokens)
        return mixed.astype(np.float32)

    return logits


class _Sleeper:
    """Sleeps for the given seconds per call, and records each call as a run of a device."""

    def __init__(
        self, seconds: Mapping[str, Seconds], trace: Trace | None, virtual: VirtualClock | None
    ) -> None:
        self._seconds, self._trace = seconds, trace
        self._clock = virtual or time.perf_counter
        self._sleep = time.sleep if virtual is None else virtual.sleep

    def __call__(self, name: str, rows: int) -> None:
        begin = self._clock()
        wait = self._seconds.get(name, 0.0)
        if wait := wait(rows) if callable(wait) else wait:
            self._sleep(wait)
        if self._trace is not None:
            self._trace.runs.append(Span(name, name, begin, self._clock()))


class ScriptedTarget:
    """A `Target` that follows `language`, with an exit head that follows `exit_language`."""

    def __init__(
        self,
        language: Language,
        exit_language: Language,
        vocabulary: int,
        context: int = 4096,
        seconds: Mapping[str, Seconds] | None = None,
        trace: Trace | None = None,
        virtual: VirtualClock | None = None,
    ) -> None:
        """`seconds` maps `prefill`, `prefix`, `exit` and `suffix` to their times.

        They pass on the clock `virtual`, or in real time without one.
        """
        self.context, self.vocabulary = context, vocabulary
        self._language, self._exit_language = language, exit_language
        self._sleep = _Sleeper(seconds or {}, trace, virtual)
        self._fed: list[int] = []
        self._rows = range(0)

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """See `Target.prefill`."""
        self._sleep("prefill", len(tokens))
        self._feed(tokens, start)
        return self._language(self._fed)[None]

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """See `Target.prefix`; the `width` has no effect."""
        del width
        self._sleep("prefix", len(window))
        self._feed(window, start)
        if candidates == 0:
            return None
        self._sleep("exit", len(window))
        return _best(self._exit_language, self.hidden(), candidates)

    def hidden(self) -> NDArray[Any]:
        """See `Target.hidden`: a row consists of all tokens up to its own."""
        rows = np.empty(len(self._rows), dtype=object)
        rows[:] = [self._fed[: end + 1] for end in self._rows]
        return rows

    def suffix(self) -> NDArray[np.float32]:
        """See `Target.suffix`."""
        self._sleep("suffix", len(self._rows))
        return np.stack([self._language(self._fed[: end + 1]) for end in self._rows])

    def likeliest(self) -> NDArray[np.int64]:
        """See `Target.likeliest`."""
        ids: NDArray[np.int64] = self.suffix().argmax(axis=-1)
        return ids

    def close(self) -> None:
        """Nothing to release."""

    def _feed(self, tokens: Sequence[int], start: int) -> None:
        if start > len(self._fed):
            raise ValueError(f"rows {len(self._fed)}..{start - 1} were never fed")
        self._fed[start:] = tokens
        self._rows = range(start, start + len(tokens))


class ScriptedExitHead:
    """An `ExitHead` for a scripted target, on another device."""

    def __init__(
        self,
        language: Language,
        seconds: Seconds = 0.0,
        trace: Trace | None = None,
        virtual: VirtualClock | None = None,
    ) -> None:
        """Follow `language`; a call takes `seconds` on the clock `virtual`, or in real time."""
        self._language = language
        self._sleep = _Sleeper({"draft exit": seconds}, trace, virtual)

    def signal(self, hidden: NDArray[Any], candidates: int) -> ExitSignal:
        """See `ExitHead.signal`."""
        self._sleep("draft exit", len(hidden))
        return _best(self._language, hidden, candidates)

    def close(self) -> None:
        """Nothing to release."""


def _best(language: Language, rows: Iterable[Sequence[int]], candidates: int) -> ExitSignal:
    logits = np.stack([language(row) for row in rows])
    logits = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :candidates]
    return ExitSignal(ids, np.take_along_axis(logits, ids, axis=-1).astype(np.float32))


class ScriptedDraft:
    """A `DraftGraph` that follows `language`, given exactly the tokens that each row sees.

    Stream k follows the k-th of `streams`: logits of the token k + 1 positions ahead.
    """

    def __init__(
        self,
        language: Language,
        vocabulary: int,
        context: int = 4096,
        branch_rows: int = 4096,
        seconds: Seconds = 0.0,
        trace: Trace | None = None,
        virtual: VirtualClock | None = None,
        streams: Sequence[Language] = (),
        named: int | None = None,
        main: int | None = None,
    ) -> None:
        """A forward takes `seconds` on the clock `virtual`, or in real time without one.

        Its logits are of the first `named` tokens; default: the vocabulary. The cache holds `main`
        rows of the text; default: the context.
        """
        self.context, self.vocabulary, self.named = context, vocabulary, named or vocabulary
        self.main, self.streams = main or context, len(streams)
        self.slots = self.main + branch_rows
        self.forwards = 0
        self._language, self._stream_languages = language, streams
        self._sleep = _Sleeper({"draft": seconds}, trace, virtual)
        self._tokens = np.full(self.slots, -1, dtype=np.int64)
        self._positions = np.full(self.slots, -1, dtype=np.int64)

    def forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
        streamed: NDArray[np.int64] | None = None,
        ahead: int = 0,
    ) -> NDArray[np.float32]:
        """See `DraftGraph.forward`.

        Tokens after the first few may have been dropped from the cache: the language is given -1
        for them.

        Raises:
            ValueError: if a row sees anything but one token for each position up to its own, if the
                rows and streams do not fit, or if a tree is fed into an empty cache.
        """
        end, of = start + len(tokens), () if streamed is None else streamed
        self._sleep("draft", len(tokens) + len(of) * ahead)
        self.forwards += 1
        if end + len(of) * ahead > self.slots:
            raise ValueError(f"{end} rows and {len(of)} x {ahead} streams do not fit")
        if start == 0 and (hidden is not None or ahead):
            raise ValueError("a tree or streams cannot be fed into an empty cache")
        self._tokens[start:end], self._positions[start:end] = tokens, positions
        # Later slots are invalid from here on, because streams may overwrite them.
        self._positions[end:] = -1
        logits = [self._language(self._seen(row, start, hidden)) for row in wanted]
        for row in of:
            seen = self._seen(row, start, hidden)
            logits += [language(seen) for language in self._stream_languages[:ahead]]
        return np.stack(logits)

    def stop(self) -> None:
        """See `DraftGraph.stop`: it does nothing."""

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        where = np.asarray(slots)
        for kept in (self._tokens, self._positions):
            kept[start : start + len(where)] = kept[where]

    def close(self) -> None:
        """Nothing to release."""

    def _seen(self, row: int, start: int, hidden: NDArray[np.bool_] | None) -> list[int]:
        slots = np.arange(start + row + 1)
        if hidden is not None:
            first = start + len(hidden) - hidden.shape[1]
            seen = np.concatenate([np.ones(first, dtype=np.bool_), ~hidden[row]])
            slots = slots[seen[: start + row + 1]]
        places, tokens = self._positions[slots], self._tokens[slots].tolist()
        dropped = max(0, int(places[-1]) + 1 - len(places))
        expected = np.arange(len(places))
        expected[FIRST:] += dropped
        if places.tolist() != expected.tolist():
            raise ValueError(f"row {row} sees positions {places.tolist()}")
        return [*tokens[:FIRST], *[-1] * dropped, *tokens[FIRST:]]
