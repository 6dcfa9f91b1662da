"""A bundle's models on their devices: opened, ready to answer, and closed."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from importlib.metadata import version
from typing import get_args

from mirror_edge import bundle as bundles
from mirror_edge.answer import Decoder
from mirror_edge.devices import Device, runtime_for, usable_cores
from mirror_edge.errors import DeviceError
from mirror_edge.lanes import ThreadLane
from mirror_edge.ngram import NgramDrafter
from mirror_edge.policy import ExitPlace
from mirror_edge.process import ProcessDrafter
from mirror_edge.protocols import Drafter
from mirror_edge.rollout import ModelDrafter
from mirror_edge.threads import share
from mirror_edge.trace import Trace

__all__ = ["Pair"]

_log = logging.getLogger("mirror_edge")


class Pair:
    """A target and its drafters, each on its lane."""

    exit_heads: tuple[ExitPlace, ...] = ("target",)
    """The devices on which mode `auto` may run the exit head."""

    def __init__(
        self,
        bundle: bundles.Bundle,
        target_device: Device,
        draft_device: Device,
        target_threads: int | None,
        draft_threads: int | None,
        draft_process: bool | None,
    ) -> None:
        """Open the graphs; the arguments are those of `load`.

        Raises:
            DeviceError: for a device that cannot run the whole of a graph.
            OptionError: for threads that the devices do not have.
        """
        self.bundle = bundle
        spec = bundle.manifest
        threads = share(spec, target_device, draft_device, target_threads, draft_threads)
        self.trace = trace = Trace()
        runtimes = [runtime_for(device, spec.format) for device in (target_device, draft_device)]
        self._devices = list(zip(runtimes, (target_device, draft_device), strict=True))
        target = runtimes[0].open_target(bundle, target_device, threads.target, trace)
        self.drafters: dict[str, Drafter] = {"ngram": NgramDrafter()}
        self._draft_threads = threads.draft
        if spec.draft is not None:
            if draft_process is None:
                draft_process = runtimes[1].draft_process(draft_device)
            if draft_process:
                self.drafters["model"] = ProcessDrafter(
                    bundle.folder, draft_device, threads.draft, trace
                )
            else:
                graph = runtimes[1].open_draft(bundle, draft_device, threads.draft, trace)
                self.drafters["model"] = ModelDrafter(graph, clock=time.perf_counter)
        # Whether the draft runs on the target's processor, in this process.
        cores = target_device.cores or draft_device.cores
        shared = draft_device.kind == "cpu" and not cores and not draft_process
        with ExitStack() as undo:
            for drafter in self.drafters.values():
                undo.callback(drafter.close)
            lane = ThreadLane("target", trace, target_device.cores)
            undo.callback(lane.close)
            other = ThreadLane("draft", trace, draft_device.cores, shared=shared)
            undo.pop_all()
        self.decoder = Decoder(target=target, target_lane=lane, draft_lane=other, trace=trace)
        self._setup = {
            "threads": f"{threads.target} {threads.draft}",
            "process": str(draft_process),
            "cores": str(sorted(usable_cores())),
        }
        self.apart = spec.draft is not None and draft_device != target_device
        """Whether the draft has a device of its own."""
        if self.apart and not draft_process:
            try:
                self.open_exit_head()
                self.exit_heads = get_args(ExitPlace)
            except DeviceError as error:
                _log.info("the exit head stays on the target's device: %s", error)

    def open_exit_head(self) -> None:
        """Open a second exit head, on the draft's device, if there is none yet."""
        if self.decoder.exit_head is None:
            runtime, device = self._devices[1]
            self.decoder.exit_head = runtime.open_exit(
                self.bundle, device, self._draft_threads, self.trace
            )

    def key(self) -> dict[str, str]:
        """Everything that the costs depend on, since another version of anything may be faster."""
        drivers = [
            sorted(str(found) for found in runtime.devices() if found.name.startswith(device.kind))
            for runtime, device in self._devices
        ]
        return self._setup | {
            "bundle": bundles.digest(self.bundle.folder / bundles.MANIFEST),
            "devices": " ".join(str(device) for _, device in self._devices),
            "exit heads": "target draft" if self.decoder.exit_head else "target",
            "drivers": str(drivers),
            "version": version("mirror-edge"),
        }

    def end_lanes(self) -> None:
        """Let the queued calls finish and accept no others."""
        self.decoder.target_lane.close()
        self.decoder.draft_lane.close()

    def release(self) -> None:
        """End the lanes, then free the devices."""
        self.end_lanes()
        for drafter in self.drafters.values():
            drafter.close()
        if self.decoder.exit_head is not None:
            self.decoder.exit_head.close()
        self.drafters.clear()
        self.decoder.target.close()
