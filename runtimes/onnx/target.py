"""The target on ONNX Runtime: prefix, exit head and suffix as three sessions on one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.errors import DeviceError
from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.onnx.cache import open_cache
from mirror_edge.runtimes.onnx.exit_head import OnnxExitHead
from mirror_edge.runtimes.onnx.memory import Rows, Scratch, open_memory
from mirror_edge.runtimes.onnx.session import Session, Setup
from mirror_edge.runtimes.onnx.trial import widest_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.runtimes.onnx.session import Buffer

__all__ = ["OnnxTarget"]


class OnnxTarget:
    """A `Target` over the three target graphs of a bundle.

    Hidden rows and KV caches stay in the memory that the device uses. Only the results are copied
    to the host: the exit head's candidates, and each row's likeliest token or its logits.
    """

    def __init__(self, bundle: Bundle, setup: Setup) -> None:
        """Load the graphs.

        Raises:
            DeviceError: if the device cannot run all of them, or computes attention incorrectly.
        """
        spec = bundle.manifest.target
        model = spec.model
        self.context, self.vocabulary = model.context, model.vocabulary
        self._memory = memory = open_memory(setup)
        if model.cache == "concat" and setup.place.memory is not None:
            raise DeviceError(
                f"{bundle.folder}: the target's KV caches are copied as they grow, so they cannot "
                f"stay on device {setup.place.provider.kind}. Run the target on the CPU, or export "
                "it from a checkpoint or from a folder in ONNX Runtime GenAI's format."
            )

        def session(file: str) -> Session:
            return Session(bundle.file(file), setup, Path(file).stem)

        prefix, suffix = session(spec.prefix), session(spec.suffix)
        self._exit = OnnxExitHead(bundle, setup)
        first, last = range(spec.exit_layer), range(spec.exit_layer, model.layers)
        self._prefix = open_cache(prefix, memory, model, first, model.context)
        self._suffix = open_cache(suffix, memory, model, last, model.context)
        self._hidden = Rows(memory, model.hidden, model.dtype)
        self._logits = Scratch(model.vocabulary)
        self._judged: Rows | Scratch = self._logits
        """The logits of `likeliest`, which stay in the device's memory."""
        if setup.place.memory is not None:
            self._judged = Rows(memory, model.vocabulary, "float32")
        self._widest = widest_run(setup.place)
        self._start = self._rows = self._fed = 0

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """See `Target.prefill`."""
        logits = self._logits.rows(1)
        for at in range(0, len(tokens), self._widest):
            self._feed(np.asarray(tokens[at : at + self._widest], dtype=np.int64), start + at)
            self._run_suffix(np.array([self._fed - 1]), logits)
        return logits.reshape(1, -1)

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """See `Target.prefix`."""
        self._rows = len(window)
        fed = np.zeros(max(len(window), width), dtype=np.int64)
        if len(fed) > self._widest:
            raise DeviceError(
                f"the target's device computes at most {self._widest} rows at a time correctly, "
                f"but the window has {len(fed)}. Use a smaller window."
            )
        fed[: len(window)] = window
        self._feed(fed, start)
        if candidates == 0:
            return None
        signal = self._exit.top(self._hidden.rows(len(fed)), len(fed), candidates)
        return ExitSignal(signal.ids[: self._rows], signal.logprobs[: self._rows])

    def hidden(self) -> NDArray[Any]:
        """See `Target.hidden`."""
        return self._memory.host(self._hidden.rows(self._fed))[0, : self._rows]

    def suffix(self) -> NDArray[np.float32]:
        """See `Target.suffix`."""
        logits = self._logits.rows(self._fed)
        # The head runs on the padding too, so that its width does not depend on the window.
        self._run_suffix(np.arange(self._fed), logits)
        return logits[0, : self._rows]

    def likeliest(self) -> NDArray[np.int64]:
        """See `Target.likeliest`."""
        logits = self._judged.rows(self._fed)
        self._run_suffix(np.arange(self._fed), logits)
        return self._memory.likeliest(logits)[: self._rows]

    def close(self) -> None:
        """Release the sessions."""
        del self._prefix, self._suffix, self._exit

    def _feed(self, tokens: NDArray[np.int64], start: int) -> None:
        self._start, self._fed = start, len(tokens)
        hidden = self._hidden.rows(self._fed)
        self._prefix.run(start, {"input_ids": tokens[None]}, {"hidden": hidden}, self._fed)

    def _run_suffix(self, rows: NDArray[np.int64], logits: Buffer) -> None:
        hidden = self._hidden.rows(self._fed)
        self._suffix.run(
            self._start, {"hidden": hidden, "rows": rows}, {"logits": logits}, self._fed
        )
