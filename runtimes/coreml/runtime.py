"""Core ML as a `Runtime`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from mirror_edge.devices import Found
from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.coreml.draft import CoreMLDraft
from mirror_edge.runtimes.coreml.exit_head import CoreMLExitHead
from mirror_edge.runtimes.coreml.program import EVALUATOR, refuse_unit
from mirror_edge.runtimes.coreml.target import CoreMLTarget

if TYPE_CHECKING:
    from mirror_edge.bundle import Bundle
    from mirror_edge.devices import Device
    from mirror_edge.trace import Trace

__all__ = ["CoreMLRuntime"]


class CoreMLRuntime:
    """Opens packages on Apple devices: by default target on GPU, draft on Neural Engine."""

    formats = ("coreml",)

    def devices(self) -> list[Found]:
        """See `Runtime.devices`."""
        kind, name, package = "coreml", "Core ML", "coremltools"
        try:
            refuse_unit("gpu")
        except DeviceError as error:
            return [Found(kind, name, package, formats=("coreml",), note=str(error))]
        return [
            Found(
                f"{kind}:{unit}",
                name,
                package,
                version(package),
                type,
                formats=("coreml",),
                usable=True,
            )
            for unit, type in (("gpu", "gpu"), ("ane", "npu"), ("cpu", "cpu"))
        ]

    def draft_process(self, device: Device) -> bool:
        """See `Runtime.draft_process`: Core ML is not known to release the GIL."""
        return device.unit != EVALUATOR

    def open_target(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,  # noqa: ARG002
        trace: Trace,
    ) -> CoreMLTarget:
        """See `Runtime.open_target`; Core ML manages its own threads."""
        return CoreMLTarget(bundle, _unit(device, "gpu"), trace)

    def open_draft(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,  # noqa: ARG002
        trace: Trace,
    ) -> CoreMLDraft:
        """See `Runtime.open_draft`."""
        return CoreMLDraft(bundle, _unit(device, "ane"), trace)

    def open_exit(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,  # noqa: ARG002
        trace: Trace,
    ) -> CoreMLExitHead:
        """See `Runtime.open_exit`."""
        return CoreMLExitHead(bundle, _unit(device, "ane"), trace, "draft exit")


def _unit(device: Device, default: str) -> str:
    """The compute unit that `device` names; see `refuse_unit`."""
    unit = device.unit or default
    refuse_unit(unit)
    return unit
