"""Where Core ML plans to run the operators of a package: macOS only, never run by us."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.coreml.library import coremltools
from mirror_edge.runtimes.coreml.program import UNITS, refuse_unit

__all__ = ["placement"]

_DEVICES = {"CPU": "cpu", "GPU": "gpu", "NeuralEngine": "ane"}


def placement(package: Path, unit: str) -> dict[str, dict[str, int]]:
    """The number of operators per device for each function of `package`, by `MLComputePlan`.

    Raises:
        DeviceError: outside macOS, or if Core ML has no plan.
        MissingExtraError: if coremltools is not installed.
    """
    refuse_unit(unit)
    tools = coremltools()
    try:
        compiled = tools.models.utils.compile_model(str(package))
        plan = tools.models.compute_plan.MLComputePlan.load_from_path(
            path=str(compiled), compute_units=tools.ComputeUnit[UNITS[unit]]
        )
        functions = plan.model_structure.program.functions
        return {name: _counted(plan, function) for name, function in functions.items()}
    except Exception as error:
        raise DeviceError(f"{package}: Core ML has no plan for it: {error}") from error


def _counted(plan: Any, function: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for operation in function.block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:  # Constants run nowhere.
            name = type(usage.preferred_compute_device).__name__
            device = name.removeprefix("ML").removesuffix("ComputeDevice")
            counts[_DEVICES.get(device, device)] += 1
    return dict(counts)
