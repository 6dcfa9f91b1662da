"""What a draft is to be, and how long and how to train it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mirror_edge.errors import OptionError

__all__ = ["DraftShape", "Recipe", "TrainingDevice"]

TrainingDevice = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class DraftShape:
    """The dimensions of a fresh draft: a Llama decoder with tied embeddings.

    The head size must be a multiple of 16, as ONNX Runtime's GroupQueryAttention wants it.
    """

    layers: int
    hidden: int
    heads: int = 0
    """0: as many as make heads of 32, or of 64 from a hidden size of 512 on."""
    kv_heads: int = 0
    """0: half as many as `heads`, if that is a whole number."""
    intermediate: int = 0
    """0: twice `hidden`."""

    def __post_init__(self) -> None:
        """Fill in what is 0, and refuse what does not fit together."""
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
                raise OptionError(f"The draft's {name} is {getattr(self, name)}; it must be 1 up.")
        if self.hidden % (16 * heads):
            raise OptionError(
                f"The draft's hidden size {self.hidden} does not make {heads} heads whose size is "
                "a multiple of 16."
            )
        if heads % kv_heads:
            raise OptionError(f"The draft's {heads} heads cannot share {kv_heads} key-value heads.")


@dataclass(frozen=True)
class Recipe:
    """How a draft is trained."""

    minutes: float | None = None
    """The budget; 30 minutes when there is none in tokens either."""
    tokens: int | None = None
    """The budget in tokens seen, instead of minutes."""
    streams: int = 2
    """Speculative streams a row (s); 0 for a plain draft."""
    stream_layers: int = 1
    """Layers that they go through (N_s)."""
    stream_rank: int = 16
    """Of their low-rank start."""
    stream_weight: float = 0.1
    """Of each stream's loss beside the main rows' 1; Speculative Streaming, section 3."""
    lossless: bool = False
    """Train the streams alone, so that the draft's own predictions stay as they are."""
    learning_rate: float | None = None
    """At its height; by default one that suits what is trained."""
    batch: int = 32
    """Windows a step."""
    length: int | None = None
    """Tokens a window; 256 by default, or half of the target's context if that is less."""
    own_outputs: float = 0.5
    """Share of the windows that the target wrote itself."""
    generation: float = 0.2
    """Share of the time that the target may take to write them."""
    seed: int = 0
    device: TrainingDevice = "auto"
    compiled: bool = False
    """With torch.compile, which takes a minute first and needs a C++ compiler on a CPU."""
    checkpoint_seconds: float = 120.0
    """How often a checkpoint is written."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.minutes is not None and self.tokens is not None:
            raise OptionError("There are minutes and tokens; give the budget in one of them.")
        if self.minutes is None and self.tokens is None:
            object.__setattr__(self, "minutes", 30.0)
        if self.lossless and not self.streams:
            raise OptionError("lossless trains the streams alone, so streams must be 1 or more.")
        for name, ok, allowed in (
            ("minutes", self.minutes is None or 0 < self.minutes < math.inf, "above 0"),
            ("tokens", self.tokens is None or self.tokens > 0, "above 0"),
            ("streams", self.streams >= 0, "0 or more"),
            ("stream_layers", self.stream_layers >= 1, "1 or more"),
            ("stream_rank", self.stream_rank >= 1, "1 or more"),
            ("stream_weight", 0 < self.stream_weight < math.inf, "above 0"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0"),
            ("batch", self.batch >= 1, "1 or more"),
            (
                "length",
                self.length is None or self.length >= 8 + self.streams,
                "8 more than streams up",
            ),
            ("own_outputs", 0 <= self.own_outputs <= 1, "0 to 1"),
            ("generation", 0 <= self.generation < 1, "0 or more, below 1"),
            ("checkpoint_seconds", self.checkpoint_seconds >= 0, "0 or more"),
        ):
            if not ok:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be {allowed}.")
