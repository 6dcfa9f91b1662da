"""What torch trains on: the device, and the precision that it computes fast in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from mirror_edge.errors import OptionError

__all__ = ["autocast", "move", "pick_device"]


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto is the fastest one available.

    Raises:
        OptionError: when it is not available.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there.get(name, False):
        raise OptionError(
            f"--device {name}: torch finds none here. Choose another one or auto, or install the "
            "torch package for it."
        )
    return torch.device(name)


def move(model: torch.nn.Module, device: torch.device) -> None:
    """Move `model` to `device`, in place."""
    model.to(device)  # transformers declares the method of its own models wrongly


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context of bfloat16 where the device supports it, otherwise one that does nothing."""
    fast = {
        "cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "cpu": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    if fast.get(device.type, False):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
