"""A training loop that fits a time budget, for models small enough to train at home.

Weight matrices are trained with Muon, which needs about two thirds of the text that AdamW needs;
embeddings and vectors with AdamW. A checkpoint, written every few minutes, lets a run that was
interrupted go on with the share of its budget that is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    batch: int = 32
    length: int = 256
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


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps what it needs to go on, and how often it writes it."""

    file: Path
    every_seconds: float = 120.0


@dataclass
class _Run:
    """What a checkpoint holds beside the weights."""

    steps: int = 0
    tokens: int = 0
    spent: float = 0.0
    """Seconds of the budget."""
    loss: float = math.nan
    """Smoothed over some fifty steps."""


def train(
    model: torch.nn.Module,
    loss: Loss,
    stream: NDArray[np.uint16],
    schedule: Schedule,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> int:
    """Train `model` in place on random windows of `stream`; return the number of tokens seen.

    A checkpoint file that is there already is taken up, and removed by whoever keeps the model.
    """
    device = next(model.parameters()).device
    optimizers = _optimizers(model, schedule)
    run = _Run()
    if checkpoint is not None and checkpoint.file.exists():
        run = _restore(checkpoint.file, model, optimizers, device)
    budget = schedule.minutes * 60.0
    last = saved = time.monotonic()
    while run.spent < budget:
        share = run.spent / budget
        batch, length = schedule.shape_at(share)
        draw = np.random.default_rng((seed, run.steps))
        starts = draw.integers(0, len(stream) - length - 1, size=batch)
        windows = np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(torch.from_numpy(windows).to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(share)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        current, now = float(value.detach()), time.monotonic()
        run.loss = current if math.isnan(run.loss) else 0.98 * run.loss + 0.02 * current
        run.steps, run.tokens = run.steps + 1, run.tokens + batch * length
        run.spent, last = run.spent + now - last, now
        if checkpoint is not None and now - saved > checkpoint.every_seconds:
            _save(checkpoint.file, model, optimizers, run)
            saved = now
        if on_progress is not None:
            on_progress(Progress(min(run.spent / budget, 1.0), run.tokens, run.loss))
    if checkpoint is not None:
        _save(checkpoint.file, model, optimizers, run)
    return run.tokens


def _optimizers(model: torch.nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2 and id(p) not in embeddings]
    others = [p for p in trained if p.dim() != 2 or id(p) in embeddings]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        optimizers.append(
            torch.optim.AdamW(
                others, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
            )
        )
    return optimizers


def _save(
    file: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], run: _Run
) -> None:
    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "run": vars(run),
    }
    torch.save(state, part)
    part.replace(file)


def _restore(
    file: Path,
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    device: torch.device,
) -> _Run:
    state = torch.load(file, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return _Run(**state["run"])


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
