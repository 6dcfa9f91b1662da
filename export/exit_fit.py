"""Fitting the exit head: a low-rank step with which a layer's rows predict the final distribution.

The loss is the divergence of the exit head's distribution from the target's own, over the tokens
that the exit head can name. Rows are scaled by the size of the final rows, so that one learning
rate suits every target. Some rows are held out: a step that does not predict these better is not
kept, as happens after layers that were trained as exits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from mirror_edge.export.exit_head import Correction

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fit"]

_BATCH = 256
_RATE, _WARM_UP = 3e-3, 20
_WORK = 6.5e12
"""Multiply-adds to spend: a minute or so on one CPU core."""
_FEWEST, _MOST = 200, 3000
"""Steps, at least and at most."""
_HELD_OUT = 16
"""One row in this many, at the end, is held out."""


def fit(
    rows: NDArray[Any],
    final: NDArray[Any],
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32],
    rank: int,
    on_share: Callable[[float], None],
) -> Correction | None:
    """The step for `rows` [rows, hidden] of a layer, given the `final` rows of the same tokens.

    `matrix` [hidden, tokens] and `bias` [tokens] are the LM head over the exit head's tokens. The
    same arguments give the same step; None where it does not help.
    """
    hidden, size = rows.shape[1], float(np.sqrt(np.mean(np.square(final, dtype=np.float32))))
    random = torch.Generator().manual_seed(0)
    a = torch.randn(hidden, rank, generator=random) / math.sqrt(hidden)
    b = torch.zeros(rank, hidden)
    head, offset = torch.from_numpy(matrix) * size, torch.from_numpy(bias)

    def divergence(at: NDArray[np.int64]) -> torch.Tensor:
        row, last = (torch.from_numpy(part[at]).float() / size for part in (rows, final))
        wanted = (last @ head + offset).softmax(dim=-1)
        return F.cross_entropy((row + F.silu(row @ a) @ b) @ head + offset, wanted)

    def held_out_loss() -> float:
        with torch.no_grad():
            batches = np.split(held_out, range(_BATCH, len(held_out), _BATCH))
            return sum(float(divergence(at)) * len(at) for at in batches)

    fitted = len(rows) - max(1, len(rows) // _HELD_OUT)
    held_out = np.arange(fitted, len(rows))
    optimizer = torch.optim.Adam([a.requires_grad_(), b.requires_grad_()], betas=(0.9, 0.98))
    before = held_out_loss()
    steps = _steps(hidden, matrix.shape[1])
    for step in range(steps):
        at = torch.randint(fitted, (_BATCH,), generator=random).numpy()
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps)
        optimizer.zero_grad()
        divergence(at).backward()
        optimizer.step()
        on_share((step + 1) / steps)
    if held_out_loss() >= before:
        return None
    return Correction((a.detach() / size).numpy(), (b.detach() * size).numpy())


def _steps(hidden: int, tokens: int) -> int:
    """As many steps as the work allows; each is four products of the batch with the head."""
    return round(min(max(_WORK / (8 * _BATCH * hidden * tokens), _FEWEST), _MOST))


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    return _RATE * min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
