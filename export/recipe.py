"""The shape of a draft, and the recipe of its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mirror_edge.errors import OptionError

__all__ = ["DraftShape", "Recipe", "TrainingDevice"]

_MOST_STREAMS = 16
"""Far more than ever pay; each costs memory and time in training."""

TrainingDevice = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class DraftShape:
    """The dimensions of a fresh draft: a Llama decoder with tied embeddings.

    The head size must be a multiple of 16, as ONNX Runtime's GroupQueryAttention requires.
    """

    layers: int
    hidden: int
    heads: int = 0
    """0: as many as give a head size of 32, or of 64 from a hidden size of 512."""
    kv_heads: int = 0
    """0: half as many as `heads`, or as many if that number is odd."""
    intermediate: int = 0
    """0: twice `hidden`."""

    def __post_init__(self) -> None:
        """Fill in zeros, and refuse sizes that do not fit together."""
        heads = self.heads or max(1, self.hidden // (64 if self.hidden >= 512 else 32))
        kv_heads = self.kv_heads or (heads // 2 if heads % 2 == 0 else heads)
        for name, value in (
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("intermediate", self.intermediate or 2 * self.hidden),
        ):
            object.__setattr__(self, name, value)
        for name in ("layers", "hidden", "heads", "kv_heads", "intermediate"):
            if getattr(self, name) < 1:
                raise OptionError(
                    f"The draft's {name} is {getattr(self, name)}; it must be 1 or more."
                )
        if self.hidden % (16 * heads):
            raise OptionError(
                f"The draft's hidden size {self.hidden} cannot be split into {heads} heads whose "
                "size is a multiple of 16. Change one of the two."
            )
        if heads % kv_heads:
            raise OptionError(
                f"The draft's {heads} heads cannot share {kv_heads} key-value heads. "
                "The first must be a multiple of the second."
            )


@dataclass(frozen=True)
class Recipe:
    """How a draft is trained."""

    minutes: float | None = None
    """The budget in minutes; 30 unless there is one in tokens."""
    tokens: int | None = None
    """The budget in tokens seen, instead of minutes."""
    streams: int = 2
    """Speculative streams per row (s); 0 for a plain draft."""
    stream_layers: int = 1
    """Layers that streams go through (N_s)."""
    stream_rank: int = 16
    """Rank of the step from which streams start."""
    stream_weight: float = 0.1
    """Weight of each stream's loss (the main loss has 1); Speculative Streaming, section 3."""
    lossless: bool = False
    """Train only the streams, so that the draft's own predictions stay unchanged."""
    learning_rate: float | None = None
    """Peak learning rate; by default one that suits what is trained."""
    batch: int = 32
    """Windows per step."""
    length: int | None = None
    """Tokens per window; by default 256, or half of the target's context if that is less."""
    own_outputs: float = 0.5
    """Share of windows from the target's own outputs."""
    generation: float = 0.2
    """Share of the time spent generating these."""
    seed: int = 0
    device: TrainingDevice = "auto"
    compiled: bool = False
    """Use torch.compile, which first takes a minute and needs a C++ compiler on a CPU."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.minutes is not None and self.tokens is not None:
            raise OptionError("Give the budget in minutes or in tokens, not both.")
        if self.minutes is None and self.tokens is None:
            object.__setattr__(self, "minutes", 30.0)
        if self.lossless and not self.streams:
            raise OptionError("lossless trains only the streams, so streams must be 1 or more.")
        for name, ok, allowed in (
            ("minutes", self.minutes is None or 0 < self.minutes < math.inf, "above 0"),
            ("tokens", self.tokens is None or self.tokens > 0, "above 0"),
            ("streams", 0 <= self.streams <= _MOST_STREAMS, f"from 0 to {_MOST_STREAMS}"),
            ("stream_layers", self.stream_layers >= 1, "1 or more"),
            ("stream_rank", self.stream_rank >= 1, "1 or more"),
            ("stream_weight", 0 < self.stream_weight < math.inf, "above 0"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0"),
            ("batch", self.batch >= 1, "1 or more"),
            (
                "length",
                self.length is None or self.length >= 8 + self.streams,
                "at least streams + 8",
            ),
            ("own_outputs", 0 <= self.own_outputs <= 1, "from 0 to 1"),
            ("generation", 0 <= self.generation < 1, "0 or more, and below 1"),
            ("checkpoint_seconds", self.checkpoint_seconds >= 0, "0 or more"),
        ):
            if not ok:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be {allowed}.")
