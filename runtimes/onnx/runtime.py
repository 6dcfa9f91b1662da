"""The ONNX Runtime as a `Runtime`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.target import OnnxTarget

if TYPE_CHECKING:
    from mirror_edge.bundle import Bundle
    from mirror_edge.devices import Device
    from mirror_edge.trace import Trace


class OnnxRuntime:
    """Opens graphs on ONNX Runtime's CPU provider."""

    formats = ("onnx",)

    def draft_process(self, device: Device) -> bool:
        """See `Runtime.draft_process`: the CPU provider is safe, and releases the GIL."""
        del device
        return False

    def open_target(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> OnnxTarget:
        """See `Runtime.open_target`."""
        return OnnxTarget(bundle, device, threads, trace)

    def open_draft(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> OnnxDraft:
        """See `Runtime.open_draft`."""
        return OnnxDraft(bundle, device, threads, trace)
