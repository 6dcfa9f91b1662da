"""KV caches of the layers of one package: kept by Core ML, or handed in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.packages import Function
    from mirror_edge.runtimes.coreml.program import Program

__all__ = ["Cache", "ExplicitCache", "StateCache", "open_cache"]

Arrays = dict[str, "NDArray[Any]"]


class Cache(Protocol):
    """Keeps keys and values between the runs of programs that share them."""

    def run(
        self, program: Program, inputs: Mapping[str, NDArray[Any]], start: int, rows: int
    ) -> Arrays:
        """Run once; of the fed rows the first `rows` are kept, at `start`…."""
        ...


class StateCache:
    """A state of the programs, which they write themselves."""

    def __init__(self, program: Program) -> None:
        """Zeros, of the shape that `program` wants."""
        self._state = program.make_state()

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        start: int,  # noqa: ARG002
        rows: int,  # noqa: ARG002
    ) -> Arrays:
        """See `Cache.run`; the rows behind them are written too, and never seen."""
        return program.predict(inputs, self._state)


class ExplicitCache:
    """Buffers [layers, kv_heads, capacity, head_size] that go in; the new rows come out."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Zeros."""
        self._past = {name: np.zeros(shape, dtype) for name in ("past_keys", "past_values")}

    def run(
        self, program: Program, inputs: Mapping[str, NDArray[Any]], start: int, rows: int
    ) -> Arrays:
        """See `Cache.run`."""
        outputs = program.predict({**inputs, **self._past})
        for name, past in self._past.items():
            new = outputs.pop(name.removeprefix("past_"))
            past[:, :, start : start + rows] = new[:, :, :rows]
        return outputs

    def move(self, slots: Sequence[int], start: int) -> None:
        """Copy the rows in `slots` to `start`…."""
        index = np.asarray(slots)
        for past in self._past.values():
            past[:, :, start : start + len(index)] = past[:, :, index]


def open_cache(program: Program, function: Function, dtype: str) -> Cache:
    """The cache that a function was exported for."""
    if function.states:
        return StateCache(program)
    return ExplicitCache(function.shapes("past_keys")[0], dtype)
