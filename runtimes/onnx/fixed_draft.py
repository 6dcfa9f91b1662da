"""The draft on a device that runs fixed shapes only: padded rows, and a cache kept on the host.

The graphs are given the whole cache and hand out the new rows, which are put where they belong
here. Padding stands behind the rows, and none of them sees it, so it changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.onnx.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle, ModelSpec
    from mirror_edge.runtimes.onnx.session import Setup

__all__ = ["FixedDraft"]

_UNSEEN = np.float32(-3e4)
"""Added to a score: its weight is zero then, in 16-bit floats too."""
_NONE = np.zeros(0, dtype=np.int64)


class Piece(NamedTuple):
    """Rows `first`..`last` - 1 of a forward, that go through a graph together."""

    first: int
    last: int
    streamed: NDArray[np.int64]
    """Those that have streams, counted within the piece."""


class FixedDraft:
    """A `DraftGraph` over the two fixed graphs of a bundle's draft."""

    def __init__(self, bundle: Bundle, setup: Setup) -> None:
        """Load the graphs.

        Raises:
            DeviceError: if the bundle has none, or the device refuses them.
        """
        spec = bundle.manifest.draft
        assert spec is not None
        if spec.fixed is None:
            raise DeviceError(
                f"{bundle.folder}: has no draft of fixed shapes, and {setup.place.provider.kind} "
                f"runs no other. Export with --draft-for {setup.place.provider.kind}."
            )
        model, fixed = spec.model, spec.fixed
        self.context, self.vocabulary, self.named = model.context, model.vocabulary, spec.named
        self.main, self.slots, self.streams = fixed.context, fixed.slots, spec.streams
        self._cache = _Cache(model, fixed.slots)

        def graph(file: str, rows: int, streamed: int) -> _Graph:
            session = Session(bundle.file(file), setup, "draft")
            return _Graph(session, self._cache, rows, streamed, spec.streams)

        self._prefill = graph(fixed.prefill, fixed.chunk, 0)
        self._rollout = graph(fixed.rollout, fixed.rows, fixed.streamed)
        self._rollout.give_logits(spec.named)

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
        """See `DraftGraph.forward`. More rows than a graph takes go through it in turn."""
        streamed = _NONE if streamed is None else streamed
        logits = [np.empty((0, self.named), dtype=np.float32)]
        guesses: list[NDArray[np.float32]] = []
        silent = min([len(tokens), *wanted[:1].tolist(), *streamed[:1].tolist()])
        for first, last, own in self._pieces(len(tokens), silent, streamed):
            graph = self._prefill if last <= silent else self._rollout
            graph.run(
                tokens[first:last],
                positions[first:last],
                start + first,
                None if hidden is None else _within(hidden, first, last),
                own,
            )
            if last > silent:
                here = wanted[(wanted >= first) & (wanted < last)] - first
                logits.append(graph.logits[here])
                guesses.append(graph.stream_logits(len(own), ahead).copy())
        return np.concatenate([*logits, *guesses])

    def stop(self) -> None:
        """See `DraftGraph.stop`: a forward is short on an NPU, and ends."""

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        self._cache.move(slots, start)

    def close(self) -> None:
        """Release the sessions."""
        del self._prefill, self._rollout

    def _pieces(self, rows: int, silent: int, streamed: NDArray[np.int64]) -> Iterator[Piece]:
        """What goes through a graph together; the first `silent` rows have no logits to give."""
        first = 0
        while first < rows:
            graph, end = (self._prefill, silent) if first < silent else (self._rollout, rows)
            last = min(end, first + graph.rows)
            own = streamed[(streamed >= first) & (streamed < last)]
            if len(own) > graph.streamed:
                last = int(own[graph.streamed])
                own = own[: graph.streamed]
            yield Piece(first, last, own - first)
            first = last


def _within(hidden: NDArray[np.bool_], first: int, last: int) -> NDArray[np.bool_]:
    """The part of `hidden` that is about the rows `first`..`last` - 1: the slots up to theirs."""
    return hidden[first:last, : hidden.shape[1] - (len(hidden) - last)]


