"""The exit head on Core ML: a function of the target's package, on either device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.errors import OptionError
from mirror_edge.hypotheses import ExitSignal
from mirror_edge.runtimes.coreml.program import Traced, open_program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.trace import Trace

__all__ = ["CoreMLExitHead", "joined"]

_FUNCTION = "exit"


class CoreMLExitHead:
    """An `ExitHead` over the target package of a bundle."""

    def __init__(self, bundle: Bundle, unit: str, trace: Trace, name: str = _FUNCTION) -> None:
        """Load the function on `unit`; its runs are recorded under `name`."""
        spec = bundle.manifest.target
        function = bundle.manifest.packages[spec.prefix].functions[_FUNCTION]
        self._program = Traced(open_program(bundle.file(spec.prefix), _FUNCTION, unit), name, trace)
        self._widths = sorted(shape[1] for shape in function.shapes("hidden"))
        self._most = function.shapes("exit_ids")[0][2]
        self._vocabulary = spec.exit_vocabulary

    def signal(self, hidden: NDArray[Any], candidates: int) -> ExitSignal:
        """See `ExitHead.signal`."""
        widest, found = self._widths[-1], []
        for first in range(0, len(hidden), widest):
            part = hidden[first : first + widest]
            width = next(w for w in self._widths if w >= len(part))
            padded = np.zeros((1, width, hidden.shape[1]), hidden.dtype)
            padded[0, : len(part)] = part
            found.append(self.top(padded, len(part), candidates))
        return joined(found)

    def top(self, hidden: NDArray[Any], rows: int, candidates: int) -> ExitSignal:
        """The best candidates of the first `rows` of `hidden` [1, S, hidden].

        S must be one of the function's widths.

        Raises:
            OptionError: for more candidates than the function returns.
        """
        if candidates > self._most < self._vocabulary:
            raise OptionError(
                f"{candidates} candidates per row are needed (--candidates plus one), but this "
                f"bundle's exit head returns at most {self._most}. Use fewer candidates."
            )
        out = self._program.predict({"hidden": hidden})
        ids, logprobs = (out[name][0, :rows, :candidates] for name in ("exit_ids", "exit_logprobs"))
        return ExitSignal(ids.astype(np.int64), logprobs.astype(np.float32))

    def close(self) -> None:
        """Release the function."""
        del self._program


def joined(signals: Sequence[ExitSignal]) -> ExitSignal:
    """The rows of all `signals`, in order."""
    return ExitSignal(
        np.concatenate([signal.ids for signal in signals]),
        np.concatenate([signal.logprobs for signal in signals]),
    )
