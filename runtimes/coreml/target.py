"""The target on Core ML: prefix, exit head and suffix as functions of one package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.coreml.cache import open_cache
from mirror_edge.runtimes.coreml.exit_head import CoreMLExitHead, joined
from mirror_edge.runtimes.coreml.program import Traced, open_program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.trace import Trace

__all__ = ["CoreMLTarget"]


class _Fed(NamedTuple):
    """Rows that have gone through the prefix."""

    hidden: NDArray[Any]
    """[1, S, hidden]: the rows, then padding."""
    start: int
    rows: int


class CoreMLTarget:
    """A `Target` over the target package of a bundle."""

    def __init__(self, bundle: Bundle, unit: str, trace: Trace) -> None:
        """Load the functions on `unit` and run each once at every width.

        Raises:
            DeviceError: if Core ML refuses a function or fails to run it.
        """
        spec = bundle.manifest.target
        functions = bundle.manifest.packages[spec.prefix].functions
        self.context, self.vocabulary = spec.model.context, spec.model.vocabulary
        self._programs = {
            name: Traced(
                open_program(bundle.file(spec.prefix), name, unit),
                name.removesuffix("_prefill"),
                trace,
            )
            for name in functions
            if name != "exit"
        }
        self._exit = CoreMLExitHead(bundle, unit, trace)
        self._prefix, self._suffix = (
            open_cache(self._programs[name], functions[name], spec.model.dtype)
            for name in ("prefix", "suffix")
        )
        self._widths = sorted(shape[1] for shape in functions["prefix"].shapes("input_ids"))
        self._chunk = functions["prefix_prefill"].shapes("input_ids")[0][1]
        self._fed: list[_Fed] = []
        self._warm_up()

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """See `Target.prefill`."""
        if len(tokens) <= self._widths[-1]:
            self.prefix(tokens, start, 0)
            return self.suffix()[-1:]
        for first in range(0, len(tokens), self._chunk):
            part = tokens[first : first + self._chunk]
            fed = self._feed("prefix_prefill", part, start + first, self._chunk)
            last = np.array([len(part) - 1], np.int32)
            logits = self._finish("suffix_prefill", fed, rows=last)
        return logits

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """See `Target.prefix`."""
        widest = self._widths[-1]
        self._fed = []
        for first in range(0, len(window), widest):
            part = window[first : first + widest]
            least = max(len(part), min(width, widest))
            fitting = next(w for w in self._widths if w >= least)
            self._fed.append(self._feed("prefix", part, start + first, fitting))
        if candidates == 0:
            return None
        return joined([self._exit.top(fed.hidden, fed.rows, candidates) for fed in self._fed])

    def hidden(self) -> NDArray[Any]:
        """See `Target.hidden`."""
        return np.concatenate([fed.hidden[0, : fed.rows] for fed in self._fed])

    def suffix(self) -> NDArray[np.float32]:
        """See `Target.suffix`."""
        return np.concatenate([self._finish("suffix", fed)[: fed.rows] for fed in self._fed])

    def likeliest(self) -> NDArray[np.int64]:
        """See `Target.likeliest`."""
        ids: NDArray[np.int64] = self.suffix().argmax(axis=-1)
        return ids

    def close(self) -> None:
        """Release the programs."""
        del self._programs, self._prefix, self._suffix, self._exit

    def _feed(self, function: str, tokens: Sequence[int], start: int, width: int) -> _Fed:
        ids = np.zeros((1, width), np.int32)
        ids[0, : len(tokens)] = tokens
        inputs = {"input_ids": ids, "start": np.array([start], np.int32)}
        outputs = self._prefix.run(self._programs[function], inputs, start, len(tokens))
        return _Fed(outputs["hidden"], start, len(tokens))

    def _finish(self, function: str, fed: _Fed, **more: NDArray[Any]) -> NDArray[np.float32]:
        inputs = {"hidden": fed.hidden, "start": np.array([fed.start], np.int32), **more}
        outputs = self._suffix.run(self._programs[function], inputs, fed.start, fed.rows)
        logits: NDArray[np.float32] = outputs["logits"][0].astype(np.float32)
        return logits

    def _warm_up(self) -> None:
        """Run every width once, since a device compiles a program at the first run of a width."""
        for width in self._widths:
            self.prefix([0] * width, 0, 1)
            self.suffix()
        self.prefill([0] * (self._widths[-1] + 1), 0)
