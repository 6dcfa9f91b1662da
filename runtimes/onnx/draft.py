"""The draft on ONNX Runtime: one session, with an attention mask for each forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.errors import DeviceError
from mirror_edge.memory import remembered
from mirror_edge.runtimes.onnx.cache import InPlaceCache
from mirror_edge.runtimes.onnx.mask import Mask
from mirror_edge.runtimes.onnx.memory import Scratch, open_memory
from mirror_edge.runtimes.onnx.session import Session, Setup
from mirror_edge.runtimes.onnx.trial import ANY, widest_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle

__all__ = ["OnnxDraft"]

_NONE = np.zeros(0, dtype=np.int64)
_WIDTH_STEP = 64
"""On the host, biases are padded to a multiple of this width, so that buffers can be reused."""


class OnnxDraft:
    """A `DraftGraph` over the draft graph of a bundle."""

    def __init__(self, bundle: Bundle, setup: Setup) -> None:
        """Load the graph.

        Raises:
            DeviceError: if the device refuses the graph or computes attention incorrectly.
        """
        spec = bundle.manifest.draft
        assert spec is not None
        model = spec.model
        self.context, self.vocabulary, self.named = model.context, model.vocabulary, spec.named
        self.main = remembered(model.context)
        self.slots = self.main + spec.branch_rows
        self.streams = spec.streams
        self._scratch = Scratch(spec.named)
        self._mask = Mask(np.dtype(model.dtype))
        if widest_run(setup.place) < ANY:
            raise DeviceError(
                f"device {setup.place.provider.kind}: its attention is wrong for many rows at "
                "once, which a draft needs. Update its driver, or choose another draft device."
            )
        session = self._session = Session(bundle.file(spec.graph), setup, "draft", stoppable=True)
        self._cache = InPlaceCache(
            session, open_memory(setup), model, range(model.layers), self.slots
        )
        self._width_step = _WIDTH_STEP if setup.place.memory is None else 1
        self._seqlens = np.zeros(1, dtype=np.int32)
        self._total = np.zeros((), dtype=np.int32)
        self._numbers = np.arange(spec.streams)
        if spec.streams:
            session.bind("stream_seqlens_k", self._seqlens)
            session.bind("stream_total_sequence_length", self._total)

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
        """See `DraftGraph.forward`."""
        rows, end = len(tokens), start + len(tokens)
        extra = 0 if streamed is None else len(streamed) * ahead
        width = self._cache.width(end + extra, self._width_step)
        bias = self._mask.main(rows, end, width, hidden)
        inputs = {"input_ids": tokens[None], "position_ids": positions[None]}
        inputs |= {"attention_bias": bias, "rows": wanted}
        if self.streams:
            if streamed is None:
                inputs |= {"streamed": _NONE, "streams": _NONE, "stream_attention_bias": bias}
            else:
                inputs["rows"] = np.concatenate([wanted, np.arange(rows, rows + extra)])
                inputs |= {"streamed": streamed, "streams": self._numbers[:ahead]}
                bias = self._mask.streams(rows, end, width, hidden, streamed, ahead)
                inputs["stream_attention_bias"] = bias
            self._seqlens[0], self._total[()] = end + extra - 1, width
        logits = self._scratch.rows(len(inputs["rows"]))
        self._cache.run(start, inputs, {"logits": logits}, rows, width)
        return logits.reshape(logits.shape[1:])

    def stop(self) -> None:
        """See `DraftGraph.stop`."""
        self._session.stop()

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        self._cache.move(slots, start)

    def close(self) -> None:
        """Release the session."""
        del self._cache, self._session
