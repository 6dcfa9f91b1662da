"""Execution providers of ONNX Runtime, and their devices."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnxruntime as ort

from mirror_edge import kept
from mirror_edge.devices import Device, Found
from mirror_edge.errors import DeviceError, MissingExtraError

__all__ = ["CPU", "CUDA", "OPENVINO", "QNN", "WEBGPU", "Place", "Provider"]


@dataclass(frozen=True)
class Provider:
    """One execution provider and how it is used here."""

    kind: str
    """The kind of its devices, as in ``--target-device``."""
    name: str
    """Its name in ONNX Runtime."""
    package: str = "onnxruntime"
    """The distribution that contains it."""
    plugin: str = ""
    """The module that locates its library; empty if it is built into onnxruntime."""
    types: tuple[str, ...] = ("cpu",)
    """Types of the devices it is used for (npu, gpu, cpu), best first."""
    emulates: bool = False
    """Whether its device of type cpu emulates the real one, for tests."""
    install: str = ""
    """The command that installs the package."""
    driver: str = ""
    """What the machine needs besides the package, as a sentence."""
    own_memory: bool = False
    """Whether buffers stay in the device's own memory between runs."""
    fixed_shapes: bool = False
    """Whether it runs only graphs with fixed shapes."""
    compiles: bool = False
    """Whether it compiles graphs into a form that can be stored."""
    options: Callable[[ort.OrtEpDevice], Mapping[str, str]] = field(default=lambda _: {})
    """Its options for a device."""

    @property
    def version(self) -> str:
        """The version of the package; empty if it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""

    def identity(self, device: ort.OrtEpDevice) -> str:
        """A string that identifies this device and its driver."""
        known = device.device
        return f"{known.vendor_id:04x}:{known.device_id:04x} {sorted(known.metadata.items())}"

    def found(self) -> list[Found]:
        """The available devices; if there are none, one entry that says how to get one."""
        try:
            devices = self._devices()
        except (DeviceError, MissingExtraError) as error:
            return [Found(self.kind, self.name, self.package, note=str(error))]
        alone = len(devices) == 1
        return [
            self._found(self.kind if alone else f"{self.kind}:{which}", device)
            for which, device in devices.items()
        ]

    def place(self, device: Device) -> Place:
        """The named device; without a unit, the first one.

        Raises:
            DeviceError: if there is no such device.
            MissingExtraError: if its package is not installed.
        """
        devices = self._devices()
        which = device.unit or next(iter(devices))
        if which not in devices:
            there = ", ".join(f"{self.kind}:{name}" for name in devices)
            raise DeviceError(
                f"device {str(device)!r}: this machine has none; choose one of {there}."
            )
        return Place(self, devices[which])

    def _devices(self) -> dict[str, ort.OrtEpDevice]:
        """The devices by unit, the part after the colon.

        A unit is a number or, for a provider of several types, the type and a number (gpu, gpu1).

        Raises:
            DeviceError: if there is no device.
            MissingExtraError: if its package is not installed.
        """
        self._register()
        named: dict[str, ort.OrtEpDevice] = {}
        for wanted in dict.fromkeys([*self.types, "cpu"] if self.emulates else self.types):
            alike = [
                device
                for device in ort.get_ep_devices()
                if device.ep_name == self.name
                and device.device.type.name.lower() == wanted
                and device.device.metadata.get("is_virtual") != "1"
            ]
            for number, device in enumerate(alike):
                name = f"{wanted}{number or ''}" if len(self.types) > 1 else str(len(named))
                named[name] = device
        if not named:
            raise DeviceError(
                f"device {self.kind!r}: {self.name} finds no device on this machine. {self.driver}"
            )
        return named

    def _register(self) -> None:
        """Make the provider's devices known to ONNX Runtime."""
        missing = MissingExtraError(
            f"device {self.kind!r}: needs the package {self.package}: {self.install}"
        )
        if not self.plugin:
            if self.name not in ort.get_available_providers():
                raise missing
            return
        try:
            library = importlib.import_module(self.plugin).get_library_path()
        except ImportError:
            raise missing from None
        _register(self.name, library)

    def _found(self, name: str, device: ort.OrtEpDevice) -> Found:
        kind = device.device.type.name.lower()
        emulation = self.emulates and kind not in self.types
        return Found(
            name=name,
            provider=self.name,
            package=self.package,
            version=self.version,
            type=kind,
            vendor=device.device.vendor,
            memory=_memory(device),
            roles=("draft",) if self.fixed_shapes else ("target", "draft"),
            usable=True,
            emulated=emulation,
            driver=self.identity(device),
            note="emulated on the CPU: for tests" if emulation else "",
        )


