"""The draft on Core ML: fixed shapes, with the KV cache as explicit inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.runtimes.coreml.cache import ExplicitCache
from mirror_edge.runtimes.coreml.program import Traced, open_program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.trace import Trace

__all__ = ["CoreMLDraft"]

_MASKED = -1e4
"""Added to an attention score to make its weight zero; within the range of float16."""


class CoreMLDraft:
    """A `DraftGraph` over the packages of a bundle's draft, one per chunk of its layers."""

    def __init__(self, bundle: Bundle, unit: str, trace: Trace) -> None:
        """Load the functions on `unit` and run each once.

        Raises:
            DeviceError: if Core ML refuses a function or fails to run it.
        """
        spec = bundle.manifest.draft
        assert spec is not None
        model = spec.model
        self.context = self.main = model.context
        self.vocabulary = self.named = model.vocabulary
        self.slots = model.context + spec.branch_rows
        self.streams = spec.streams
        self._dtype = np.dtype(model.dtype)
        packages = {
            name: package.functions
            for name, package in sorted(bundle.manifest.packages.items())
            if name.startswith("draft/")
        }
        first = next(iter(packages.values()))
        self._programs = {
            function: [
                Traced(open_program(bundle.file(name), function, unit), "draft", trace)
                for name in packages
            ]
            for function in first
        }
        self._widths = {name: first[name].shapes("input_ids")[0][1] for name in first}
        shapes = [functions["draft"].shapes("past_keys")[0] for functions in packages.values()]
        self._capacity = shapes[0][2]
        self._caches = [ExplicitCache(shape, model.dtype) for shape in shapes]
        for function in self._programs:
            nothing = np.zeros(1, np.int64)
            self._run(function, nothing, nothing, 0, None)

    def forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
        streamed: NDArray[np.int64] | None = None,
        ahead: int = 0,
    ) -> NDArray[np.float32]:
        """See `DraftGraph.forward`. Rows that do not fit a program are fed in several runs."""
        leading = np.zeros(0, np.int64) if streamed is None else streamed
        width = self._widths["draft"]
        # The logits of stream k of a row come k widths after those of the row.
        rows = np.concatenate([wanted, np.repeat(leading, ahead)])
        numbers = np.zeros(len(rows), np.int64)
        numbers[len(wanted) :] = np.tile(np.arange(1, ahead + 1), len(leading))
        found = np.empty((len(rows), self.vocabulary), np.float32)
        at, first = 0, int(rows.min())
        while at < len(tokens):
            if first - at >= width:
                # The wide program has no head: it takes the rows before the first wanted one.
                function, last = "draft_prefill", first
            else:
                joined = ((leading >= at) & (leading < at + width)).any()
                function, last = "draft_streams" if joined else "draft", len(tokens)
            part = slice(at, min(at + self._widths[function], last))
            masked = None
            if hidden is not None:
                masked = hidden[part, : hidden.shape[1] - len(tokens) + part.stop]
            logits = self._run(function, tokens[part], positions[part], start + at, masked)
            if logits is not None:
                here = (rows >= at) & (rows < part.stop)
                found[here] = logits.T[rows[here] - at + width * numbers[here]]
            at = part.stop
        return found

    def stop(self) -> None:
        """See `DraftGraph.stop`: it does nothing, because Core ML cannot stop a run."""

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        for cache in self._caches:
            cache.move(slots, start)

    def close(self) -> None:
        """Release the programs."""
        del self._programs, self._caches

    def _run(
        self,
        function: str,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
    ) -> NDArray[Any] | None:
        """Feed at most the width of `function` in rows; return logits [vocabulary, columns].

        The columns are the program's rows, then each row's first stream, then the second ones, and
        so on. A function without a head returns None.
        """
        count, width = len(tokens), self._widths[function]
        inputs: dict[str, NDArray[Any]] = {
            "position_ids": np.zeros(width, np.int32),
            "attention_bias": self._bias(count, width, start, hidden),
        }
        inputs["position_ids"][:count] = positions
        fed = {"input_ids": np.zeros((1, width), np.int32)}
        fed["input_ids"][0, :count] = tokens
        for program, cache in zip(self._programs[function], self._caches, strict=True):
            outputs = cache.run(program, {**inputs, **fed}, start, count)
            fed = {"hidden": outputs["residual"]} if "residual" in outputs else {}
        logits = outputs.get("logits")
        if logits is None:
            return None
        pieces, size, _, columns = logits.shape
        return logits.reshape(pieces * size, columns)[: self.vocabulary]

    def _bias(
        self, rows: int, width: int, start: int, hidden: NDArray[np.bool_] | None
    ) -> NDArray[Any]:
        """[1, 1, W, C + W]: the cached rows, then the fed rows in order.

        A padding row sees itself, so that its softmax is defined; no other row sees it.
        """
        masked = np.ones((width, self._capacity + width), np.bool_)
        own = masked[:, self._capacity :]
        own[:rows, :rows] = ~np.tri(rows, dtype=np.bool_)
        masked[:rows, :start] = False
        if hidden is not None:  # It covers the last slots, including those of the fed rows.
            cached = hidden.shape[1] - rows
            masked[:rows, start - cached : start] = hidden[:, :cached]
            own[:rows, :rows] |= hidden[:, cached:]
        np.fill_diagonal(own[rows:, rows:], False)
        return np.multiply(masked, self._dtype.type(_MASKED), dtype=self._dtype)[None, None]
