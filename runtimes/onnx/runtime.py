"""ONNX Runtime as a `Runtime`, one for each execution provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirror_edge.bundle import MANIFEST, digest
from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.onnx import providers
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.exit_head import OnnxExitHead
from mirror_edge.runtimes.onnx.fixed_draft import FixedDraft
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.runtimes.onnx.target import OnnxTarget

if TYPE_CHECKING:
    from mirror_edge.bundle import Bundle
    from mirror_edge.devices import Device, Found
    from mirror_edge.protocols import DraftGraph, ExitHead, Target
    from mirror_edge.runtimes.onnx.providers import Provider
    from mirror_edge.trace import Trace

__all__ = ["OnnxRuntime", "cpu", "cuda", "openvino", "qnn", "webgpu"]


class OnnxRuntime:
    """Opens graphs on the devices of one execution provider."""

    formats = ("onnx",)

    def __init__(self, provider: Provider = providers.CPU) -> None:
        """Use `provider`."""
        self._provider = provider

    def devices(self) -> list[Found]:
        """See `Runtime.devices`."""
        return self._provider.found()

    def draft_process(self, device: Device) -> bool:
        """See `Runtime.draft_process`: NPU drivers may abort or hang."""
        del device
        return self._provider.fixed_shapes

    def open_target(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> Target:
        """See `Runtime.open_target`."""
        setup = self._setup(bundle, device, threads, trace)
        if self._provider.fixed_shapes:
            raise DeviceError(
                f"device {str(device)!r}: supports fixed shapes only, which suits a draft. "
                "Choose another device for the target."
            )
        return OnnxTarget(bundle, setup)

    def open_draft(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> DraftGraph:
        """See `Runtime.open_draft`."""
        setup = self._setup(bundle, device, threads, trace)
        return (FixedDraft if self._provider.fixed_shapes else OnnxDraft)(bundle, setup)

    def open_exit(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> ExitHead:
        """See `Runtime.open_exit`."""
        if self._provider.fixed_shapes:
            raise DeviceError(
                f"device {str(device)!r}: supports fixed shapes only, and the exit head has "
                "dynamic ones. Keep it on the target's device."
            )
        return OnnxExitHead(bundle, self._setup(bundle, device, threads, trace), "draft exit")

    def _setup(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> Setup:
        place, known = self._provider.place(device), digest(bundle.folder / MANIFEST)
        return Setup(place, threads, device.cores, trace, known)


def cpu() -> OnnxRuntime:
    """The runtime of the CPU."""
    return OnnxRuntime(providers.CPU)


def webgpu() -> OnnxRuntime:
    """The runtime of GPUs from any vendor, through Direct3D 12, Metal or Vulkan."""
    return OnnxRuntime(providers.WEBGPU)


def cuda() -> OnnxRuntime:
    """The runtime of NVIDIA GPUs."""
    return OnnxRuntime(providers.CUDA)


def openvino() -> OnnxRuntime:
    """The runtime of Intel NPUs, GPUs and CPUs."""
    return OnnxRuntime(providers.OPENVINO)


def qnn() -> OnnxRuntime:
    """The runtime of Qualcomm NPUs."""
    return OnnxRuntime(providers.QNN)
