"""Shapes of decoders: those of well-known public models by name, others by their sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["CONTEXT", "SHAPES", "Shape", "shape_of"]

CONTEXT = 8192
"""The context of every shape: a longer one would only change memory plans, not a forward."""
_FEWEST, _MOST = 1024, 1 << 18
"""Fewest and most tokens of a vocabulary."""
_CUSTOM = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions and the family it belongs to."""

    family: Literal["Llama", "Qwen2", "Qwen3"]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int

    def config(self, **more: Any) -> PretrainedConfig:
        """Its configuration for transformers, with an untied head; `more` is added."""
        import transformers

        kind = getattr(transformers, f"{self.family}Config")
        config: PretrainedConfig = kind(
            architectures=[f"{self.family}ForCausalLM"],
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_size,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5 if self.family == "Llama" else 1e-6,
            tie_word_embeddings=False,
            **more,
        )
        return config


SHAPES = {
    "llama-3.1-8b": Shape("Llama", 32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3.2-1b": Shape("Llama", 16, 2048, 32, 8, 64, 8192, 128256),
    "llama-3.2-3b": Shape("Llama", 28, 3072, 24, 8, 128, 8192, 128256),
    "qwen2.5-0.5b": Shape("Qwen2", 24, 896, 14, 2, 64, 4864, 151936),
    "qwen2.5-1.5b": Shape("Qwen2", 28, 1536, 12, 2, 128, 8960, 151936),
    "qwen3-0.6b": Shape("Qwen3", 28, 1024, 16, 8, 128, 3072, 151936),
    "qwen3-1.7b": Shape("Qwen3", 28, 2048, 16, 8, 128, 6144, 151936),
    "qwen3-4b": Shape("Qwen3", 36, 2560, 32, 8, 128, 9728, 151936),
    "smollm2-135m": Shape("Llama", 30, 576, 9, 3, 64, 1536, 49152),
    "smollm2-360m": Shape("Llama", 32, 960, 15, 5, 64, 2560, 49152),
}
"""From the models' published configurations: only what the cost of a forward depends on."""


def shape_of(text: str, option: str, vocabulary: int | None = None) -> Shape:
    """The shape that `option` names: one of `SHAPES`, or ``LAYERSxHIDDEN[xVOCABULARY]``.

    A draft has its target's `vocabulary`, also if a known shape is given.

    Raises:
        OptionError: an unknown name, or numbers that no decoder can have.
    """
    if known := SHAPES.get(text.lower()):
        return replace(known, vocabulary=vocabulary or known.vocabulary)
    found = _CUSTOM.fullmatch(text)
    if found is None:
        raise OptionError(
            f"{option} {text}: is not a known shape. Give one of {', '.join(SHAPES)}, or "
            "LAYERSxHIDDEN or LAYERSxHIDDENxVOCABULARY, such as 4x256."
        )
    layers, hidden = int(found[1]), int(found[2])
    tokens = int(found[3] or vocabulary or SHAPES["smollm2-135m"].vocabulary)
    if vocabulary is not None and tokens != vocabulary:
        raise OptionError(
            f"{option} {text}: the target's vocabulary has {vocabulary} tokens, and the draft must "
            f"have the same. Write {layers}x{hidden}."
        )
    if not 1 <= layers <= 1000 or not 64 <= hidden <= 1 << 16 or hidden % 32:
        raise OptionError(
            f"{option} {text}: must have 1 to 1000 layers and a hidden size of 64 or more that is "
            "a multiple of 32."
        )
    if not _FEWEST <= tokens <= _MOST:
        raise OptionError(
            f"{option} {text}: a vocabulary must have from {_FEWEST} to {_MOST} tokens."
        )
    size = 32 if hidden % 64 or hidden < 256 else 64
    heads = hidden // size
    shared = next(n for n in (4, 3, 2, 1) if heads % n == 0)
    wide = -(-hidden * 8 // 3 // 32) * 32
    return Shape("Llama", layers, hidden, heads, heads // shared, size, wide, tokens)
