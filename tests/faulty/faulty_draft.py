"""A runtime of another package: the CPU's, whose draft misbehaves as it is told.

The JSON file that the environment variable FAULTY_DRAFT names holds a list, and each process takes
its first entry out: a fault, and the forward at which it begins (0: while the draft is opened).
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np

from mirror_edge.devices import Device, runtime_for
from mirror_edge.errors import DeviceError

CPU = Device("cpu")


class Runtime:
    formats = ("onnx",)

    def __init__(self) -> None:
        self._cpu = runtime_for(CPU, "onnx")

    def devices(self) -> list[Any]:
        return []

    def draft_process(self, device: Device) -> bool:
        return device.kind == "faulty"

    def open_target(self, bundle: Any, device: Device, threads: int, trace: Any) -> Any:
        del device
        return self._cpu.open_target(bundle, CPU, threads, trace)

    def open_draft(self, bundle: Any, device: Device, threads: int, trace: Any) -> Any:
        del device
        return FaultyDraft(self._cpu.open_draft(bundle, CPU, threads, trace))

    def open_exit(self, bundle: Any, device: Device, threads: int, trace: Any) -> Any:
        del device
        return self._cpu.open_exit(bundle, CPU, threads, trace)


class FaultyDraft:
    def __init__(self, graph: Any) -> None:
        self._graph = graph
        path = Path(os.environ["FAULTY_DRAFT"])
        (self._fault, self._at), *others = json.loads(path.read_text()) or [("", -1)]
        path.write_text(json.dumps(others))
        self._forwards = 0
        self.misbehave()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def misbehave(self) -> None:
        if self._forwards == self._at:
            getattr(self, self._fault)()

    def forward(self, *args: Any, **others: Any) -> Any:
        self._forwards += 1
        self.misbehave()
        return self._graph.forward(*args, **others)

    def refuse(self) -> None:
        raise DeviceError("faulty: this device is on strike.")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        raise RuntimeError("the driver went away")

    def chatter(self) -> None:
        """Drivers print; the program's output must not have it."""
        os.write(1, b"driver 1.0 ready\n")

    def hang(self) -> None:
        time.sleep(60)

    def babble(self) -> None:
        """Write garbage to whatever socket there is."""
        for descriptor in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.write(descriptor, os.urandom(512))
            except OSError:
                continue

    def guess(self) -> None:
        """From here on every logit is random."""
        draw, graph = np.random.default_rng(), self._graph

        def forward(*args: Any, **others: Any) -> Any:
            return draw.standard_normal(graph.forward(*args, **others).shape, dtype=np.float32)

        self.forward = forward  # type: ignore[method-assign]
