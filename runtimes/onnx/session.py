"""One ONNX Runtime session, fed and read through buffers that the caller owns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnxruntime as ort

from mirror_edge.errors import DeviceError
from mirror_edge.protocols import StoppedError
from mirror_edge.runtimes.onnx.compiled import compiled
from mirror_edge.runtimes.onnx.placement import nodes_on
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.runtimes.onnx.providers import Place

    Buffer: TypeAlias = NDArray[Any] | ort.OrtValue
    """Rows in this program's memory, or in the device's own."""

# ONNX Runtime's own log: errors only, they come as exceptions too.
_QUIET = 3
_SMALL = 4096
_LARGE = 1 << 20
"""Buffers of so many bytes in all are bound anew, not kept."""
_LASTS = 0.003
"""Seconds of a run from which on the next one can be stopped, which costs it some 25 µs."""
_SHAPES = 32
"""Shapes whose buffers are kept bound."""
_TYPES = {"tensor(int32)": "int32", "tensor(int64)": "int64"}


@dataclass(frozen=True)
class Setup:
    """What the sessions of a model have in common."""

    place: Place
    threads: int
    cores: tuple[int, ...]
    """Empty: any."""
    trace: Trace
    """Where runs are recorded."""
    bundle: str = ""
    """What the bundle is known by, for what is kept of it; empty: nothing is."""

    def options(self) -> ort.SessionOptions:
        """Fresh options of a session."""
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # A pool may spin while its own session runs, never against the next one.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads > 1 and self.cores:
            # The caller is the first of the threads; cores count from 1 in this option.
            each = [str(core + 1) for core in self.cores]
            own = each[1:] if len(each) == self.threads else [",".join(each)] * (self.threads - 1)
            options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(own))
        return options


class Bound:
    """The buffers of runs of one shape, bound once."""

    def __init__(self, session: ort.InferenceSession) -> None:
        """None yet."""
        self.binding = session.io_binding()
        self.buffers: dict[str, Buffer] = {}


class Session:
    """A graph on one device, with a thread pool of its own."""

    def __init__(
        self, graph: Path | bytes, setup: Setup, name: str, *, stoppable: bool = False
    ) -> None:
        """Load `graph`; its runs are recorded under `name`, and can be stopped if they last.

        Raises:
            DeviceError: if the provider refuses the graph or leaves a part of it to another.
        """
        self._name, self._trace, self._apart = name, setup.trace, setup.place.memory is not None
        provider, what = setup.place.provider, str(graph) if isinstance(graph, Path) else name
        done = None
        try:
            if provider.compiles and setup.bundle and isinstance(graph, Path):
                done = compiled(graph, setup)
            self._session = setup.place.open(graph if done is None else done[0], setup.options())
        except DeviceError:
            raise
        except Exception as error:
            raise DeviceError(f"{what}: {provider.name} refused the graph: {error}") from error
        nodes = nodes_on(self._session, provider.name, what) if done is None else done[1]
        self._trace.placed.setdefault(name, Counter())[provider.name] += nodes
        self._shapes: dict[tuple[tuple[int, ...], ...], Bound] = {}
        """By the shapes of the inputs; the one last used is the last."""
        self._lasting: dict[str, tuple[Buffer, bool]] = {}
        """Buffers that every run has, and whether they are outputs."""
        self._running: ort.RunOptions | None = None
        """Of the run under way, if it can be stopped."""
        self._stoppable, self._lasts = stoppable, False
        """Whether anybody stops runs, and whether the last one was worth it."""
        self._sent: dict[str, NDArray[Any]] = {}
        """Inputs that are copied to the device's own memory at every run."""

    def dtype(self, output: str) -> str:
        """Of an output, as numpy calls it."""
        (kind,) = (out.type for out in self._session.get_outputs() if out.name == output)
        return _TYPES[kind]

    def bind(self, name: str, buffer: Buffer, *, output: bool = False) -> None:
        """Bind a buffer for all runs to come, and hold on to it; the same again costs nothing.

        What it holds when the graph is run is what the graph reads.
        """
        known, _ = self._lasting.get(name, (None, output))
        if known is not buffer:
            self._lasting[name] = buffer, output
            self._shapes.clear()  # Shapes that are not run again would hold on to the one before.

    def stop(self) -> None:
        """Have the run under way, if it lasts, raise `StoppedError`; called from another thread."""
        if (running := self._running) is not None:
            running.terminate = True

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run on the given buffers, beside those bound for all runs.

        Raises:
            DeviceError: if ONNX Runtime fails.
            StoppedError: if it was told to `stop`.
        """
        bound = self._bound_for(inputs, outputs)
        buffers = bound.buffers
        for name, buffer in inputs.items():
            own = buffers.get(name)
            if own is buffer:
                continue
            if self._apart or buffer.nbytes > _SMALL:
                self._bind(bound, name, buffer)
            # A small input is copied into a buffer of its own: cheaper than binding anew.
            elif own is None or own.shape != buffer.shape:
                self._bind(bound, name, buffer.copy())
            else:
                own[...] = buffer
        for name, buffer in outputs.items():
            if buffers.get(name) is not buffer:
                self._bind(bound, name, buffer, output=True)
        begin = time.perf_counter()
        options = self._running = ort.RunOptions() if self._stoppable and self._lasts else None
        try:
            for name, buffer in self._sent.items():
                bound.binding.bind_cpu_input(name, buffer)
            self._session.run_with_iobinding(bound.binding, options)
        except Exception as error:
            if options is not None and options.terminate:
                raise StoppedError from None
            raise DeviceError(f"{self._name}: ONNX Runtime failed: {error}") from error
        finally:
            self._running = None
            end = time.perf_counter()
            self._lasts = end - begin > _LASTS
            sent, read = self._copied(outputs) if self._apart else (0, 0)
            self._trace.runs.append(Span(self._name, self._name, begin, end, sent, read))

    def call(self, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
        """Run without bindings: for graphs whose outputs grow. Raises DeviceError as `run`."""
        begin = time.perf_counter()
        try:
            results = self._session.run(outputs, dict(inputs))
        except Exception as error:
            raise DeviceError(f"{self._name}: ONNX Runtime failed: {error}") from error
        self._trace.runs.append(Span(self._name, self._name, begin, time.perf_counter()))
        return [np.asarray(result) for result in results]

    def unbind(self) -> None:
        """Let go of all buffers."""
        self._shapes.clear()
        self._lasting.clear()
        self._sent.clear()

    def _bound_for(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Bound:
        """What is bound for inputs of these shapes already."""
        shapes = () if self._apart else tuple([buffer.shape for buffer in inputs.values()])
        bound = self._shapes.pop(shapes, None)
        if bound is None:
            buffers = (*inputs.values(), *outputs.values())
            if not self._apart and sum(buffer.nbytes for buffer in buffers) >= _LARGE:
                shapes = ()
            bound = self._shapes.pop(shapes, None) or self._bound_for_all()
            if len(self._shapes) == _SHAPES:
                del self._shapes[next(iter(self._shapes))]
        self._shapes[shapes] = bound
        return bound

    def _bound_for_all(self) -> Bound:
        """What every run has."""
        bound = Bound(self._session)
        for name, (buffer, output) in self._lasting.items():
            self._bind(bound, name, buffer, output=output)
        return bound

    def _bind(self, bound: Bound, name: str, buffer: Buffer, *, output: bool = False) -> None:
        bound.buffers[name] = buffer
        binding = bound.binding
        if not isinstance(buffer, np.ndarray):
            (binding.bind_ortvalue_output if output else binding.bind_ortvalue_input)(name, buffer)
        elif output:
            address = buffer.__array_interface__["data"][0]
            binding.bind_output(name, "cpu", 0, buffer.dtype.type, buffer.shape, address)
        elif self._apart:
            self._sent[name] = buffer
        else:
            binding.bind_cpu_input(name, buffer)  # Not copied: the graph reads the buffer.

    def _copied(self, outputs: Mapping[str, Buffer]) -> tuple[int, int]:
        """Bytes of this run that went to the device's own memory, and that came back."""
        back = [buffer.nbytes for buffer in outputs.values() if isinstance(buffer, np.ndarray)]
        return sum(buffer.nbytes for buffer in self._sent.values()), sum(back)
