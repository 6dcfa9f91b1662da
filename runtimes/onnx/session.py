"""ONNX Runtime sessions whose inputs and outputs are buffers owned by the caller."""

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
    """A buffer in host memory, or in the device's own."""

__all__ = ["Session", "Setup"]

_ERRORS_ONLY = 3
"""Severity level of ONNX Runtime's log."""
_SMALL = 4096
"""Inputs of at most this many bytes are copied into a bound buffer."""
_LARGE = 1 << 20
"""Runs with this many bytes of buffers in total share one binding, whatever their shapes."""
_LONG = 0.003
"""After a run of more than this many seconds the next can be stopped, at a cost of about 25 µs."""
_SHAPES = 32
"""Number of input shapes whose buffers are kept bound."""
_TYPES = {"tensor(int32)": "int32", "tensor(int64)": "int64"}


@dataclass(frozen=True)
class Setup:
    """What all sessions of a model share."""

    place: Place
    threads: int
    cores: tuple[int, ...]
    """The cores its threads may use; empty: any."""
    trace: Trace
    """Where runs are recorded."""
    bundle: str = ""
    """The bundle's digest, under which compiled graphs are stored; empty: they are not stored."""

    def options(self) -> ort.SessionOptions:
        """New options for a session."""
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # A thread pool may spin while its session runs, but not while the next session does.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads > 1 and self.cores:
            # The calling thread is the first of them; this option numbers cores from 1.
            each = [str(core + 1) for core in self.cores]
            own = each[1:] if len(each) == self.threads else [",".join(each)] * (self.threads - 1)
            options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(own))
        return options


class Bound:
    """A binding, and the buffers bound in it."""

    def __init__(self, session: ort.InferenceSession) -> None:
        """Start without buffers."""
        self.binding = session.io_binding()
        self.buffers: dict[str, Buffer] = {}


class Session:
    """A graph on one device, with its own thread pool."""

    def __init__(
        self, graph: Path | bytes, setup: Setup, name: str, *, stoppable: bool = False
    ) -> None:
        """Load `graph`; its runs are recorded under `name`.

        If it is `stoppable`, `stop` can end any run that follows a long one.

        Raises:
            DeviceError: if the provider refuses the graph or leaves part of it to another.
        """
        self._name, self._trace = name, setup.trace
        self._own_memory = setup.place.memory is not None
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
        """Bindings by the shapes of the inputs, the most recently used last."""
        self._always: dict[str, tuple[Buffer, bool]] = {}
        """Buffers bound for all runs, and whether they are outputs."""
        self._running: ort.RunOptions | None = None
        """Options of the current run, if it can be stopped."""
        self._stoppable = stoppable
        self._long = False
        """Whether the last run took longer than `_LONG`."""
        self._sent: dict[str, NDArray[Any]] = {}
        """Host inputs, which every run copies to the device's own memory."""

    def dtype(self, output: str) -> str:
        """The numpy name of an integer output's type."""
        (kind,) = (out.type for out in self._session.get_outputs() if out.name == output)
        return _TYPES[kind]

    def bind(self, name: str, buffer: Buffer, *, output: bool = False) -> None:
        """Bind a buffer for all later runs; binding the same one again costs nothing.

        A run reads what the buffer holds at that time.
        """
        known, _ = self._always.get(name, (None, output))
        if known is not buffer:
            self._always[name] = buffer, output
            self._shapes.clear()  # Other bindings would keep the previous buffer alive.

    def stop(self) -> None:
        """Make the current run, if it can be stopped, raise `StoppedError`; from any thread."""
        if (running := self._running) is not None:
            running.terminate = True

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run on the given buffers and those bound for all runs.

        Raises:
            DeviceError: if ONNX Runtime fails.
            StoppedError: if `stop` was called.
        """
        bound = self._bound_for(inputs, outputs)
        buffers = bound.buffers
        for name, buffer in inputs.items():
            own = buffers.get(name)
            if own is buffer:
                continue
            if self._own_memory or buffer.nbytes > _SMALL:
                self._bind(bound, name, buffer)
            # Copying a small input into the bound buffer is cheaper than binding it again.
            elif own is None or own.shape != buffer.shape:
                self._bind(bound, name, buffer.copy())
            else:
                own[...] = buffer
        for name, buffer in outputs.items():
            if buffers.get(name) is not buffer:
                self._bind(bound, name, buffer, output=True)
        begin = time.perf_counter()
        options = self._running = ort.RunOptions() if self._stoppable and self._long else None
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
            self._long = end - begin > _LONG
            sent, read = self._copied(outputs) if self._own_memory else (0, 0)
            self._trace.runs.append(Span(self._name, self._name, begin, end, sent, read))

    def call(self, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
        """Run without bindings, for graphs whose outputs grow.

        Raises:
            DeviceError: if ONNX Runtime fails.
        """
        begin = time.perf_counter()
        try:
            results = self._session.run(outputs, dict(inputs))
        except Exception as error:
            raise DeviceError(f"{self._name}: ONNX Runtime failed: {error}") from error
        self._trace.runs.append(Span(self._name, self._name, begin, time.perf_counter()))
        return [np.asarray(result) for result in results]

    def unbind(self) -> None:
        """Release all buffers."""
        self._shapes.clear()
        self._always.clear()
        self._sent.clear()

    def _bound_for(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Bound:
        """The binding for buffers of these shapes: an existing one if there is one."""
        shapes = () if self._own_memory else tuple([buffer.shape for buffer in inputs.values()])
        bound = self._shapes.pop(shapes, None)
        if bound is None:
            buffers = (*inputs.values(), *outputs.values())
            if not self._own_memory and sum(buffer.nbytes for buffer in buffers) >= _LARGE:
                shapes = ()
            bound = self._shapes.pop(shapes, None) or self._bound_for_all()
            if len(self._shapes) == _SHAPES:
                del self._shapes[next(iter(self._shapes))]
        self._shapes[shapes] = bound
        return bound

    def _bound_for_all(self) -> Bound:
        """A new binding with the buffers bound for all runs."""
        bound = Bound(self._session)
        for name, (buffer, output) in self._always.items():
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
        elif self._own_memory:
            self._sent[name] = buffer
        else:
            binding.bind_cpu_input(name, buffer)  # Not copied: the graph reads the buffer itself.

    def _copied(self, outputs: Mapping[str, Buffer]) -> tuple[int, int]:
        """Bytes that this run copied to the device's own memory, and back."""
        back = [buffer.nbytes for buffer in outputs.values() if isinstance(buffer, np.ndarray)]
        return sum(buffer.nbytes for buffer in self._sent.values()), sum(back)
