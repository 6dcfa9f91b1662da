"""How many CPU threads each model gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mirror_edge.devices import usable_cores
from mirror_edge.errors import OptionError
from mirror_edge.memory import plan_memory
from mirror_edge.values import require_whole

if TYPE_CHECKING:
    from mirror_edge.devices import Device
    from mirror_edge.manifest import Manifest

__all__ = ["Threads", "share"]

_WORTH = 8 << 20
"""Bytes of draft weights per thread worth using."""


class Threads(NamedTuple):
    """Of the target and of the draft."""

    target: int
    draft: int


def share(
    manifest: Manifest,
    target: Device,
    draft: Device,
    target_threads: int | None,
    draft_threads: int | None,
) -> Threads:
    """As many as were asked for, or as a device has cores of its own, or as there are cores.

    Two models on one processor wait for the same memory, so it is usually fastest that they take
    turns, with all cores each. Beside another kind of device one core is left for its driver. A
    small draft gets fewer threads, since more would only wait for one another.

    Raises:
        OptionError: for more than there are, or for a device that manages its own threads.
    """
    _refuse("target_threads", target_threads, target)
    _refuse("draft_threads", draft_threads, draft)
    small = 1 + plan_memory(manifest).draft_weights // _WORTH
    return Threads(
        target_threads or len(target.cores) or _left(target, draft if manifest.draft else None),
        draft_threads or len(draft.cores) or min(small, _left(draft, target)),
    )


def _refuse(name: str, count: int | None, device: Device) -> None:
    if count is None:
        return
    require_whole(name, count)
    if count < 1:
        raise OptionError(f"{name} is {count}; it must be 1 or more.")
    if device.kind != "cpu":
        raise OptionError(
            f"{name} applies to the cpu device only; {device} manages its own threads."
        )
    there = len(device.cores or usable_cores())
    if count > there:
        raise OptionError(f"{name} is {count}; {device} has {there} cores.")


def _left(device: Device, other: Device | None) -> int:
    """The cores left for `device`, which is confined to none, beside another model on `other`."""
    cores = len(usable_cores() - frozenset(other.cores if other else ()))
    apart = other is not None and other.kind != device.kind
    return max(1, cores - apart)