class _Cache:
    """Keys [1, heads, size, slots] and values [1, heads, slots, size] of every layer."""

    def __init__(self, model: ModelSpec, slots: int) -> None:
        heads, size = model.kv_heads, model.head_size
        self.slots, self.layers = slots, model.layers
        self.keys = np.zeros((model.layers, 1, heads, size, slots), dtype=np.float32)
        self.values = np.zeros((model.layers, 1, heads, slots, size), dtype=np.float32)

    def take(
        self, start: int, keys: NDArray[np.float32], values: NDArray[np.float32], rows: int
    ) -> None:
        """Keep the first `rows` of new rows in the slots `start`…."""
        self.keys[..., start : start + rows] = keys[..., :rows]
        self.values[..., start : start + rows, :] = values[..., :rows, :]

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the rows in `slots` to `start`…."""
        end = start + len(slots)
        if list(slots) != list(range(start, end)):
            self.keys[..., start:end] = self.keys[..., slots]
            self.values[..., start:end, :] = self.values[..., slots, :]


class _Graph:
    """One of the graphs, with its padded inputs and outputs bound."""

    def __init__(
        self, session: Session, cache: _Cache, rows: int, streamed: int, streams: int
    ) -> None:
        """`rows` rows, `streamed` of which have `streams` streams each."""
        self.rows, self.streamed, self._streams = rows, streamed, streams
        self._session, self._cache = session, cache
        extra, slots = streamed * streams, cache.slots
        self._tokens = np.zeros((1, rows), dtype=np.int32)
        self._positions = np.zeros((1, rows), dtype=np.int32)
        self._mask = np.full((rows, slots + rows), _UNSEEN)
        self._causal = np.triu(np.full((rows, rows), _UNSEEN), 1)
        self._clean = self._start = 0
        """Up to where all rows see all slots, and up to where they may."""
        session.bind("input_ids", self._tokens)
        session.bind("position_ids", self._positions)
        session.bind("mask", self._mask[None, None])
        if extra:
            self._of = np.zeros(streamed, dtype=np.int32)
            self._all_positions = np.zeros((1, rows + extra), dtype=np.int32)
            self._all_mask = np.full((rows + extra, slots + rows + extra), _UNSEEN)
            # A stream sees itself and the streams of its row before it.
            own = self._all_mask[rows:, slots + rows :]
            place = np.arange(extra)
            same = place[:, None] // streams == place // streams
            own[same & (place <= place[:, None])] = 0
            session.bind("streamed", self._of)
            session.bind("stream_position_ids", self._all_positions)
            session.bind("stream_mask", self._all_mask[None, None])
        self._keys = np.empty((*cache.keys.shape[:-1], rows), dtype=np.float32)
        self._values = np.empty(
            (*cache.values.shape[:-2], rows, cache.values.shape[-1]), dtype=np.float32
        )
        for layer in range(cache.layers):
            session.bind(f"past_key_values.{layer}.key", cache.keys[layer])
            session.bind(f"past_key_values.{layer}.value", cache.values[layer])
            session.bind(f"present.{layer}.key", self._keys[layer], output=True)
            session.bind(f"present.{layer}.value", self._values[layer], output=True)

    def give_logits(self, named: int) -> None:
        """Bind the logits, which only the graph for rollouts has."""
        rows = self.rows + self.streamed * self._streams
        self.logits = np.empty((rows, named), dtype=np.float32)
        self._session.bind("logits", self.logits[None], output=True)

    def stream_logits(self, count: int, ahead: int) -> NDArray[np.float32]:
        """Of the first `ahead` streams of the first `count` rows that have any."""
        streams = self.logits[self.rows : self.rows + count * self._streams]
        each = streams.reshape(count, self._streams, streams.shape[1])[:, :ahead]
        return each.reshape(count * ahead, streams.shape[1])

    def run(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        streamed: NDArray[np.int64],
    ) -> None:
        """Feed rows into the slots `start`…; `hidden` as in `DraftGraph.forward`."""
        rows = len(tokens)
        self._tokens[0, :rows], self._tokens[0, rows:] = tokens, 0
        self._positions[0, :rows], self._positions[0, rows:] = positions, 0
        self._look(rows, start, hidden)
        if self.streamed:
            self._look_ahead(streamed)
        self._session.run({}, {})
        self._cache.take(start, self._keys, self._values, rows)

    def _look(self, rows: int, start: int, hidden: NDArray[np.bool_] | None) -> None:
        """Write the mask: what stands in the slots before `start`, then the rows themselves."""
        mask, fed = self._mask, self._mask[:, self._cache.slots :]
        mask[:, self._clean : self._start] = 0
        mask[:, self._start : start] = 0
        mask[:, start : self._start] = _UNSEEN
        fed[:] = self._causal
        self._clean = self._start = start
        if hidden is not None:
            before = hidden.shape[1] - rows
            self._clean -= before
            mask[:rows, self._clean : start][hidden[:, :before]] = _UNSEEN
            fed[:rows, :rows][hidden[:, before:]] = _UNSEEN

    def _look_ahead(self, streamed: NDArray[np.int64]) -> None:
        """Write what the rows of the top layers see: the streams what their row sees."""
        mask, count, each = self._all_mask, len(streamed), self._streams
        seen = self._mask.shape[1]
        mask[: self.rows, :seen] = self._mask
        ahead = mask[self.rows :, :seen]
        ahead[count * each :] = _UNSEEN
        ahead[: count * each] = np.repeat(self._mask[streamed], each, axis=0)
        self._of[:count], self._of[count:] = streamed, 0
        places = self._all_positions[0]
        places[: self.rows] = self._positions[0]
        behind = self._positions[0, streamed][:, None] + np.arange(1, each + 1)
        places[self.rows :] = 0
        places[self.rows : self.rows + count * each] = behind.ravel()
