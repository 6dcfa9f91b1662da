"""How long and how fast a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Budget", "Schedule"]

_LONG_EVERY = 4


@dataclass(frozen=True)
class Budget:
    """How long a run is: in minutes, or in tokens seen."""

    minutes: float | None = None
    tokens: int | None = None

    def share(self, seconds: float, tokens: int) -> float:
        """The share of it that is used up; 1 or more at its end."""
        if self.tokens is not None:
            return tokens / self.tokens
        return seconds / (60.0 * (self.minutes or 1e-9))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the learning rate follows the share of the budget spent."""

    budget: Budget
    learning_rate: float = 2e-3
    batch: int = 32
    length: int = 256
    long_length: int = 1024
    warmup_share: float = 0.02
    weight_decay: float = 0.1
    rows_at_once: int = 32768
    """Tokens per forward; a larger batch is split."""

    def rate_at(self, share: float) -> float:
        """Linear warm-up, then a cosine down to a hundredth."""
        if share < self.warmup_share:
            return self.learning_rate * max(share, 1e-3) / self.warmup_share
        turn = math.cos(math.pi * min(share, 1.0))
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + turn))

    def shape_at(self, step: int) -> tuple[int, int]:
        """(batch, length) of a step: every fourth is long, to learn high positions too."""
        if step % _LONG_EVERY or self.long_length <= self.length:
            return self.batch, self.length
        return max(1, self.batch * self.length // self.long_length), self.long_length
