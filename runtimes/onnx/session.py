"""One ONNX Runtime session, fed and read through buffers that the caller owns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from mirror_edge.errors import DeviceError
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

# ONNX Runtime's own log: errors only, they come as exceptions too.
_QUIET = 3
_SMALL = 4096


class Session:
    """A graph on the CPU provider, with a thread pool of its own."""

    def __init__(
        self, path: Path, threads: int, cores: tuple[int, ...], name: str, trace: Trace
    ) -> None:
        """Load `path`; runs are recorded in `trace` under `name`.

        Raises:
            DeviceError: if ONNX Runtime refuses the graph, with its reason.
        """
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A pool may spin while its own session runs, never against the next one.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads > 1 and cores:
            # The caller is the first of the threads; cores count from 1 in this option.
            each = [str(core + 1) for core in cores]
            own = each[1:] if len(each) == threads else [",".join(each)] * (threads - 1)
            others = ";".join(own)
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise DeviceError(f"{path}: the CPU provider refused the graph: {error}") from error
        self._binding = self._session.io_binding()
        self._name, self._trace = name, trace
        self._bound: dict[str, NDArray[Any]] = {}

    def bind(self, name: str, buffer: NDArray[Any], *, output: bool = False) -> None:
        """Bind a buffer and hold on to it; the same one again costs nothing."""
        if self._bound.get(name) is buffer:
            return
        self._bound[name] = buffer
        if output:
            address = buffer.__array_interface__["data"][0]
            kind, shape = buffer.dtype.type, buffer.shape
            self._binding.bind_output(name, "cpu", 0, kind, shape, address)
        else:
            self._binding.bind_cpu_input(name, buffer)  # Not copied: the graph reads the buffer.

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
        """Bind the given buffers beside those bound before, and run."""
        for name, buffer in inputs.items():
            if buffer.nbytes > _SMALL:
                self.bind(name, buffer)
                continue
            # A small input is copied into a buffer of its own: cheaper than binding anew.
            own = self._bound.get(name)
            if own is None or own.shape != buffer.shape:
                self.bind(name, buffer.copy())
            else:
                own[...] = buffer
        for name, buffer in outputs.items():
            self.bind(name, buffer, output=True)
        begin = time.perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise DeviceError(f"{self._name}: ONNX Runtime failed: {error}") from error
        self._trace.runs.append(Span(self._name, self._name, begin, time.perf_counter()))

    def call(self, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
        """Run without bindings: for graphs whose outputs grow."""
        begin = time.perf_counter()
        results = self._session.run(outputs, dict(inputs))
        self._trace.runs.append(Span(self._name, self._name, begin, time.perf_counter()))
        return [np.asarray(result) for result in results]


class Scratch:
    """One output buffer that is kept between runs, so that its pages are faulted in once."""

    def __init__(self, width: int) -> None:
        """Rows of `width` float32."""
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
