"""A training loop that fits a time budget, for models small enough to train at home."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Token ids [batch, length + 1] to a scalar loss."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. The learning rate follows the share of `minutes` spent."""

    minutes: float
    learning_rate: float = 2e-3
    batch: int = 16
    length: int = 512
    long_length: int = 1024
    long_share: float = 0.12
    warmup_share: float = 0.02
    weight_decay: float = 0.1

    def rate_at(self, share: float) -> float:
        """Linear warm-up, then a cosine to a hundredth."""
        if share < self.warmup_share:
            return self.learning_rate * max(share, 1e-3) / self.warmup_share
        turn = math.cos(math.pi * min(share, 1.0))
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + turn))

    def shape_at(self, share: float) -> tuple[int, int]:
        """(batch, length): the last `long_share` of the time goes to long sequences."""
        if share < 1.0 - self.long_share:
            return self.batch, self.length
        return max(1, self.batch * self.length // self.long_length), self.long_length


@dataclass(frozen=True)
class Progress:
    """One training step, for a progress bar."""

    share: float
    tokens: int
    loss: float


def train(
    model: torch.nn.Module,
    loss: Loss,
    stream: NDArray[np.uint16],
    schedule: Schedule,
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> int:
    """Train `model` in place on random windows of `stream`; return the number of tokens seen."""
    device = next(model.parameters()).device
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
    )
    draw = np.random.default_rng(seed)
    started = time.monotonic()
    tokens, smoothed, share = 0, math.nan, 0.0
    while share < 1.0:
        batch, length = schedule.shape_at(share)
        starts = draw.integers(0, len(stream) - length - 1, size=batch)
        windows = np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(share)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(torch.from_numpy(windows).to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch * length
        current = float(value.detach())
        smoothed = current if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * current
        share = (time.monotonic() - started) / (schedule.minutes * 60.0)
        if on_progress is not None:
            on_progress(Progress(min(share, 1.0), tokens, smoothed))
    return tokens


@torch.no_grad()
def held_out_loss(
    loss: Loss, stream: NDArray[np.uint16], *, length: int = 512, batch: int = 16
) -> float:
    """Mean of `loss` over the whole of `stream`, cut into windows of `length`."""
    count = (len(stream) - 1) // length
    starts = np.arange(count) * length
    windows = np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64)
    values = [
        float(loss(torch.from_numpy(windows[i : i + batch]))) * len(windows[i : i + batch])
        for i in range(0, count, batch)
    ]
    return sum(values) / count
