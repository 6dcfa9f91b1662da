"""A check of a device's attention: a faulty kernel would silently change the text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.onnx import kernels
from mirror_edge.runtimes.onnx.session import Session, Setup
from mirror_edge.trace import Trace

if TYPE_CHECKING:
    from mirror_edge.runtimes.onnx.providers import Place

__all__ = ["ANY", "widest_run"]

ANY = 1 << 30
"""The width of a device without a limit, in rows."""
_SIZE = 16
"""The head size."""
_CLOSE = 1e-3
"""The largest absolute error that counts as correct."""
_WIDE, _NARROW = 64, 24
"""Widths tried, in rows: providers use other kernels for prompts, ONNX Runtime's from 32 rows."""


@cache
def widest_run(place: Place) -> int:
    """The most rows per run for which this device's attention is correct.

    Raises:
        DeviceError: if it is wrong at every width tried.
    """
    if place.memory is None:
        return ANY
    for rows, most in ((_WIDE, ANY), (_NARROW, _NARROW)):
        if _error(place, rows) < _CLOSE:
            return most
    raise DeviceError(
        f"device {place.provider.kind}: its attention is off by {_error(place, _NARROW):.2g}, so "
        "its answers would be wrong. Update its driver, or choose another device."
    )


def _error(place: Place, rows: int) -> float:
    """The largest difference between the device's attention over random rows and numpy's."""
    session = Session(kernels.attention(), Setup(place, 1, (), Trace()), "trial")
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 1, rows, _SIZE), dtype=np.float32)
    past = np.zeros((1, 1, rows, _SIZE), dtype=np.float32)
    found = np.empty_like(query)
    session.run(
        {
            **{"query": query, "key": key, "value": value},
            **{"past_key": past, "past_value": past},
            "last": np.array([rows - 1], dtype=np.int32),
            "total": np.array(rows, dtype=np.int32),
        },
        {"rows": found},
    )
    scores = query[0] @ key[0].T / np.sqrt(_SIZE)
    weights = np.tril(np.exp(scores))
    expected = weights @ value[0] / weights.sum(axis=-1, keepdims=True)
    return float(np.abs(found[0] - expected).max())
