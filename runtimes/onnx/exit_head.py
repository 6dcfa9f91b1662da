"""The exit head on ONNX Runtime, on the target's device or the draft's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.onnx.session import Session, Setup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.runtimes.onnx.session import Buffer

__all__ = ["OnnxExitHead"]


class OnnxExitHead:
    """An `ExitHead` over the exit graph of a bundle."""

    def __init__(self, bundle: Bundle, setup: Setup, name: str = "exit") -> None:
        """Load the graph; its runs are recorded under `name`.

        Raises:
            DeviceError: if the device cannot run the graph.
        """
        spec = bundle.manifest.target
        self._vocabulary = spec.exit_vocabulary
        self._session = Session(bundle.file(spec.exit), setup, name)
        self._id_type = self._session.dtype("exit_ids")
        self._outputs: dict[tuple[int, ...], tuple[NDArray[Any], NDArray[np.float32]]] = {}
        """Ids and log-probabilities by shape, kept so that they are bound only once."""

    def signal(self, hidden: NDArray[Any], candidates: int) -> ExitSignal:
        """See `ExitHead.signal`."""
        return self.top(hidden[None], len(hidden), candidates)

    def top(self, hidden: Buffer, rows: int, candidates: int) -> ExitSignal:
        """The best candidates of `hidden` [1, rows, hidden], in host or device memory."""
        k = min(candidates, self._vocabulary)
        shape = (1, rows, k)
        if shape not in self._outputs:
            self._outputs[shape] = np.empty(shape, self._id_type), np.empty(shape, np.float32)
        ids, logprobs = self._outputs[shape]
        self._session.run(
            {"hidden": hidden, "top": np.array([k])}, {"exit_ids": ids, "exit_logprobs": logprobs}
        )
        # Copied: the draft may still read them during the next window.
        return ExitSignal(ids[0].astype(np.int64), logprobs[0].copy())

    def close(self) -> None:
        """Release the session."""
        del self._session
