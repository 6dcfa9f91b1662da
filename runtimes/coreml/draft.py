"""The draft on Core ML: fixed shapes, and a cache that is handed in and out."""

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

_UNSEEN = -1e4
"""Added to an attention score: never seen. In float16's range."""


class CoreMLDraft:
    """A `DraftGraph` over the packages of a bundle's draft, one for each chunk of its layers."""

    def __init__(self, bundle: Bundle, unit: str, trace: Trace) -> None:
        """Load the functions on `unit` and run each once."""
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
        """See `DraftGraph.forward`. Rows that do not fit a program are fed by several runs."""
        leading = np.zeros(0, np.int64) if streamed is None else streamed
        width = self._widths["draft"]
        # Stream k of a row is told from the row itself by k, counted in widths.
        rows = np.concatenate([wanted, np.repeat(leading, ahead)])
        numbers = np.zeros(len(rows), np.int64)
        numbers[len(wanted) :] = np.tile(np.arange(1, ahead + 1), len(leading))
        found = np.empty((len(rows), self.vocabulary), np.float32)
        at, first = 0, int(rows.min())
        while at < len(tokens):
            if first - at >= width:
                # The long program has no head: it takes the rows before the first wanted one.
                function, last = "draft_prefill", first
            else:
                joined = ((leading >= at) & (leading < at + width)).any()
                function, last = "draft_streams" if joined else "draft", len(tokens)
            part = slice(at, min(at + self._widths[function], last))
            unseen = None
            if hidden is not None:
                unseen = hidden[part, : hidden.shape[1] - len(tokens) + part.stop]
            logits = self._run(function, tokens[part], positions[part], start + at, unseen)
            if logits is not None:
                here = (rows >= at) & (rows < part.stop)
                found[here] = logits.T[rows[here] - at + width * numbers[here]]
            at = part.stop
        return found

    def stop(self) -> None:
        """See `DraftGraph.stop`: Core ML cannot."""

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
        """Up to a program's width of rows; logits [vocabulary, …], if it has the head.

        Their columns are the program's rows, behind these all first streams, and so on.
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
        """[1, 1, W, C + W]: the cached rows come first, then the fed ones in order.

        A row of padding sees itself, so that its attention is defined; nobody sees it.
        """
        unseen = np.ones((width, self._capacity + width), np.bool_)
        own = unseen[:, self._capacity :]
        own[:rows, :rows] = ~np.tri(rows, dtype=np.bool_)
        unseen[:rows, :start] = False
        if hidden is not None:  # of the last slots, the fed rows' own among them
            cached = hidden.shape[1] - rows
            unseen[:rows, start - cached : start] = hidden[:, :cached]
            own[:rows, :rows] |= hidden[:, cached:]
        np.fill_diagonal(own[rows:, rows:], False)
        return np.multiply(unseen, self._dtype.type(_UNSEEN), dtype=self._dtype)[None, None]
