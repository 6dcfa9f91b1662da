"""Devices by name, and the runtimes that drive them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, Protocol

from mirror_edge.errors import DeviceError

if TYPE_CHECKING:
    from mirror_edge.bundle import Bundle, Format
    from mirror_edge.protocols import DraftGraph, ExitHead, Target
    from mirror_edge.trace import Trace

__all__ = [
    "Device",
    "Found",
    "Role",
    "Runtime",
    "all_devices",
    "runtime_for",
    "usable_cores",
]

_ENTRY_POINTS = "mirror_edge.runtimes"

Role = Literal["target", "draft"]

_HINTS: dict[Format, str] = {
    "onnx": "use cpu, or export with --format coreml",
    "coreml": "use coreml:gpu and coreml:ane, or export with --format onnx",
}


@dataclass(frozen=True)
class Device:
    """Where to run a graph: a kind, and cores (``cpu:0-3``) or a unit of it (``coreml:gpu``).

    Without a unit the runtime chooses one.
    """

    kind: str
    cores: tuple[int, ...] = ()
    unit: str = ""

    @classmethod
    def parse(cls, text: str) -> Device:
        """``cpu``, ``cpu:0``, ``cpu:0-3`` or ``cpu:0,2``; other kinds by name or ``kind:unit``.

        Raises:
            DeviceError: for cores that are not numbers or that this process cannot use.
        """
        kind, _, detail = text.partition(":")
        if kind != "cpu" or not detail:
            return cls(kind, unit=detail)
        if not hasattr(os, "sched_setaffinity"):
            raise DeviceError(
                f"device {text!r}: this system cannot confine threads to cores. Write cpu."
            )
        cores: list[int] = []
        try:
            for part in detail.split(","):
                first, dash, last = part.partition("-")
                named = range(int(first), int(last if dash else first) + 1)
                if not named:
                    raise ValueError
                cores += named
        except ValueError:
            raise DeviceError(
                f"device {text!r}: {detail!r} names no cores. Write cpu:0, cpu:0-3 or cpu:0,2."
            ) from None
        if absent := sorted(set(cores) - usable_cores()):
            raise DeviceError(
                f"device {text!r}: this process cannot use core {absent[0]}; "
                f"it has {', '.join(map(str, sorted(usable_cores())))}."
            )
        return cls(kind, tuple(dict.fromkeys(cores)))

    def __str__(self) -> str:
        """As `parse` reads it."""
        detail = ",".join(map(str, self.cores)) or self.unit
        return f"{self.kind}:{detail}" if detail else self.kind


@dataclass(frozen=True)
class Found:
    """A device of this machine, or the reason why there is none of a kind."""

    name: str
    """As `Device.parse` takes it."""
    provider: str
    """What drives it."""
    package: str
    version: str = ""
    type: str = ""
    """npu, gpu or cpu."""
    vendor: str = ""
    memory: str = ""
    """Size of its own memory, if known."""
    formats: tuple[Format, ...] = ("onnx",)
    """Formats of the bundles that it runs."""
    roles: tuple[Role, ...] = ("target", "draft")
    """What it can be used for."""
    usable: bool = False
    emulated: bool = False
    """Whether it only emulates a real one, for tests."""
    driver: str = ""
    """What else the system reports about it."""
    note: str = ""
    """What is missing, or what to know about it."""


class Runtime(Protocol):
    """Opens the graphs of a bundle on one kind of device; found by entry point."""

    formats: Collection[str]
    """Formats of the bundles that it runs; see `Manifest.format`."""

    def devices(self) -> list[Found]:
        """The devices of this kind; if there are none, one entry that says how to get one."""
        ...

    def draft_process(self, device: Device) -> bool:
        """Whether a draft on `device` should run in a child process.

        That is so for drivers that may abort, hang, or hold the GIL while they compute.
        """
        ...

    def open_target(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> Target:
        """The bundle's target on `device`."""
        ...

    def open_draft(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> DraftGraph:
        """The bundle's draft on `device`."""
        ...

    def open_exit(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> ExitHead:
        """The target's exit head on `device`, the draft's device.

        Raises:
            DeviceError: if it cannot run there.
        """
        ...


def runtime_for(device: Device, format: Format) -> Runtime:
    """The runtime registered for this kind of device.

    Raises:
        DeviceError: for a kind without a runtime, or one whose runtime does not run this format.
    """
    found = {point.name: point for point in entry_points(group=_ENTRY_POINTS)}
    if device.kind not in found:
        raise DeviceError(
            f"unknown device {device.kind!r}; choose one of {', '.join(sorted(found))}."
        )
    runtime: Runtime = found[device.kind].load()()
    if format not in runtime.formats:
        raise DeviceError(
            f"device {str(device)!r} runs {' and '.join(runtime.formats)} graphs, and this "
            f"bundle's are {format}; {_HINTS[format]}."
        )
    return runtime


def all_devices() -> list[Found]:
    """The devices of all registered kinds, and the reasons why others are missing."""
    points = sorted(entry_points(group=_ENTRY_POINTS), key=lambda point: point.name)
    return [found for point in points for found in point.load()().devices()]


def usable_cores() -> frozenset[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
