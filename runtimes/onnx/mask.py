"""The attention biases of a draft: 0 where a row may look, a large negative number where not.

Most of a bias is the context, which every row sees; only its last slots are handed in. The buffers
are kept from forward to forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Mask"]


class Mask:
    """Makes the biases of one draft."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        """Biases of `dtype`."""
        self._unseen = dtype.type(np.finfo(dtype).min / 2)
        self._main, self._ahead = np.zeros((2, 0), dtype=dtype)
        self._later = np.zeros((0, 0), dtype=np.bool_)

    def main(self, rows: int, end: int, hidden: NDArray[np.bool_] | None) -> NDArray[Any]:
        """[1, 1, rows, end]: the bias of `rows` main rows that are fed up to slot `end`.

        `hidden` is as in `DraftGraph.forward`.
        """
        if self._main.size < rows * end:
            self._main = np.empty(2 * rows * end, dtype=self._main.dtype)
        bias: NDArray[Any] = self._main[: rows * end].reshape(1, 1, rows, end)
        bias.fill(0)
        if hidden is not None:
            np.multiply(hidden, self._unseen, out=bias[0, 0, :, end - hidden.shape[1] :])
        return bias

    def streams(
        self,
        rows: int,
        end: int,
        hidden: NDArray[np.bool_] | None,
        streamed: NDArray[np.int64],
        ahead: int,
    ) -> NDArray[Any]:
        """[1, 1, rows + m·ahead, end + m·ahead]: the same with streams of the m rows `streamed`."""
        of, extra = np.repeat(streamed, ahead), len(streamed) * ahead
        width, size = end + extra, (rows + extra) * (end + extra)
        if self._ahead.size < size:
            self._ahead = np.empty(2 * size, dtype=self._ahead.dtype)
        if len(self._later) < rows:
            place = np.arange(2 * rows)
            self._later = place > place[:, None]
            """[rows, rows]: the fed rows that stand behind a row."""
        bias: NDArray[Any] = self._ahead[:size].reshape(1, 1, rows + extra, width)
        bias.fill(0)
        later = self._later[:rows, :rows]
        if hidden is None:
            unseen = later[of]
        else:
            np.multiply(hidden, self._unseen, out=bias[0, 0, :rows, end - hidden.shape[1] : end])
            unseen = hidden[of]
            unseen[:, -rows:] |= later[of]
        bias[0, 0, :rows, end:] = self._unseen
        np.multiply(unseen, self._unseen, out=bias[0, 0, rows:, end - unseen.shape[1] : end])
        np.multiply(of != of[:, None], self._unseen, out=bias[0, 0, rows:, end:])
        return bias
