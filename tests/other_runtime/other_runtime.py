# ruff: noqa: ARG002
"""Another package that adds kinds of devices: one that works, and two that need care."""

from __future__ import annotations

import os
import time

from mirror_edge.bundle import Bundle
from mirror_edge.devices import Device, Found
from mirror_edge.protocols import DraftGraph, ExitHead, Target
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.trace import Trace


class Abacus:
    """Counts as well as the CPU does."""

    name = "abacus"
    formats = ("onnx",)

    def devices(self) -> list[Found]:
        return [Found(self.name, "beads", "other-runtime", "1.0", "cpu", usable=True)]

    def draft_process(self, device: Device) -> bool:
        return False

    def open_target(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> Target:
        return cpu().open_target(bundle, Device("cpu"), threads, trace)

    def open_draft(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> DraftGraph:
        return cpu().open_draft(bundle, Device("cpu"), threads, trace)

    def open_exit(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> ExitHead:
        return cpu().open_exit(bundle, Device("cpu"), threads, trace)


class Aborting(Abacus):
    """Its driver ends the process."""

    name = "aborting"

    def open_target(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> Target:
        os.abort()


class Sleeping(Abacus):
    """Its driver never returns."""

    def devices(self) -> list[Found]:
        return []

    def open_target(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> Target:
        time.sleep(3600)
        raise AssertionError
