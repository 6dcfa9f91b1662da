"""One function of a Core ML package, on a device or in the evaluator."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.coreml.library import coremltools
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EVALUATOR", "UNITS", "Program", "Traced", "open_program", "refuse_unit"]

UNITS = {"gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "cpu": "CPU_ONLY", "all": "ALL"}
"""coremltools' compute units by device name."""
EVALUATOR = "evaluator"
"""Not a device: numpy runs the programs, slowly, on any system."""


class Program(Protocol):
    """A function that can be run; the caller holds its state, if it has one."""

    def make_state(self) -> Any:
        """A state of zeros."""
        ...

    def predict(
        self, inputs: Mapping[str, NDArray[Any]], state: Any = None
    ) -> dict[str, NDArray[Any]]:
        """Run once; `state` is updated in place."""
        ...


def refuse_unit(unit: str) -> None:
    """Check that this system has the device ``coreml:unit``.

    Raises:
        DeviceError: if it does not, naming what can be used instead.
    """
    if unit == EVALUATOR:
        return
    if unit not in UNITS:
        known = ", ".join(f"coreml:{name}" for name in (*UNITS, EVALUATOR))
        raise DeviceError(f"unknown device 'coreml:{unit}'; choose one of {known}.")
    if sys.platform != "darwin":
        raise DeviceError(
            f"device 'coreml:{unit}' needs macOS, and this is {platform.system()}; "
            f"coreml:{EVALUATOR} runs the same programs with numpy, for tests."
        )


def open_program(package: Path, function: str, unit: str) -> Program:
    """`function` of `package` on `unit`, one of `UNITS` or `EVALUATOR`.

    Raises:
        DeviceError: if the function cannot be loaded there.
        MissingExtraError: if coremltools is not installed.
    """
    if unit == EVALUATOR:
        from mirror_edge.runtimes.mil import Evaluator

        return Evaluator(package, function)
    return _Native(package, function, unit)


class _Native:
    """A function on an Apple device, through coremltools."""

    def __init__(self, package: Path, function: str, unit: str) -> None:
        tools = coremltools()
        units = tools.ComputeUnit[UNITS[unit]]
        try:
            self._model = tools.models.MLModel(
                str(package), compute_units=units, function_name=function
            )
        except Exception as error:
            raise DeviceError(f"{package}: Core ML refused {function}: {error}") from error
        self._name = f"{package}: {function}"

    def make_state(self) -> Any:
        return self._model.make_state()

    def predict(
        self, inputs: Mapping[str, NDArray[Any]], state: Any = None
    ) -> dict[str, NDArray[Any]]:
        try:
            found: dict[str, NDArray[Any]] = self._model.predict(dict(inputs), state=state)
        except Exception as error:
            raise DeviceError(f"{self._name}: Core ML failed: {error}") from error
        return found


class Traced:
    """A program whose runs are recorded."""

    def __init__(self, program: Program, name: str, trace: Trace) -> None:
        """Record the runs of `program` in `trace` under `name`."""
        self._program, self._name, self._trace = program, name, trace

    def make_state(self) -> Any:
        """See `Program.make_state`."""
        return self._program.make_state()

    def predict(
        self, inputs: Mapping[str, NDArray[Any]], state: Any = None
    ) -> dict[str, NDArray[Any]]:
        """See `Program.predict`."""
        begin = time.perf_counter()
        outputs = self._program.predict(inputs, state)
        self._trace.runs.append(Span(self._name, self._name, begin, time.perf_counter()))
        return outputs
