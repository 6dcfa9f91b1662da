"""A small decoder in torch, from which the Core ML programs are converted.

RMS norms, rotary embeddings, grouped-query attention with optional biases and query and key norms,
SwiGLU, and an LM head that may be tied: Llama, Mistral, Qwen2 and Qwen3. Modules are named as in
their checkpoints. There is no cache here: the caller decides how rows attend, so the same layers
serve a whole text, a cache that is a state, and one that is an input and an output.

Rows are [1, S, features], or [1, features, 1, S] ("in channels"), the layout that the Neural Engine
prefers, in which a linear layer is a 1x1 convolution. The number of axes tells which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ARCHITECTURES",
    "UNSEEN",
    "Attend",
    "Attention",
    "Decoder",
    "DecoderSpec",
    "Gated",
    "Layer",
    "Linear",
    "Norm",
    "Pieces",
    "Rotary",
    "head_of",
]

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the rows' positions, each [S, head_size / 2]."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From layer, queries [1, kv_heads, G·S, D], keys and values [1, kv_heads, S, D] to the attended
queries. The G query heads that share a key head are more rows of it, so keys are never repeated."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""The architectures that consist of these layers."""
UNSEEN = -1e4
"""Added to an attention score to mask it; within float16's range."""
_LONGEST_AXIS = 16384
"""Longest axis of a tensor on the Neural Engine."""


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a decoder."""

    architecture: str
    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    context: int
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    """Epsilon of the norms."""

    @property
    def group(self) -> int:
        """G, how many query heads share a key head."""
        return self.heads // self.kv_heads


class Decoder(nn.Module):
    """A whole decoder, with the rotary tables of its context."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, spec: DecoderSpec, weights: Mapping[str, Tensor], cos: Tensor, sin: Tensor
    ) -> None:
        """Take `weights` by their names in a checkpoint, and tables [context, head_size / 2].

        Without an ``lm_head`` the embedding is the head.

        Raises:
            ValueError: naming weights that are missing, unexpected or of another shape.
        """
        super().__init__()
        self.spec = spec
        self.pieces: Pieces | None = None
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(spec.vocabulary, spec.hidden)
            self.layers = nn.ModuleList(
                Layer(spec, index, weights.keys()) for index in range(spec.layers)
            )
            self.norm = Norm(spec.hidden, spec.epsilon)
            self.lm_head = Linear(spec.hidden, spec.vocabulary, bias=False)
        named = {name.removeprefix("model."): weight for name, weight in weights.items()}
        named.setdefault("lm_head.weight", named["embed_tokens.weight"])
        try:
            self.load_state_dict(named, assign=True)
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from error
        self.requires_grad_(False)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, ids: Tensor) -> Tensor:
        """The logits [1, S, vocabulary] of a whole text."""
        rows, size = self.embed(ids), ids.shape[1]
        mask = torch.full((size, size), -torch.inf).triu(1).repeat(self.spec.group, 1)
        rotary = self.rotary(torch.arange(size))
        for layer in self.layers:
            rows = layer(
                rows, rotary, lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, mask)
            )
        logits = self.head(rows)
        if self.pieces is not None:
            return logits.reshape(-1, size)[: self.spec.vocabulary].T[None]
        return logits

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens [1, S] as rows."""
        rows: Tensor = self.embed_tokens(ids)
        return rows if self.pieces is None else rows.transpose(1, 2)[:, :, None]

    def head(self, rows: Tensor) -> Tensor:
        """Logits of the last layer's rows, as the head or its pieces return them."""
        logits: Tensor = (self.pieces or self.lm_head)(self.norm(rows))
        return logits

    def as_channels(self) -> Decoder:
        """Change to the layout [1, features, 1, S], in place; the head is split into pieces."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.weight = nn.Parameter(module.weight[:, :, None, None], requires_grad=False)
        self.pieces = Pieces(self.lm_head.weight)
        del self.lm_head
        return self

    def rotary(self, positions: Tensor) -> Rotary:
        """The tables' rows at `positions`."""
        return self.cos[positions], self.sin[positions]


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to the residual."""

    def __init__(self, spec: DecoderSpec, index: int, names: Set[str]) -> None:
        """Layer `index`; the weights' `names` tell which biases and norms it has."""
        super().__init__()
        self.index = index
        self.input_layernorm = Norm(spec.hidden, spec.epsilon)
        self.self_attn = Attention(spec, f"model.layers.{index}.self_attn", names)
        self.post_attention_layernorm = Norm(spec.hidden, spec.epsilon)
        self.mlp = Gated(spec, f"model.layers.{index}.mlp", names)

    def forward(self, rows: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """The residual stream after this layer, in the layout of `rows`."""
        rows = rows + self.self_attn(self.input_layernorm(rows), self.index, rotary, attend)
        residual: Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return residual


class Attention(nn.Module):
    """Attention with rotary embeddings; the caller's `Attend` combines rows and cache."""

    def __init__(self, spec: DecoderSpec, name: str, names: Set[str]) -> None:
        """See `Layer`."""
        super().__init__()
        self.spec = spec
        inner, shared = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        self.q_proj = Linear(spec.hidden, inner, f"{name}.q_proj.bias" in names)
        self.k_proj = Linear(spec.hidden, shared, f"{name}.k_proj.bias" in names)
        self.v_proj = Linear(spec.hidden, shared, f"{name}.v_proj.bias" in names)
        self.o_proj = Linear(inner, spec.hidden, f"{name}.o_proj.bias" in names)
        normed = f"{name}.q_norm.weight" in names
        self.q_norm = Norm(spec.head_size, spec.epsilon, of_heads=True) if normed else nn.Identity()
        self.k_norm = Norm(spec.head_size, spec.epsilon, of_heads=True) if normed else nn.Identity()

    def forward(self, rows: Tensor, index: int, rotary: Rotary, attend: Attend) -> Tensor:
        """Attended rows, in the layout of `rows`."""
        spec = self.spec
        queries = self.q_norm(_heads(self.q_proj(rows), spec.heads, spec.head_size))
        keys = self.k_norm(_heads(self.k_proj(rows), spec.kv_heads, spec.head_size))
        values = _heads(self.v_proj(rows), spec.kv_heads, spec.head_size)
        grouped = _rotate(queries, rotary).reshape(1, spec.kv_heads, -1, spec.head_size)
        attended = attend(index, grouped, _rotate(keys, rotary), values)
        heads = attended.reshape(1, spec.heads, -1, spec.head_size)
        inner = spec.heads * spec.head_size
        if rows.dim() == 4:
            merged = heads.transpose(2, 3).reshape(1, inner, 1, -1)
        else:
            merged = heads.transpose(1, 2).reshape(1, -1, inner)
        out: Tensor = self.o_proj(merged)
        return out


class Gated(nn.Module):
    """The MLP: SwiGLU."""

    def __init__(self, spec: DecoderSpec, name: str, names: Set[str]) -> None:
        """See `Layer`."""
        super().__init__()
        self.gate_proj = Linear(spec.hidden, spec.mlp, f"{name}.gate_proj.bias" in names)
        self.up_proj = Linear(spec.hidden, spec.mlp, f"{name}.up_proj.bias" in names)
        self.down_proj = Linear(spec.mlp, spec.hidden, f"{name}.down_proj.bias" in names)

    def forward(self, rows: Tensor) -> Tensor:
        """From rows to rows, in either layout."""
        mixed: Tensor = self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))
        return mixed


