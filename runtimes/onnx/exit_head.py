"""The exit head on ONNX Runtime: on the target's device, or on the draft's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.onnx.session import Session, Setup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.runtimes.onnx.session import Buffer


class OnnxExitHead:
    """An `ExitHead` over the exit graph of a bundle."""

    def __init__(self, bundle: Bundle, setup: Setup, name: str = "exit") -> None:
        """Load the graph; its runs are recorded under `name`.

        Raises:
            DeviceError: if the device cannot run it.
        """
        spec = bundle.manifest.target
        self._vocabulary = spec.exit_vocabulary
        self._session = Session(bundle.file(spec.exit), setup, name)
        self._ids = self._session.dtype("exit_ids")
        self._named: dict[tuple[int, ...], tuple[NDArray[Any], NDArray[np.float32]]] = {}
        """What it names, by shape: kept, so that it is bound once."""

    def signal(self, hidden: NDArray[Any], candidates: int) -> ExitSignal:
        """See `ExitHead.signal`."""
        return self.named(hidden[None], len(hidden), candidates)

    def named(self, hidden: Buffer, rows: int, candidates: int) -> ExitSignal:
        """The candidates of the rows [1, rows, hidden], wherever these are."""
        k = min(candidates, self._vocabulary)
        shape = (1, rows, k)
        ids, logprobs = self._named.setdefault(
            shape, (np.empty(shape, self._ids), np.empty(shape, np.float32))
        )
        self._session.run(
            {"hidden": hidden, "top": np.array([k])}, {"exit_ids": ids, "exit_logprobs": logprobs}
        )
        # Copied: the draft may read them beside the next window.
        return ExitSignal(ids[0].astype(np.int64), logprobs[0].copy())

    def close(self) -> None:
        """Release the session."""
        del self._session
