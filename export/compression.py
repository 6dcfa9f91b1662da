"""Weights in fewer bits: scales or palettes with which Core ML unpacks a layer's weights.

coremltools takes them from buffers of the torch module, named as in its guide "Use compression info
embedded in torch models". The weight itself is rounded too, so the torch module computes what the
program will.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BLOCK", "GROUP", "palettise", "quantise"]

BLOCK = 32
"""Inputs that share a scale in 4 bits; in 8 bits, all inputs of an output do."""
GROUP = 32
"""Outputs that share a palette of 16 weights."""
_QUANTISED, _PALETTISED = torch.tensor([3]), torch.tensor([2])
_ROUNDS = 25


def quantise(layer: nn.Linear | nn.Embedding, bits: int) -> None:
    """Round the weight [out, in, …] to whole multiples of a scale."""
    weight = layer.weight.detach()
    rows = weight.flatten(1)
    size = rows.shape[1]
    block = BLOCK if bits == 4 and size % BLOCK == 0 else size
    most = 2 ** (bits - 1) - 1
    blocks = rows.reshape(len(rows), -1, block)
    scale = (blocks.abs().amax(2) / most).clamp(min=2.0**-14).half().float()
    whole = (blocks / scale[..., None]).round().clamp(-most, most)
    _set(layer, (whole * scale[..., None]).reshape(weight.shape))
    _note(layer, compression_type=_QUANTISED)
    _note(layer, quantization_n_bits=torch.tensor(bits), quantization_scale=scale)


def palettise(layer: nn.Linear) -> None:
    """Round the weight [out, in, …] to the 16 values of each group's palette, by k-means."""
    weight = layer.weight.detach()
    group = GROUP if len(weight) % GROUP == 0 else len(weight)
    values = weight.reshape(len(weight) // group, -1)
    palettes = _centres(values, 16).half().float()
    middles = (palettes[:, 1:] + palettes[:, :-1]) / 2
    nearest = torch.searchsorted(middles, values.contiguous())
    _set(layer, palettes.gather(1, nearest).reshape(weight.shape))
    shape = (len(palettes), *(1,) * (weight.dim() - 1), 16, 1)
    _note(layer, compression_type=_PALETTISED, lut=palettes.reshape(shape))


def _centres(values: Tensor, count: int) -> Tensor:
    """Ascending k-means centres [groups, count] of each row of `values` [groups, n]."""
    ordered = values.sort(1).values
    size = ordered.shape[1]
    sums = F.pad(ordered.double().cumsum(1), (1, 0))
    centres = ordered[:, torch.linspace(0, size - 1, count).long()].contiguous()
    for _ in range(_ROUNDS):
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        edges = F.pad(torch.searchsorted(ordered, middles), (1, 0))
        edges = F.pad(edges, (0, 1), value=size)
        counts = edges.diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / counts
        centres = torch.where(counts > 0, means.float(), centres)
    return centres


def _set(layer: nn.Linear | nn.Embedding, weight: Tensor) -> None:
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _note(layer: nn.Module, **entries: Tensor) -> None:
    for name, entry in entries.items():
        layer.register_buffer(f"_COREML_/weight/{name}", entry)
