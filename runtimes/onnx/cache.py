"""The KV cache of one graph's layers, updated in place or grown by concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mirror_edge.errors import DeviceError

if TYPE_CHECKING:
    from mirror_edge.bundle import ModelSpec
    from mirror_edge.runtimes.onnx.memory import Memory
    from mirror_edge.runtimes.onnx.session import Buffer, Session

__all__ = ["Cache", "ConcatCache", "InPlaceCache", "open_cache"]

_FIRST_ROWS = 256
"""A cache starts with at most twice this many rows."""


class Cache(Protocol):
    """Holds the keys and values of a graph's layers between runs."""

    def run(
        self,
        start: int,
        inputs: dict[str, Buffer],
        outputs: dict[str, Buffer],
        rows: int,
    ) -> None:
        """Run the graph on `rows` rows at positions `start`…, overwriting earlier ones there."""
        ...


class InPlaceCache:
    """Buffers that the graph writes in place; their capacity doubles when they are full."""

    def __init__(
        self, session: Session, memory: Memory, model: ModelSpec, layers: range, limit: int
    ) -> None:
        """Allocate buffers for `layers`, which can grow to at least `limit` rows."""
        self._session, self._memory = session, memory
        self._capacity = limit
        while self._capacity > 2 * _FIRST_ROWS:
            self._capacity = -(-self._capacity // 2)
        shape = (1, model.kv_heads, self._capacity, model.head_size)
        names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
        self._bind({name: memory.zeros(shape, model.dtype) for name in names})
        self._seqlens = np.zeros(1, dtype=np.int32)
        self._total = np.zeros((), dtype=np.int32)
        session.bind("seqlens_k", self._seqlens)
        session.bind("total_sequence_length", self._total)

    def run(
        self,
        start: int,
        inputs: dict[str, Buffer],
        outputs: dict[str, Buffer],
        rows: int,
        width: int = 0,
    ) -> None:
        """See `Cache.run`. `width` is that of a padded attention bias; 0: it is not padded."""
        end = start + rows
        total = width or self.width(end)
        self._seqlens[0], self._total[()] = end - 1, total
        self._session.run(inputs, outputs)

    def width(self, slots: int, multiple: int = 1) -> int:
        """`slots` rounded up to a multiple of `multiple`, after making room for that many rows.

        The result never exceeds the capacity.
        """
        while slots > self._capacity:
            self._double()
        return min(-(-slots // multiple) * multiple, self._capacity)

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the rows in `slots` to slots `start`…."""
        if list(slots) == list(range(start, start + len(slots))):
            return
        self._bind({n: self._memory.move(b, slots, start) for n, b in self._buffers.items()})

    def _double(self) -> None:
        rows = 2 * self._capacity
        try:
            doubled = {name: self._memory.double(b) for name, b in self._buffers.items()}
        except Exception as error:  # Every device has its own for this.
            raise DeviceError(
                f"there is no memory for a KV cache of {rows:,} rows ({error}). Close other "
                "programs, or load with a shorter --context."
            ) from error
        self._bind(doubled)
        self._capacity = rows

    def _bind(self, buffers: dict[str, Buffer]) -> None:
        """Use these buffers from now on; the earlier ones stay in use until all of them exist."""
        self._buffers = buffers
        for name, buffer in buffers.items():
            self._session.bind(f"past_key_values.{name}", buffer)
            self._session.bind(f"present.{name}", buffer, output=True)


class ConcatCache:
    """A cache that every run returns longer; rows from `start` on are cut off before it."""

    def __init__(self, session: Session, model: ModelSpec, layers: range) -> None:
        """Start with an empty cache for `layers`."""
        self._session = session
        self._names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
        empty = np.zeros((1, model.kv_heads, 0, model.head_size), dtype=model.dtype)
        self._rows = dict.fromkeys(self._names, empty)

    def run(
        self,
        start: int,
        inputs: dict[str, Buffer],
        outputs: dict[str, Buffer],
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


def open_cache(
    session: Session, memory: Memory, model: ModelSpec, layers: range, limit: int
) -> Cache:
    """The kind of cache that this model's graphs were exported for."""
    if model.cache == "in_place":
        return InPlaceCache(session, memory, model, layers, limit)
    return ConcatCache(session, model, layers)
