"""The attention biases of a draft: 0 where a row may look, a large negative number where not.

Most of a bias is the context, which every row sees; only its last slots are handed in. The buffers
are kept from forward to forward, so that they are bound once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Mask"]

_KEPT = 16
"""Shapes whose buffers are kept."""


class Mask:
    """Makes the biases of one draft."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        """Biases of `dtype`."""
        self._unseen = dtype.type(np.finfo(dtype).min / 2)

        def zeros(rows: int, width: int) -> NDArray[Any]:
            return np.zeros((1, 1, rows, width), dtype=dtype)

        self._nothing, self._main, self._ahead = (lru_cache(_KEPT)(zeros) for _ in range(3))
        self._later = np.zeros((0, 0), dtype=np.bool_)

    def main(
        self, rows: int, end: int, width: int, hidden: NDArray[np.bool_] | None
    ) -> NDArray[Any]:
        """[1, 1, rows, width]: the bias of `rows` main rows that are fed up to slot `end`.

        `hidden` is as in `DraftGraph.forward`. What stands behind `end` is not there yet.
        """
        if hidden is None:
            return self._nothing(rows, width)
        bias = self._main(rows, width)
        bias.fill(0)
        np.multiply(hidden, self._unseen, out=bias[0, 0, :, end - hidden.shape[1] : end])
        return bias

    def streams(
        self,
        rows: int,
        end: int,
        width: int,
        hidden: NDArray[np.bool_] | None,
        streamed: NDArray[np.int64],
        ahead: int,
    ) -> NDArray[Any]:
        """[1, 1, rows + m·ahead, width]: the same with streams of the m rows `streamed`."""
        of, extra = np.repeat(streamed, ahead), len(streamed) * ahead
        if len(self._later) < rows:
            place = np.arange(2 * rows)
            self._later = place > place[:, None]
            """[rows, rows]: the fed rows that stand behind a row."""
        bias = self._ahead(rows + extra, width)
        bias.fill(0)
        later = self._later[:rows, :rows]
        if hidden is None:
            unseen = later[of]
        else:
            np.multiply(hidden, self._unseen, out=bias[0, 0, :rows, end - hidden.shape[1] : end])
            unseen = hidden[of]
            unseen[:, -rows:] |= later[of]
        bias[0, 0, :rows, end : end + extra] = self._unseen
        np.multiply(unseen, self._unseen, out=bias[0, 0, rows:, end - unseen.shape[1] : end])
        np.multiply(of != of[:, None], self._unseen, out=bias[0, 0, rows:, end : end + extra])
        return bias
