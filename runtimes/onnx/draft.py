"""The draft on ONNX Runtime: one session whose rows see what they are told to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.runtimes.onnx.cache import InPlaceCache
from mirror_edge.runtimes.onnx.session import Scratch, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.devices import Device
    from mirror_edge.trace import Trace


class OnnxDraft:
    """A `DraftGraph` over the draft graph of a bundle."""

    def __init__(self, bundle: Bundle, device: Device, threads: int, trace: Trace) -> None:
        """Load the graph on `device`."""
        spec = bundle.manifest.draft
        assert spec is not None
        model = spec.model
        self.context, self.vocabulary = model.context, model.vocabulary
        self.slots = model.context + spec.branch_rows
        self._scratch = Scratch(model.vocabulary)
        self._dtype = np.dtype(model.dtype)
        self._unseen = self._dtype.type(np.finfo(self._dtype).min / 2)
        session = Session(bundle.file(spec.graph), threads, device.cores, "draft", trace)
        self._cache = InPlaceCache(session, model, range(model.layers), self.slots)

    def forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """See `DraftGraph.forward`."""
        if hidden is None:
            bias: NDArray[Any] = np.zeros((len(tokens), start + len(tokens)), dtype=self._dtype)
        else:
            bias = np.multiply(hidden, self._unseen, dtype=self._dtype)
        logits = self._scratch.rows(len(wanted))
        self._cache.run(
            start,
            {
                "input_ids": tokens[None],
                "position_ids": positions[None],
                "attention_bias": bias[None, None],
                "rows": wanted,
            },
            {"logits": logits},
            len(tokens),
        )
        return logits.reshape(logits.shape[1:])

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        self._cache.move(slots, start)

    def close(self) -> None:
        """Release the session."""
        del self._cache
