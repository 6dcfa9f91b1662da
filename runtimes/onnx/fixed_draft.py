"""The draft on a device that runs fixed shapes only: padded rows, and a KV cache on the host.

Each graph takes the whole cache as input and returns the new rows, which are stored in it here.
Padding comes after the rows and no row sees it, so it changes no result.
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

_MASKED = np.float32(-3e4)
"""Added to an attention score to make its weight zero, in 16-bit floats too."""
_NONE = np.zeros(0, dtype=np.int64)


class Piece(NamedTuple):
    """Rows `first`..`last` - 1 of a forward, which go through a graph together."""

    first: int
    last: int
    streamed: NDArray[np.int64]
    """Its rows with streams, as indices within the piece."""


class FixedDraft:
    """A `DraftGraph` over the two fixed graphs of a bundle's draft."""

    def __init__(self, bundle: Bundle, setup: Setup) -> None:
        """Load the graphs.

        Raises:
            DeviceError: if the bundle has no such graphs, or the device refuses them.
        """
        spec = bundle.manifest.draft
        assert spec is not None
        if spec.fixed is None:
            raise DeviceError(
                f"{bundle.folder}: has no draft with fixed shapes, and device "
                f"{setup.place.provider.kind} supports no other. Export with --draft-for "
                f"{setup.place.provider.kind}."
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
        self._rollout.bind_logits(spec.named)

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
        """See `DraftGraph.forward`. Rows that do not fit a graph go through it in several runs."""
        streamed = _NONE if streamed is None else streamed
        logits = [np.empty((0, self.named), dtype=np.float32)]
        guesses: list[NDArray[np.float32]] = []
        leading = min([len(tokens), *wanted[:1].tolist(), *streamed[:1].tolist()])
        for first, last, own in self._pieces(len(tokens), leading, streamed):
            graph = self._prefill if last <= leading else self._rollout
            graph.run(
                tokens[first:last],
                positions[first:last],
                start + first,
                None if hidden is None else _within(hidden, first, last),
                own,
            )
            if last > leading:
                here = wanted[(wanted >= first) & (wanted < last)] - first
                logits.append(graph.logits[here])
                guesses.append(graph.stream_logits(len(own), ahead).copy())
        return np.concatenate([*logits, *guesses])

    def stop(self) -> None:
        """See `DraftGraph.stop`: it does nothing, because forwards on an NPU are short."""

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        self._cache.move(slots, start)

    def close(self) -> None:
        """Release the sessions."""
        del self._prefill, self._rollout

    def _pieces(self, rows: int, leading: int, streamed: NDArray[np.int64]) -> Iterator[Piece]:
        """Split `rows` rows into runs of a graph; no logits are wanted of the first `leading`."""
        first = 0
        while first < rows:
            graph, end = (self._prefill, leading) if first < leading else (self._rollout, rows)
            last = min(end, first + graph.rows)
            own = streamed[(streamed >= first) & (streamed < last)]
            if len(own) > graph.streamed:
                last = int(own[graph.streamed])
                own = own[: graph.streamed]
            yield Piece(first, last, own - first)
            first = last


def _within(hidden: NDArray[np.bool_], first: int, last: int) -> NDArray[np.bool_]:
    """The part of `hidden` for rows `first`..`last` - 1, up to the last of their own slots."""
    return hidden[first:last, : hidden.shape[1] - (len(hidden) - last)]


class _Cache:
    """Keys [1, heads, size, slots] and values [1, heads, slots, size] of every layer."""

    def __init__(self, model: ModelSpec, slots: int) -> None:
        heads, size = model.kv_heads, model.head_size
        self.slots, self.layers = slots, model.layers
        self.keys = np.zeros((model.layers, 1, heads, size, slots), dtype=np.float32)
        self.values = np.zeros((model.layers, 1, heads, slots, size), dtype=np.float32)

    def store(
        self, start: int, keys: NDArray[np.float32], values: NDArray[np.float32], rows: int
    ) -> None:
        """Store the first `rows` new rows in slots `start`…."""
        self.keys[..., start : start + rows] = keys[..., :rows]
        self.values[..., start : start + rows, :] = values[..., :rows, :]

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the rows in `slots` to slots `start`…."""
        end = start + len(slots)
        if list(slots) != list(range(start, end)):
            self.keys[..., start:end] = self.keys[..., slots]
            self.values[..., start:end, :] = self.values[..., slots, :]


class _Graph:
    """One of the two graphs, with its padded inputs and outputs bound."""

    def __init__(
        self, session: Session, cache: _Cache, rows: int, streamed: int, streams: int
    ) -> None:
        """Bind buffers for `rows` rows, `streamed` of which have `streams` streams each."""
        self.rows, self.streamed, self._streams = rows, streamed, streams
        self._session, self._cache = session, cache
        extra, slots = streamed * streams, cache.slots
        self._tokens = np.zeros((1, rows), dtype=np.int32)
        self._positions = np.zeros((1, rows), dtype=np.int32)
        self._mask = np.full((rows, slots + rows), _MASKED)
        self._causal = np.triu(np.full((rows, rows), _MASKED), 1)
        self._common = 0
        """All rows see all slots before this one."""
        self._start = 0
        """Rows may see the slots before this one."""
        session.bind("input_ids", self._tokens)
        session.bind("position_ids", self._positions)
        session.bind("mask", self._mask[None, None])
        if extra:
            self._streamed = np.zeros(streamed, dtype=np.int32)
            self._all_positions = np.zeros((1, rows + extra), dtype=np.int32)
            self._all_mask = np.full((rows + extra, slots + rows + extra), _MASKED)
            # A stream sees itself and the earlier streams of its row.
            own = self._all_mask[rows:, slots + rows :]
            place = np.arange(extra)
            same = place[:, None] // streams == place // streams
            own[same & (place <= place[:, None])] = 0
            session.bind("streamed", self._streamed)
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

    def bind_logits(self, named: int) -> None:
        """Bind the logits of `named` tokens, an output of the rollout graph only."""
        rows = self.rows + self.streamed * self._streams
        self.logits = np.empty((rows, named), dtype=np.float32)
        self._session.bind("logits", self.logits[None], output=True)

    def stream_logits(self, count: int, ahead: int) -> NDArray[np.float32]:
        """[count * ahead, named]: logits of the first `ahead` streams of `count` streamed rows."""
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
        """Feed rows into slots `start`…; `hidden` is as in `DraftGraph.forward`."""
        rows = len(tokens)
        self._tokens[0, :rows], self._tokens[0, rows:] = tokens, 0
        self._positions[0, :rows], self._positions[0, rows:] = positions, 0
        self._write_mask(rows, start, hidden)
        if self.streamed:
            self._write_streams(streamed)
        self._session.run({}, {})
        self._cache.store(start, self._keys, self._values, rows)

    def _write_mask(self, rows: int, start: int, hidden: NDArray[np.bool_] | None) -> None:
        """Write the mask: the slots before `start`, then the fed rows themselves."""
        mask, fed = self._mask, self._mask[:, self._cache.slots :]
        mask[:, self._common : self._start] = 0
        mask[:, self._start : start] = 0
        mask[:, start : self._start] = _MASKED
        fed[:] = self._causal
        self._common = self._start = start
        if hidden is not None:
            before = hidden.shape[1] - rows
            self._common -= before
            mask[:rows, self._common : start][hidden[:, :before]] = _MASKED
            fed[:rows, :rows][hidden[:, before:]] = _MASKED

    def _write_streams(self, streamed: NDArray[np.int64]) -> None:
        """Write the inputs for streams: each stream sees what its row sees."""
        mask, count, each = self._all_mask, len(streamed), self._streams
        seen = self._mask.shape[1]
        mask[: self.rows, :seen] = self._mask
        ahead = mask[self.rows :, :seen]
        ahead[count * each :] = _MASKED
        ahead[: count * each] = np.repeat(self._mask[streamed], each, axis=0)
        self._streamed[:count], self._streamed[count:] = streamed, 0
        places = self._all_positions[0]
        places[: self.rows] = self._positions[0]
        after = self._positions[0, streamed][:, None] + np.arange(1, each + 1)
        places[self.rows :] = 0
        places[self.rows : self.rows + count * each] = after.ravel()