@dataclass(frozen=True)
class Place:
    """A device of a provider, where sessions can be opened."""

    provider: Provider
    device: ort.OrtEpDevice

    def open(self, graph: Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        """A session of `graph` on this device, without fallback to another provider."""
        names = [CPU.name]
        if self.provider is not CPU:
            names = []
            own = dict(self.provider.options(self.device))
            options.add_provider_for_devices([self.device], own)
        return ort.InferenceSession(graph, options, providers=names, enable_fallback=0)

    @property
    def memory(self) -> Any:
        """ONNX Runtime's description of the device's own memory; None: buffers are on the host."""
        if not self.provider.own_memory:
            return None
        return self.device.memory_info(ort.OrtDeviceMemoryType.DEFAULT)


@cache
def _register(provider: str, library: str) -> None:
    """Register a library once per process: ONNX Runtime refuses a second time."""
    _keep_shaders()
    try:
        ort.register_execution_provider_library(provider, library)
    except Exception as error:
        raise DeviceError(f"{library}: ONNX Runtime cannot load it: {error}") from error


def _keep_shaders() -> None:
    """Have drivers on Linux store compiled shaders in this program's cache folder."""
    if sys.platform != "linux":
        return
    try:
        place = kept.folder() / "shaders"
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    for variable in ("MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH"):
        os.environ.setdefault(variable, str(place))


def _memory(device: ort.OrtEpDevice) -> str:
    """The size of the device's own memory as the system reports it; empty if unknown."""
    return str(device.device.metadata.get("DxgiVideoMemory", ""))


CPU = Provider("cpu", "CPUExecutionProvider")
WEBGPU = Provider(
    "webgpu",
    "WebGpuExecutionProvider",
    package="onnxruntime-ep-webgpu",
    plugin="onnxruntime_ep_webgpu",
    types=("gpu",),
    emulates=True,
    install="pip install 'mirror-edge[webgpu]'",
    driver="It needs a driver for Direct3D 12, Metal or Vulkan.",
    own_memory=True,
    # Needed to cast the candidates' ids from 64 to 32 bits.
    options=lambda _: {"enableInt64": "1"},
)
CUDA = Provider(
    "cuda",
    "CUDAExecutionProvider",
    package="onnxruntime-gpu",
    types=("gpu",),
    install="pip uninstall onnxruntime && pip install onnxruntime-gpu",
    driver="It needs an NVIDIA driver, CUDA 13 and cuDNN 9.",
    own_memory=True,
)
OPENVINO = Provider(
    "openvino",
    "OpenVINOExecutionProvider",
    package="onnxruntime-ep-openvino",
    plugin="onnxruntime_ep_openvino",
    types=("npu", "gpu", "cpu"),
    install="pip install 'mirror-edge[openvino]'",
    driver="It needs an Intel processor with its NPU or GPU driver.",
    fixed_shapes=True,
)


def _qnn(device: ort.OrtEpDevice) -> dict[str, str]:
    backend = importlib.import_module("onnxruntime_qnn").get_qnn_htp_path()
    options = {"backend_path": backend, "enable_htp_fp16_precision": "1"}
    if device.device.type == ort.OrtHardwareDeviceType.NPU:
        return options | {"htp_performance_mode": "burst"}
    # The emulated NPU must be of a generation that computes in 16-bit floats.
    return options | {"soc_model": "60", "htp_arch": "73"}


QNN = Provider(
    "qnn",
    "QNNExecutionProvider",
    package="onnxruntime-qnn",
    plugin="onnxruntime_qnn",
    types=("npu",),
    emulates=True,
    install="pip install 'mirror-edge[qnn]'",
    driver="It needs a Qualcomm processor with its NPU driver.",
    fixed_shapes=True,
    compiles=True,
    options=_qnn,
)
