"""A decoder read from a Hugging Face folder: its configuration, weights and rotary tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mirror_edge.errors import ExportError
from mirror_edge.export.decoder import ARCHITECTURES, Decoder, DecoderSpec
from mirror_edge.export.source import Source, read_json

__all__ = ["decoder_spec", "read_checkpoint", "rotary_tables"]

_INDEX = "model.safetensors.index.json"


def read_checkpoint(source: Source, context: int) -> Decoder:
    """The decoder of a checkpoint, in float32, with tables for `context` positions.

    Raises:
        ExportError: naming what the decoder does not support, or the file that is damaged.
    """
    spec = decoder_spec(source)
    weights = _weights(source.folder)
    if source.config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    weights = {name: w for name, w in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    cos, sin = rotary_tables(source, spec.head_size, context)
    try:
        return Decoder(spec, weights, cos, sin)
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"{source.folder}: its weights are not those of {spec.architecture}: {error}. "
            "Copy the model folder again."
        ) from error


def decoder_spec(source: Source) -> DecoderSpec:
    """The shape of a checkpoint.

    Raises:
        ExportError: for an architecture or activation that the decoder does not support.
    """
    config = source.config
    architecture = (config.get("architectures") or ["an unnamed architecture"])[0]
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{source.folder}: Core ML programs are made from {', '.join(ARCHITECTURES)}, "
            f"and this is {architecture}. Choose another model, or --format onnx."
        )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ExportError(
            f"{source.folder}: its hidden_act is {activation}, but only silu "
            "is supported. Choose another model, or --format onnx."
        )
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return DecoderSpec(
            architecture=architecture,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            mlp=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
        )
    except KeyError as error:
        raise ExportError(
            f"{source.folder}: config.json lacks {error}. Copy the model folder again."
        ) from error
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"{source.folder}: config.json has sizes that are not numbers ({error}). "
            "Copy the model folder again."
        ) from error


def rotary_tables(source: Source, size: int, context: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position and pair of features, each [context, size / 2]."""
    try:
        frequencies = _frequencies(source, size)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{source.folder}: config.json does not define how its rotary embeddings are scaled "
            f"({type(error).__name__}: {error}). Copy the model folder again."
        ) from error
    angles = torch.outer(torch.arange(context).float(), frequencies)
    return angles.cos(), angles.sin()


def _frequencies(source: Source, size: int) -> Tensor:
    config = source.config
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    frequencies: Tensor = base ** -(torch.arange(0, size, 2).float() / size)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    if kind != "default":
        raise ExportError(
            f"{source.folder}: its rotary embeddings are scaled by {kind}; only "
            "linear and llama3 are supported. Choose another model, or --format onnx."
        )
    return frequencies


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Low frequencies divided by the factor, high ones kept, and a ramp in between."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    waves = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    scaled: Tensor = frequencies * (kept + (1 - kept) / float(scaling["factor"]))
    return scaled


def _weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, in float32."""
    named = read_json(folder / _INDEX).get("weight_map", {})
    if not isinstance(named, dict):
        raise ExportError(
            f"{folder / _INDEX}: weight_map must be an object. Copy the model folder again."
        )
    files = sorted({str(file) for file in named.values()})
    weights: dict[str, Tensor] = {}
    for file in files or ["model.safetensors"]:
        try:
            for name, tensor in load_file(folder / file).items():
                weights[name] = tensor.float()
        except Exception as error:
            raise ExportError(
                f"{folder / file}: cannot be read ({error}). Core ML programs are made from "
                "safetensors; copy the model folder again."
            ) from error
    return weights
