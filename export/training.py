"""A training loop within a budget, for models small enough to train at home.

Weight matrices are trained with Muon, which needs about two thirds of the text that AdamW needs;
embeddings, heads and vectors with AdamW. From a checkpoint, written every few minutes, an
interrupted run resumes with what is left of its budget.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export.hardware import autocast
from mirror_edge.export.schedule import Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Checkpoint",
    "Loss",
    "Progress",
    "Run",
    "Source",
    "Stage",
    "Stream",
    "held_out_loss",
    "train",
]

_HELD_OUT_LENGTH, _HELD_OUT_BATCH = 512, 16

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Token ids [batch, length + 1] to a scalar loss."""


class Source(Protocol):
    """Where windows of tokens come from."""

    def windows(
        self, random: np.random.Generator, batch: int, length: int
    ) -> NDArray[np.unsignedinteger[Any]]:
        """`batch` windows of `length` + 1 tokens."""
        ...

    def state(self) -> dict[str, Any]:
        """Its state, for a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


@dataclass(frozen=True)
class Stream:
    """Random windows of one long sequence of tokens."""

    tokens: NDArray[np.unsignedinteger[Any]]

    def windows(
        self, random: np.random.Generator, batch: int, length: int
    ) -> NDArray[np.unsignedinteger[Any]]:
        """`batch` windows of `length` + 1 tokens, each from anywhere."""
        starts = random.integers(0, len(self.tokens) - length, size=batch)
        return np.stack([self.tokens[s : s + length + 1] for s in starts])

    def state(self) -> dict[str, Any]:
        """Empty: the tokens do not change."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Stage:
    """A part of a run: its loss, where windows come from, and up to which share of the budget."""

    name: str
    loss: Loss
    source: Source
    until: float = 1.0


@dataclass(frozen=True)
class Progress:
    """One training step, for a progress bar."""

    stage: str
    share: float
    tokens: int
    loss: float


@dataclass(frozen=True)
class Checkpoint:
    """The file from which a run resumes, and how often it is written."""

    file: Path
    every_seconds: float = 120.0
    of: dict[str, str] = field(default_factory=dict)
    """What distinguishes the run from others, such as options and data, by name."""

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state that was last written; None when there is none.

        Raises:
            OptionError: when it is damaged, or of another run.
        """
        if not self.file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.file, map_location=device, weights_only=True)
        except Exception as error:  # reading a zip archive or a pickle may raise anything
            raise OptionError(
                f"{self.file}: cannot be read as a checkpoint ({error}). Delete it to start over."
            ) from error
        before = state["of"]
        for name in sorted(before.keys() | self.of.keys()):
            if before.get(name) != self.of.get(name):
                raise OptionError(
                    f"{self.file}: belongs to a run with another {name} ({before.get(name)}, not "
                    f"{self.of.get(name)}). Use the same again, or delete it to start over."
                )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` whole or not at all."""
        part = self.file.with_name(self.file.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save({"of": self.of, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.file)


@dataclass
class Run:
    """The progress of a run, across interruptions."""

    steps: int = 0
    tokens: int = 0
    """Tokens seen."""
    seconds: float = 0.0
    stage: str = ""
    in_stage: int = 0
    """Steps in this stage."""
    loss: float = math.nan
    """A moving average over about the last fifty steps of the stage."""


def train(
    model: torch.nn.Module,
    stages: Sequence[Stage],
    schedule: Schedule,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train `model` in place through the `stages`.

    An existing checkpoint file is resumed from; the caller deletes it when the model is saved.

    Raises:
        OptionError: a checkpoint file of another run.
        ExportError: the loss is not finite.
    """
    device = next(model.parameters()).device
    optimizers = _optimizers(model, schedule)
    run = Run()
    if checkpoint is not None and (state := checkpoint.load(device)) is not None:
        run = _restore(state, model, optimizers, stages)
    trained = [p for p in model.parameters() if p.requires_grad]
    last = saved = time.monotonic()
    while (share := schedule.budget.share(run.seconds, run.tokens)) < 1.0:
        stage = next((stage for stage in stages if share < stage.until), stages[-1])
        batch, length = schedule.shape_at(run.steps)
        draw = np.random.default_rng((seed, run.steps))
        windows = torch.from_numpy(stage.source.windows(draw, batch, length).astype(np.int64))
        current = 0.0
        for part in windows.to(device).split(max(1, schedule.rows_at_once // length)):
            with autocast(device):
                value = stage.loss(part) * (len(part) / batch)
            value.backward()
            current += float(value.detach())
        if not math.isfinite(current):
            raise ExportError(
                f"The loss is {current} after {run.steps:,} steps. Train again with a smaller "
                "learning rate."
            )
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(share)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.in_stage = run.in_stage + 1 if run.stage == stage.name else 1
        run.stage = stage.name
        newest = max(1 / run.in_stage, 0.02)
        run.loss = newest * current + (1 - newest) * (run.loss if run.in_stage > 1 else 0.0)
        now = time.monotonic()
        run.steps, run.tokens = run.steps + 1, run.tokens + batch * length
        run.seconds, last = run.seconds + now - last, now
        if checkpoint is not None and now - saved > checkpoint.every_seconds:
            checkpoint.save(_state(model, optimizers, stages, run))
            saved = now
        if on_progress is not None:
            done = min(schedule.budget.share(run.seconds, run.tokens), 1.0)
            on_progress(Progress(stage.name, done, run.tokens, run.loss))
    if checkpoint is not None:
        checkpoint.save(_state(model, optimizers, stages, run))
    return run


def _optimizers(model: torch.nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.endswith("lm_head")
        and module.weight.requires_grad
        and id(module.weight) not in embeddings
    ]
    by_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in by_muon]
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


def _state(
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    stages: Sequence[Stage],
    run: Run,
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "sources": [stage.source.state() for stage in stages],
        "run": vars(run),
    }


def _restore(
    state: dict[str, Any],
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    stages: Sequence[Stage],
) -> Run:
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    for stage, kept in zip(stages, state["sources"], strict=True):
        stage.source.restore(kept)
    return Run(**state["run"])


@torch.no_grad()
def held_out_loss(
    loss: Loss,
    stream: NDArray[np.unsignedinteger[Any]],
    device: torch.device,
) -> float:
    """Mean of `loss` over the whole of `stream`, cut into windows."""
    length = min(_HELD_OUT_LENGTH, len(stream) - 1)
    count = (len(stream) - 1) // length
    starts = np.arange(count) * length
    windows = np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64)
    parts = torch.from_numpy(windows).split(_HELD_OUT_BATCH)
    return sum(float(loss(part.to(device))) * len(part) for part in parts) / count
