"""Device `auto`: which device each model runs on, by measurement.

Every device is probed once with the bundle, in a child process. The result is kept until the
bundle, the device's package or its driver changes; a failure for a day. Emulated devices are never
chosen.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from mirror_edge import kept
from mirror_edge.bundle import MANIFEST, digest
from mirror_edge.devices import Device, Role, all_devices
from mirror_edge.errors import DeviceError
from mirror_edge.probe import Probe, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mirror_edge.bundle import Bundle
    from mirror_edge.devices import Found

__all__ = ["AUTO", "Choice", "choose"]

AUTO = "auto"

_WRONG = 0.25
"""A device whose logits are this far from the CPU's is not used; see `Probe.error`."""
_DAY = 24 * 60 * 60.0
"""Seconds for which a failed probe is kept."""
_USUAL = {"onnx": "cpu", "coreml": "coreml"}
"""The default device, by bundle format; `coreml` assigns a unit to each model."""


class Choice(NamedTuple):
    """A device for each model, and why."""

    target: Device
    draft: Device
    reason: str
    """One line; empty if there was nothing to choose."""


def choose(bundle: Bundle, target: str, draft: str, on_try: Callable[[str], None]) -> Choice:
    """The devices that these names stand for; either may be `auto`.

    `on_try` is called with a line for each device that is probed, which may take minutes.

    Raises:
        DeviceError: for cores that this process cannot use.
    """
    kind = bundle.manifest.format
    usual, reasons = Device(_USUAL[kind]), []
    there = _candidates() if kind == "onnx" and AUTO in (target, draft) else []
    chosen = {"target": usual, "draft": usual}
    roles: list[tuple[Role, str]] = [("target", target), ("draft", draft)]
    for role, name in roles:
        if name != AUTO:
            chosen[role] = Device.parse(name)
            continue
        # Two models on one device would take turns, except that a CPU's cores can be divided.
        able = [found for found in there if role in found.roles]
        if role == "draft":
            able = [found for found in able if not _is(found, chosen["target"])]
        if role == "draft" and bundle.manifest.draft is None:
            able = []
        if able:
            tried = [_tried(bundle, role, found, on_try) for found in [*able, _cpu()]]
            best = min(
                (one for one in tried if _sound(one)), key=lambda one: one.step, default=None
            )
            chosen[role] = usual if best is None else Device.parse(best.device)
            reasons.append(_why(role, str(chosen[role]), tried))
    return Choice(chosen["target"], chosen["draft"], "; ".join(reasons))


def _is(found: Found, device: Device) -> bool:
    kind, _, which = found.name.partition(":")
    return kind == device.kind and (which or "0") == (device.unit or "0")


def _cpu() -> Found:
    return next(found for found in all_devices() if found.name == "cpu")


def _candidates() -> list[Found]:
    """The devices worth measuring besides the CPU."""
    return [
        found
        for found in all_devices()
        if found.usable and not found.emulated and found.name != "cpu" and "onnx" in found.formats
    ]


def _sound(tried: Probe) -> bool:
    return not tried.failure and tried.error < _WRONG


def _tried(bundle: Bundle, role: Role, found: Found, on_try: Callable[[str], None]) -> Probe:
    """A kept or a new probe of a device. One that failed is kept for a day only."""
    key = {
        "bundle": digest(bundle.folder / MANIFEST),
        "role": role,
        **{name: str(value) for name, value in dataclasses.asdict(found).items()},
    }
    if (known := kept.recall("probes", key, _recent)) is not None:
        return known
    on_try(f"Trying {found.name} for the {role} (once per bundle and driver).")
    try:
        tried = probe(found.name, role, bundle.folder)
    except DeviceError as error:
        return Probe(found.name, role, str(error))
    kept.write("probes", key, {"when": time.time(), "probe": dataclasses.asdict(tried)})
    return tried


def _recent(value: Any) -> Probe | None:
    """A kept probe, unless it failed and may not fail any more."""
    known, today = Probe(**value["probe"]), 0.0 <= time.time() - value["when"] < _DAY
    return known if today or not known.failure else None


def _why(role: Role, chosen: str, tried: Iterable[Probe]) -> str:
    figures = []
    for one in tried:
        if one.failure:
            figures.append(f"{one.device} {one.failure.splitlines()[0]}")
        elif not _sound(one):
            figures.append(f"{one.device} off by {one.error:.2g}")
        else:
            figures.append(f"{one.device} {1e3 * one.step:.1f} ms")
    return f"{role} on {chosen} ({', '.join(figures)})"
