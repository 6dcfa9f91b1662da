"""Gumbel noise from a counter-based hash: the same for whoever asks for a position and a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOGETHER", "gumbel", "noise_of"]

TOGETHER = 8
"""Positions whose noise is computed together."""
_WIDE = 16384
"""With a larger vocabulary each is computed by itself, so that it stays in a CPU cache."""


def gumbel(seed: int, positions: Sequence[int], ids: NDArray[np.uint32]) -> NDArray[np.float32]:
    """G(seed, p, v), [positions, ids], for every v in `ids`; any subset gives the same values."""
    keys = [_splitmix(_splitmix(seed) ^ _splitmix(p ^ 0x5DEECE66D)) for p in positions]
    low, high = (np.array([[key >> s & 0xFFFFFFFF] for key in keys], np.uint32) for s in (0, 32))
    x = _mix(ids + low)
    x ^= high
    w = _mix(x).astype(np.float64)
    w += 0.5
    w *= 2.0**-32
    # 1 - w is exact in float64, so large noise (small w) keeps its precision.
    noise: NDArray[np.float32] = np.log(np.subtract(1.0, w, out=w), out=w).astype(np.float32)
    np.log(np.negative(noise, out=noise), out=noise)
    return np.negative(noise, out=noise)


def _splitmix(x: int) -> int:
    mask = 0xFFFFFFFFFFFFFFFF
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = x ^ (x >> np.uint32(16))
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def noise_of(seed: int, ids: NDArray[np.uint32], block: int) -> NDArray[np.float32]:
    """The noise of a block of positions, [TOGETHER, ids]."""
    positions = range(block * TOGETHER, (block + 1) * TOGETHER)
    if len(ids) <= _WIDE:
        return gumbel(seed, positions, ids)
    return np.concatenate([gumbel(seed, [position], ids) for position in positions])
