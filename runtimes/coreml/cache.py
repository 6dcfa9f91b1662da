"""The KV cache of one package's layers: a Core ML state, or explicit inputs and outputs."""

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
"""Outputs of a program, by name."""


class Cache(Protocol):
    """Holds keys and values between the runs of the programs that share them."""

    def run(
        self, program: Program, inputs: Mapping[str, NDArray[Any]], start: int, rows: int
    ) -> Arrays:
        """Run once, and keep the first `rows` fed rows at positions `start`…."""
        ...


class StateCache:
    """A state, which the programs update themselves."""

    def __init__(self, program: Program) -> None:
        """Start with zeros, in the shapes that `program` declares."""
        self._state = program.make_state()

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        start: int,  # noqa: ARG002
        rows: int,  # noqa: ARG002
    ) -> Arrays:
        """See `Cache.run`; the program also writes the padding, which no row ever sees."""
        return program.predict(inputs, self._state)


class ExplicitCache:
    """Buffers [layers, kv_heads, capacity, head_size] as inputs; the new rows are outputs."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Start with zeros."""
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
        """Copy the rows in `slots` to slots `start`…."""
        index = np.asarray(slots)
        for past in self._past.values():
            past[:, :, start : start + len(index)] = past[:, :, index]


def open_cache(program: Program, function: Function, dtype: str) -> Cache:
    """The kind of cache that `function` was exported for."""
    if function.states:
        return StateCache(program)
    return ExplicitCache(function.shapes("past_keys")[0], dtype)
