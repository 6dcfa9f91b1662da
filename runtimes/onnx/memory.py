"""Buffers and KV caches where the graphs use them: in host memory, or in the device's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime as ort

from mirror_edge.runtimes.onnx import kernels
from mirror_edge.runtimes.onnx.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.runtimes.onnx.session import Buffer, Setup

__all__ = ["Memory", "Rows", "Scratch", "open_memory"]

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_KEPT_ROWS = 64
"""`Rows` drops its buffers of more rows whenever it allocates another one."""


class Memory(Protocol):
    """Allocates buffers, and changes KV caches [1, heads, C, size]."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A buffer of zeros."""
        ...

    def double(self, cache: Buffer) -> Buffer:
        """A cache with the rows of `cache` and twice its capacity."""
        ...

    def move(self, cache: Buffer, slots: Sequence[int], start: int) -> Buffer:
        """The cache with its rows in `slots` copied to `start`…; possibly another buffer."""
        ...

    def host(self, rows: Buffer) -> NDArray[Any]:
        """A copy of `rows` [1, n, width] in host memory."""
        ...

    def likeliest(self, logits: Buffer) -> NDArray[np.int64]:
        """[n]: the likeliest token of each row of `logits` [1, n, V]."""
        ...


class HostMemory:
    """Host memory, in numpy arrays."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """See `Memory.zeros`."""
        return np.zeros(shape, dtype)

    def double(self, cache: NDArray[Any]) -> NDArray[Any]:
        """See `Memory.double`."""
        one, heads, rows, size = cache.shape
        doubled = np.zeros((one, heads, 2 * rows, size), cache.dtype)
        doubled[:, :, :rows] = cache
        return doubled

    def move(self, cache: NDArray[Any], slots: Sequence[int], start: int) -> NDArray[Any]:
        """See `Memory.move`."""
        cache[:, :, start : start + len(slots)] = cache[:, :, np.asarray(slots)]
        return cache

    def host(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See `Memory.host`."""
        return rows.copy()

    def likeliest(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """See `Memory.likeliest`."""
        ids: NDArray[np.int64] = logits[0].argmax(axis=-1)
        return ids


class DeviceMemory:
    """A device's own memory, accessible only to graphs that run on it."""

    def __init__(self, setup: Setup) -> None:
        """Use the memory of the setup's device."""
        self._setup = setup
        self._kernels: dict[bytes, Session] = {}

    def zeros(self, shape: tuple[int, ...], dtype: str) -> ort.OrtValue:
        """See `Memory.zeros`."""
        there = self._empty(shape, dtype)
        there.update_inplace(np.zeros(shape, dtype))
        return there

    def double(self, cache: ort.OrtValue) -> ort.OrtValue:
        """See `Memory.double`."""
        dtype, (one, heads, rows, size) = _TYPES[cache.data_type()], cache.shape()
        doubled = self._empty((one, heads, 2 * rows, size), dtype)
        self._run(kernels.double(dtype), {"rows": cache}, {"doubled": doubled})
        return doubled

    def move(self, cache: ort.OrtValue, slots: Sequence[int], start: int) -> ort.OrtValue:
        """See `Memory.move`."""
        dtype, shape = _TYPES[cache.data_type()], tuple(cache.shape())
        order = np.arange(shape[2])
        order[start : start + len(slots)] = slots
        moved = self._empty(shape, dtype)
        self._run(kernels.pick(dtype), {"rows": cache, "slots": order}, {"picked": moved})
        return moved

    def host(self, rows: ort.OrtValue) -> NDArray[Any]:
        """See `Memory.host`."""
        dtype = _TYPES[rows.data_type()]
        copied = np.empty(rows.shape(), dtype)
        self._run(kernels.copy(dtype), {"rows": rows}, {"copied": copied}, "prefix")
        return copied

    def likeliest(self, logits: ort.OrtValue) -> NDArray[np.int64]:
        """See `Memory.likeliest`."""
        ids = np.empty(logits.shape()[:2], dtype=np.int64)
        # This waits for the device to finish, so it counts as part of the suffix.
        self._run(kernels.likeliest(), {"logits": logits}, {"ids": ids}, "suffix")
        return ids.reshape(-1)

    def _empty(self, shape: tuple[int, ...], dtype: str) -> ort.OrtValue:
        kind, info = np.dtype(dtype).type, self._setup.place.memory
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, memory_info=info)

    def _run(
        self,
        graph: bytes,
        inputs: dict[str, Buffer],
        outputs: dict[str, Buffer],
        name: str = "cache",
    ) -> None:
        """Run a kernel without keeping references to its buffers."""
        if graph not in self._kernels:
            self._kernels[graph] = Session(graph, self._setup, name)
        self._kernels[graph].run(inputs, outputs)
        self._kernels[graph].unbind()


def open_memory(setup: Setup) -> Memory:
    """The memory that graphs on the setup's device use."""
    return HostMemory() if setup.place.memory is None else DeviceMemory(setup)


class Rows:
    """Buffers passed from graph to graph, kept between runs so that they are bound only once."""

    def __init__(self, memory: Memory, width: int, dtype: str) -> None:
        """Allocate rows of `width` entries."""
        self._memory, self._width, self._dtype = memory, width, dtype
        self._buffers: dict[int, Buffer] = {}

    def rows(self, count: int) -> Buffer:
        """[1, count, width]: the same buffer for the same count, unless it exceeds `_KEPT_ROWS`."""
        if count not in self._buffers:
            for large in [kept for kept in self._buffers if kept > _KEPT_ROWS]:
                del self._buffers[large]
            self._buffers[count] = self._memory.zeros((1, count, self._width), self._dtype)
        return self._buffers[count]


class Scratch:
    """One host buffer kept between runs, so that its pages are faulted in only once."""

    def __init__(self, width: int) -> None:
        """Provide rows of `width` float32 values."""
        self._width = width
        self._buffer = np.empty(0, dtype=np.float32)
        self._views: dict[int, NDArray[np.float32]] = {}

    def rows(self, count: int) -> NDArray[np.float32]:
        """[1, count, width], the same object for the same count until a larger one is needed."""
        size = count * self._width
        if size > self._buffer.size:
            self._buffer = np.empty(2 * size, dtype=np.float32)
            self._views.clear()
        if count not in self._views:
            self._views[count] = self._buffer[:size].reshape(1, count, self._width)
        return self._views[count]
