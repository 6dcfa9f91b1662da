"""What a benchmark ran on."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mirror_edge.devices import Device, usable_cores

__all__ = ["about", "planted", "threads"]


def about(target: str, draft: str) -> dict[str, Any]:
    """The machine, its software, and what target and draft run on."""
    return {
        "processor": _processor(),
        "cores": len(usable_cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "target_device": target,
        "draft_device": draft,
        "emulated": _emulated(target, draft),
    }


def threads(device: str) -> int:
    """How many cores a device name confines to, or all usable ones."""
    return len(_cores(device)) or len(usable_cores())


def planted(folder: Path) -> dict[str, Any] | None:
    """What a planted pair was made for, whose language is artificial; None for any other."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] | None = config.get("planted")
    return found


def _cores(device: str) -> tuple[int, ...]:
    return () if device == "auto" else Device.parse(device).cores


def _emulated(target: str, draft: str) -> str | None:
    """A note wherever two devices are cores of one processor."""
    first, second = _cores(target), _cores(draft)
    if not first or not second or set(first) & set(second):
        return None
    names = [", ".join(map(str, cores)) for cores in (first, second)]
    return f"two emulated devices: target on core {names[0]}, draft on core {names[1]}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
