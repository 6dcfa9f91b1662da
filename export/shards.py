"""A checkpoint in Hugging Face's format, written tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

__all__ = ["DType", "size", "write_checkpoint"]

DType = Literal["float16", "bfloat16", "float32"]

_SHARD = 1 << 30
"""Bytes per file of weights; a larger tensor gets its own file."""


def size(config: PretrainedConfig, dtype: DType) -> int:
    """The size of a model's weights in bytes."""
    width: int = getattr(torch, dtype).itemsize
    return width * sum(math.prod(shape) for shape in _parameters(config).values())


def write_checkpoint(
    folder: Path,
    config: PretrainedConfig,
    weight: Callable[[str, tuple[int, ...]], Tensor],
    dtype: DType,
    on_share: Callable[[float], None],
) -> int:
    """Write configuration and weights to `folder`; returns the number of parameters.

    `weight` makes a parameter from its name and shape; at most one file of them is in memory.
    """
    config.dtype = dtype
    config.save_pretrained(folder)
    stored: torch.dtype = getattr(torch, dtype)
    shapes = _parameters(config)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    shards = list(_shards(sizes, stored.itemsize))
    total, written = sum(sizes.values()), 0
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = weight(name, shapes[name]).to(stored)
            written += sizes[name]
            on_share(written / total)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total * stored.itemsize}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def _parameters(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name, in order."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _shards(sizes: dict[str, int], width: int) -> Iterator[list[str]]:
    """The names in order, one file at a time."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size * width > _SHARD:
            yield names
            names, held = [], 0
        names.append(name)
        held += size * width
    yield names
