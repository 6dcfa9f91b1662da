"""The target on ONNX Runtime: prefix, exit head and suffix as three sessions of one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.onnx.cache import open_cache
from mirror_edge.runtimes.onnx.session import Scratch, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.devices import Device
    from mirror_edge.trace import Trace


class OnnxTarget:
    """A `Target` over the three target graphs of a bundle."""

    def __init__(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> None:
        """Load the graphs on `device`."""
        spec = bundle.manifest.target
        self._model = model = spec.model
        self.context, self.vocabulary = model.context, model.vocabulary
        self._exit_vocabulary = spec.exit_vocabulary

        def session(file: str) -> Session:
            path = bundle.file(file)
            return Session(path, threads, device.cores, Path(file).stem, trace)

        prefix, suffix = session(spec.prefix), session(spec.suffix)
        self._exit = session(spec.exit)
        self._prefix = open_cache(prefix, model, range(spec.exit_layer), model.context)
        self._suffix = open_cache(
            suffix, model, range(spec.exit_layer, model.layers), model.context
        )
        self._hidden = np.zeros((1, 0, model.hidden), dtype=model.dtype)
        self._scratch = Scratch(model.vocabulary)
        self._start = 0
        self._rows = 0

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """See `Target.prefill`."""
        self._feed(np.asarray(tokens, dtype=np.int64), start)
        return self._logits(np.array([len(tokens) - 1]))

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """See `Target.prefix`."""
        self._rows = len(window)
        fed = np.zeros(max(len(window), width), dtype=np.int64)
        fed[: len(window)] = window
        self._feed(fed, start)
        if candidates == 0:
            return None
        k = min(candidates, self._exit_vocabulary)
        ids = np.empty((1, len(fed), k), dtype=np.int64)
        logprobs = np.empty((1, len(fed), k), dtype=np.float32)
        self._exit.run(
            {"hidden": self._hidden, "top": np.array([k])},
            {"exit_ids": ids, "exit_logprobs": logprobs},
        )
        return ExitSignal(ids[0, : self._rows], logprobs[0, : self._rows])

    def suffix(self) -> NDArray[np.float32]:
        """See `Target.suffix`."""
        # Padded rows take the head too, so that the head's width is fixed as well.
        return self._logits(np.arange(self._hidden.shape[1]))[: self._rows]

    def close(self) -> None:
        """Release the sessions."""
        del self._prefix, self._suffix, self._exit

    def _feed(self, tokens: NDArray[np.int64], start: int) -> None:
        self._start = start
        if self._hidden.shape[1] != len(tokens):
            self._hidden = np.empty((1, len(tokens), self._model.hidden), dtype=self._model.dtype)
        self._prefix.run(start, {"input_ids": tokens[None]}, {"hidden": self._hidden}, len(tokens))

    def _logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = self._scratch.rows(len(rows))
        self._suffix.run(
            self._start,
            {"hidden": self._hidden, "rows": rows},
            {"logits": logits},
            self._hidden.shape[1],
        )
        return logits.reshape(logits.shape[1:])
