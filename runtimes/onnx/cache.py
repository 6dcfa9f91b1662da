"""KV caches of the layers of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import ModelSpec
    from mirror_edge.runtimes.onnx.session import Session

_FIRST_ROWS = 256


class Cache(Protocol):
    """Keeps the keys and values of a graph's layers between runs."""

    def run(
        self,
        start: int,
        inputs: dict[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        rows: int,
    ) -> None:
        """Run the graph on `rows` rows fed at positions `start`…, whatever stood there."""
        ...


class InPlaceCache:
    """Fixed buffers that the graph writes in place; they double when they are full."""

    def __init__(self, session: Session, model: ModelSpec, layers: range, limit: int) -> None:
        """Buffers for `layers`, growing up to `limit` rows."""
        self._session, self._model, self._layers, self._limit = session, model, layers, limit
        self._buffers: dict[str, NDArray[Any]] = {}
        self._capacity = 0
        self._seqlens = np.zeros(1, dtype=np.int32)
        self._total = np.zeros((), dtype=np.int32)
        session.bind("seqlens_k", self._seqlens)
        session.bind("total_sequence_length", self._total)

    def run(
        self,
        start: int,
        inputs: dict[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        rows: int,
        passing: int = 0,
    ) -> None:
        """See `Cache.run`. Behind the rows the graph writes so many `passing` ones, not kept."""
        total = start + rows
        if total + passing > self._capacity:
            self._grow(total + passing)
        self._seqlens[0], self._total[()] = total - 1, total
        self._session.run(inputs, outputs)

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the rows in `slots` to `start`…."""
        if list(slots) == list(range(start, start + len(slots))):
            return
        index = np.asarray(slots)
        for buffer in self._buffers.values():
            buffer[:, :, start : start + len(index)] = buffer[:, :, index]

    def _grow(self, rows: int) -> None:
        self._capacity = max(self._capacity, min(_FIRST_ROWS, self._limit))
        while self._capacity < rows:
            self._capacity = min(2 * self._capacity, max(self._limit, rows))
        shape = (1, self._model.kv_heads, self._capacity, self._model.head_size)
        for layer in self._layers:
            for part in ("key", "value"):
                buffer = np.zeros(shape, dtype=self._model.dtype)
                old = self._buffers.get(f"{layer}.{part}")
                if old is not None:
                    buffer[:, :, : old.shape[2]] = old
                self._buffers[f"{layer}.{part}"] = buffer
                self._session.bind(f"past_key_values.{layer}.{part}", buffer)
                self._session.bind(f"present.{layer}.{part}", buffer, output=True)


class ConcatCache:
    """For graphs that return a longer cache each time: rows taken back are cut off."""

    def __init__(self, session: Session, model: ModelSpec, layers: range) -> None:
        """An empty cache for `layers`."""
        self._session = session
        self._names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
        empty = np.zeros((1, model.kv_heads, 0, model.head_size), dtype=model.dtype)
        self._rows = dict.fromkeys(self._names, empty)

    def run(
        self,
        start: int,
        inputs: dict[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        rows: int,
    ) -> None:
        """See `Cache.run`."""
        feeds = dict(inputs, attention_mask=np.ones((1, start + rows), dtype=np.int64))
        for name, past in self._rows.items():
            feeds[f"past_key_values.{name}"] = np.ascontiguousarray(past[:, :, :start])
        names = list(outputs)
        results = self._session.call(feeds, names + [f"present.{name}" for name in self._names])
        for name, result in zip(names, results, strict=False):
            outputs[name][...] = result
        self._rows = dict(zip(self._names, results[len(names) :], strict=True))


def open_cache(session: Session, model: ModelSpec, layers: range, limit: int) -> Cache:
    """The cache that a graph of this model was exported for."""
    if model.cache == "in_place":
        return InPlaceCache(session, model, layers, limit)
    return ConcatCache(session, model, layers)