class Linear(nn.Linear):
    """A linear layer in either layout; in channels, its weight is [out, in, 1, 1]."""

    def forward(self, rows: Tensor) -> Tensor:
        """[1, S, in] to [1, S, out], or [1, in, 1, S] to [1, out, 1, S]."""
        if self.weight.dim() == 4:
            return F.conv2d(rows, self.weight, self.bias)
        return F.linear(rows, self.weight, self.bias)


class Pieces(nn.ModuleList):
    """A head in channels as pieces of one size that fit a device, the last one zero-padded."""

    def __init__(self, weight: Tensor) -> None:
        """Split `weight` [out, in, 1, 1]."""
        count = math.ceil(len(weight) / _LONGEST_AXIS)
        size = 32 * math.ceil(len(weight) / count / 32)
        padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, count * size - len(weight)))
        super().__init__(head_of(piece) for piece in padded.split(size))

    def forward(self, rows: Tensor) -> Tensor:
        """Logits [pieces, size, 1, S], whose first two axes together are the vocabulary."""
        return torch.cat([piece(rows) for piece in self])


def head_of(weight: Tensor) -> Linear:
    """A head with this `weight`, such as some rows of another head's."""
    with torch.device("meta"):
        head = Linear(weight.shape[1], len(weight), bias=False)
    head.weight = nn.Parameter(weight, requires_grad=False)
    return head


class Norm(nn.Module):
    """The RMS norm over the features of rows in either layout, or over those of each head."""

    floor: Tensor

    def __init__(self, size: int, epsilon: float, *, of_heads: bool = False) -> None:
        """Over `size` features."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        floor = torch.tensor(epsilon**0.5, device="cpu")
        self.register_buffer("floor", floor, persistent=False)
        self.least, self.of_heads = epsilon**0.5, of_heads

    def forward(self, rows: Tensor) -> Tensor:
        """Squares of a residual stream overflow float16, so rows are first scaled to at most 1.

        The floor keeps that exact: epsilon is scaled along with the rows.
        """
        channels = rows.dim() == 4 and not self.of_heads
        axis = 1 if channels else -1
        largest = rows.abs().amax(axis, keepdim=True).clamp(min=self.least)
        small, floor = rows / largest, self.floor / largest
        scaled = small * torch.rsqrt((small * small).mean(axis, keepdim=True) + floor * floor)
        return scaled * (self.weight[:, None, None] if channels else self.weight)


def _rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = rotary
    half = cos.shape[-1]
    one, two = heads[..., :half], heads[..., half:]
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def _heads(rows: Tensor, heads: int, size: int) -> Tensor:
    """Rows in either layout as [1, heads, S, D]."""
    if rows.dim() == 4:
        return rows.reshape(1, heads, size, -1).transpose(2, 3)
    return rows.reshape(1, -1, heads, size).transpose(1, 2)
