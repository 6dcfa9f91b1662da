"""The processors' own energy counters: RAPL, where the system lets them be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "find"]

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """The energy counters of all processor packages, and of memory where it has its own."""

    zones: tuple[Path, ...]
    ranges: tuple[int, ...]
    """Microjoules after which each counter starts at 0 again."""

    def read(self) -> tuple[int, ...]:
        """The counters, in microjoules."""
        return tuple(int((zone / "energy_uj").read_text()) for zone in self.zones)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Joules between two readings; no counter may wrap around more than once."""
        turns = zip(before, after, self.ranges, strict=True)
        return sum((b - a) % full for a, b, full in turns) / 1e6


def find(root: Path = POWERCAP) -> Meter | str:
    """The meter of this machine, or why there is none."""
    zones = sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)
    if not zones:
        return f"unknown: {root} has no counters"
    try:
        meter = Meter(
            tuple(zones),
            tuple(int((zone / "max_energy_range_uj").read_text()) + 1 for zone in zones),
        )
        meter.read()
    except PermissionError:
        return f"unknown: {zones[0] / 'energy_uj'} is readable by root alone"
    except (OSError, ValueError) as error:
        return f"unknown: {zones[0]} cannot be read ({error})"
    return meter
