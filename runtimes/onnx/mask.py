"""The attention biases of a draft: 0 where a row may attend, a large negative number elsewhere.

Every row sees most of the context, so masks cover only the last slots. Buffers are kept between
forwards, so that they are bound only once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Mask"]

_KEPT = 16
"""Number of shapes whose buffers are kept, for each kind of bias."""


class Mask:
    """Builds the biases of one draft."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        """Build biases of `dtype`."""
        self._masked = dtype.type(np.finfo(dtype).min / 2)

        def zeros(rows: int, width: int) -> NDArray[Any]:
            return np.zeros((1, 1, rows, width), dtype=dtype)

        self._nothing, self._main, self._ahead = (lru_cache(_KEPT)(zeros) for _ in range(3))
        self._later = np.zeros((0, 0), dtype=np.bool_)

    def main(
        self, rows: int, end: int, width: int, hidden: NDArray[np.bool_] | None
    ) -> NDArray[Any]:
        """[1, 1, rows, width]: the bias of `rows` main rows, the last in slot `end` - 1.

        `hidden` is as in `DraftGraph.forward`. Slots from `end` on are excluded by the causal rule.
        """
        if hidden is None:
            return self._nothing(rows, width)
        bias = self._main(rows, width)
        bias.fill(0)
        np.multiply(hidden, self._masked, out=bias[0, 0, :, end - hidden.shape[1] : end])
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
        """[1, 1, rows + m·ahead, width]: the bias including streams of the m rows `streamed`."""
        of, extra = np.repeat(streamed, ahead), len(streamed) * ahead
        if len(self._later) < rows:
            place = np.arange(2 * rows)
            self._later = place > place[:, None]
            """[n, n], n >= rows: True where the second index is the later row."""
        bias = self._ahead(rows + extra, width)
        bias.fill(0)
        later = self._later[:rows, :rows]
        if hidden is None:
            masked = later[of]
        else:
            np.multiply(hidden, self._masked, out=bias[0, 0, :rows, end - hidden.shape[1] : end])
            masked = hidden[of]
            masked[:, -rows:] |= later[of]
        bias[0, 0, :rows, end : end + extra] = self._masked
        np.multiply(masked, self._masked, out=bias[0, 0, rows:, end - masked.shape[1] : end])
        np.multiply(of != of[:, None], self._masked, out=bias[0, 0, rows:, end : end + extra])
        return bias
