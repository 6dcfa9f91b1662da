"""Probing a device: a few steps of a bundle on it, in a child process, compared with the CPU.

A driver may abort the process or never return, so a device is not used before it was probed.
``python -m mirror_edge.probe DEVICE ROLE BUNDLE FILE`` is the child.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge import bundle as bundles
from mirror_edge.devices import Device, Role, runtime_for
from mirror_edge.errors import MirrorEdgeError
from mirror_edge.interpreter import command, environment
from mirror_edge.threads import share
from mirror_edge.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle

    Forward = Callable[[], NDArray[np.float32]]
    """A step: the logits of a few rows after a short text."""

__all__ = ["Probe", "probe"]

_PATIENCE = 600.0
"""Seconds for a whole probe; the first run on a device may compile for minutes."""
_REFERENCE = {"onnx": "cpu", "coreml": "coreml:evaluator"}
"""What a device is compared with, by bundle format."""
_FED, _WINDOW, _STEPS = 40, 4, 5


@dataclass(frozen=True)
class Probe:
    """The result of a probe. Times are in seconds."""

    device: str
    role: Role
    failure: str = ""
    """Why it failed; empty if it did not."""
    load: float = 0.0
    first: float = 0.0
    """The first run, including compilation."""
    step: float = 0.0
    """A window of four rows through the target, or four rows through the draft."""
    error: float = 0.0
    """The largest difference of a logit from the CPU's, in standard deviations of the CPU's."""
    placed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many nodes of each graph ran on which provider."""


def probe(device: str, role: Role, bundle: Path, patience: float = _PATIENCE) -> Probe:
    """Probe a device in a child process; whatever goes wrong there is reported in the result.

    Raises:
        DeviceError: if this program cannot start a child.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "probe.json"
        try:
            done = subprocess.run(
                command("mirror_edge.probe", device, role, str(bundle), str(report)),
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Probe(device, role, f"hung: killed after {patience:.0f} s")
        if not report.exists():
            return Probe(device, role, _ending(done))
        return Probe(device, role, **json.loads(report.read_text(encoding="utf-8")))


def _ending(done: subprocess.CompletedProcess[bytes]) -> str:
    """How a child ended that wrote no result."""
    errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = f": {errors[-1]}" if errors else ""
    if done.returncode < 0:
        return f"crashed with {signal.Signals(-done.returncode).name}{last}"
    return f"ended with code {done.returncode}{last}"


def _try(device: Device, role: Role, bundle: Bundle) -> Probe:
    """The child's part: time the steps and compare their logits."""
    trace, began = Trace(), time.perf_counter()
    forward = _opened(device, role, bundle, trace)
    loaded = time.perf_counter()
    found = forward().copy()
    first = time.perf_counter() - loaded
    times = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        forward()
        times.append(time.perf_counter() - start)
    reference = Device.parse(_REFERENCE[bundle.manifest.format])
    expected = _opened(reference, role, bundle, Trace())()
    return Probe(
        str(device),
        role,
        load=loaded - began,
        first=first,
        step=statistics.median(times),
        error=float(np.abs(found - expected).max() / expected.std()),
        placed={graph: dict(nodes) for graph, nodes in trace.placed.items()},
    )


def _opened(device: Device, role: Role, bundle: Bundle, trace: Trace) -> Forward:
    """The step of a target or a draft on `device`, after a prompt that it has read."""
    runtime = runtime_for(device, bundle.manifest.format)
    shares = share(bundle.manifest, device, device, None, None)
    threads = shares.target if role == "target" else shares.draft
    if role == "target":
        target = runtime.open_target(bundle, device, threads, trace)
        tokens = _text(target.vocabulary)
        target.prefill(tokens[:_FED], 0)

        def window() -> NDArray[np.float32]:
            target.prefix(tokens[_FED:], _FED, 2)
            return target.suffix()

        return window
    draft = runtime.open_draft(bundle, device, threads, trace)
    ids = np.array(_text(draft.vocabulary))
    draft.forward(ids[:_FED], np.arange(_FED), 0, None, np.array([_FED - 1]))
    siblings = ~np.eye(_WINDOW, dtype=np.bool_)

    def tree() -> NDArray[np.float32]:
        places = np.full(_WINDOW, _FED)
        return draft.forward(ids[_FED:], places, _FED, siblings, np.arange(_WINDOW))

    return tree


def _text(vocabulary: int) -> list[int]:
    tokens = np.random.default_rng(0).integers(vocabulary, size=_FED + _WINDOW)
    return [int(token) for token in tokens]


def main(device: str, role: Role, bundle: str, report: str) -> None:
    """Probe, and write the result to the file `report`."""
    try:
        tried = _try(Device.parse(device), role, bundles.read(Path(bundle), verify=False))
        figures = asdict(tried)
    except MirrorEdgeError as error:
        figures = {"failure": str(error)}
    for known in ("device", "role"):
        figures.pop(known, None)
    partial = Path(report + ".partial")
    partial.write_text(json.dumps(figures), encoding="utf-8")
    partial.replace(report)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
