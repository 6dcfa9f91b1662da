"""The width curve T(n) of a target, and the limits it is compared with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mirror_edge.bundle import Manifest
    from mirror_edge.costs import Costs

__all__ = ["Width", "bandwidth", "width"]

_BLOCK = 64 << 20
_TRIES = 5


@dataclass(frozen=True)
class Width:
    """The time of a pass of the target, by its rows. Times are milliseconds."""

    rows: tuple[int, ...]
    pass_ms: tuple[float, ...]
    """Prefix and suffix together."""
    floor_ms: float
    """Reading the target's weights once, at the bandwidth of main memory."""
    row_ms: float
    """The least time per row that any pass reached."""
    weights: int
    """Bytes of weights."""
    bandwidth: float
    """Bytes per second."""

    def limit(self, rows: int) -> float:
        """The roofline: the longer of reading the weights and of the rows' arithmetic."""
        return max(self.floor_ms, rows * self.row_ms)


def width(costs: Costs, manifest: Manifest, bytes_per_second: float) -> Width:
    """The curve from measured costs."""
    rows = costs.prefix.rows
    taken = tuple(1e3 * (costs.prefix(n) + costs.suffix(n)) for n in rows)
    weights = sum(file.bytes for name, file in manifest.files.items() if name.startswith("target/"))
    return Width(
        rows=rows,
        pass_ms=taken,
        floor_ms=1e3 * weights / bytes_per_second,
        row_ms=min(ms / n for n, ms in zip(rows, taken, strict=True)),
        weights=weights,
        bandwidth=bytes_per_second,
    )


def bandwidth(threads: int) -> float:
    """Bytes per second that this many threads read from and write to main memory, copying."""
    blocks = [(np.ones(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8)) for _ in range(threads)]

    def copy(block: Sequence[np.ndarray]) -> None:
        np.copyto(block[1], block[0])

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            began = time.perf_counter()
            list(pool.map(copy, blocks))
            best = min(best, time.perf_counter() - began)
    return 2 * threads * _BLOCK / best
