"""A decoder read from the model builder's ONNX graphs: a GenAI folder's, or a bundle's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from mirror_edge import bundle as bundles
from mirror_edge.errors import ExportError
from mirror_edge.export import weights
from mirror_edge.export.decoder import Decoder, DecoderSpec
from mirror_edge.export.exit_head import Correction, Exit
from mirror_edge.export.facts import graph_precision
from mirror_edge.export.graph import attribute
from mirror_edge.export.source import Source
from mirror_edge.export.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["graph_exit", "graph_files", "graph_streams", "read_graphs"]

_NORMS = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
_EXIT, _STREAMS = "exit/", "mirror/stream/"
"""Prefixes of the names of an exit head's own weights, and of a stream's."""
_FINAL = re.compile(r"model\.layers\.\d+\.final_norm_layernorm\.weight")


def graph_files(source: Source, role: str) -> list[Path]:
    """The graphs that make up the model: one, or the two of a bundled target."""
    if source.graph is not None:
        return [source.graph]
    manifest = bundles.read(source.folder).manifest
    if manifest.format != "onnx":
        raise ExportError(
            f"{source.folder}: its graphs are {manifest.format} already. Give an ONNX bundle."
        )
    if role == "target":
        names = [manifest.target.prefix, manifest.target.suffix]
    elif manifest.draft is None:
        raise ExportError(f"{source.folder}: this bundle has no draft.")
    elif manifest.draft.head_vocabulary:
        raise ExportError(
            f"{source.folder}: its draft names {manifest.draft.named:,} tokens only. "
            "Export it without --draft-vocabulary first."
        )
    else:
        names = [manifest.draft.graph]
    return [source.folder / name for name in names]


def read_graphs(files: Sequence[Path], architecture: str, context: int) -> Decoder:
    """The decoder whose layers are in `files`, in float32, with tables for `context` positions.

    Raises:
        ExportError: for quantised graphs, or those of another tool.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        model = onnx.load(file, load_external_data=False)
        if graph_precision(model) not in {"fp16", "fp32"}:
            raise ExportError(
                f"{file}: is quantised, and rounding twice makes a model worse. "
                "Give the checkpoint that it was made from."
            )
        for tensor in model.graph.initializer:
            values: NDArray[Any] = np.array(weights.load(tensor, file.parent))
            ours = tensor.name.startswith(_STREAMS)
            if values.dtype in (np.float16, np.float32) and not ours:
                found |= _named(tensor.name, torch.from_numpy(values).float())
    try:
        cos, sin = found.pop("cos_cache"), found.pop("sin_cache")
        spec = _spec(model, found, architecture, cos)
        return Decoder(spec, _unpacked(found, spec), *_tables(cos, sin, context))
    except (KeyError, StopIteration, ValueError) as error:
        raise ExportError(
            f"{files[0]}: was not made by the model builder from a known decoder: {error}. "
            "Give the checkpoint that it was made from."
        ) from error


def graph_exit(file: Path, layer: int) -> Exit:
    """The tokens and the correction of an exit head's graph, which sits after `layer`."""
    found = _under(file, _EXIT)
    correction = None
    if "a" in found:
        correction = Correction(found["a"].astype(np.float32), found["b"].astype(np.float32))
    return Exit(layer, found.get("tokens"), correction)


def graph_streams(file: Path, count: int, layers: int) -> Streams:
    """The streams that are built into a draft's graph."""
    found = _under(file, _STREAMS)
    offset, down, up = (found[name].astype(np.float32) for name in ("offset", "down", "up"))
    apart = up.reshape(len(up), count, -1).transpose(1, 0, 2)
    return Streams(offset, down, np.ascontiguousarray(apart), layers)


def _under(file: Path, prefix: str) -> dict[str, NDArray[Any]]:
    """The weights of a graph whose names start with `prefix`, by the rest of their names."""
    return {
        tensor.name.removeprefix(prefix): np.array(weights.load(tensor, file.parent))
        for tensor in onnx.load(file, load_external_data=False).graph.initializer
        if tensor.name.startswith(prefix)
    }


def _named(name: str, values: Tensor) -> dict[str, Tensor]:
    """A weight by its name in a checkpoint, transposed as it is there."""
    if _FINAL.fullmatch(name):
        return {"model.norm.weight": values}
    name = name.replace(".attn.", ".self_attn.").replace(".layernorm.weight", ".weight")
    if name.endswith(".MatMul.weight"):
        return {name.replace(".MatMul.", "."): values.T.contiguous()}
    return {name.replace(".Add.bias", ".bias"): values}


def _spec(
    model: ModelProto, found: dict[str, Tensor], architecture: str, cos: Tensor
) -> DecoderSpec:
    attention = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    norm = next(n for n in model.graph.node if n.op_type in _NORMS)
    if _number(attention, "local_window_size") > 0 or _number(attention, "softcap"):
        raise ValueError("its attention has a window or a soft cap")
    head, mlp = found["lm_head.weight"], found["model.layers.0.mlp.gate_proj.weight"]
    return DecoderSpec(
        architecture=architecture,
        layers=sum(name.endswith(".mlp.gate_proj.weight") for name in found),
        hidden=head.shape[1],
        mlp=len(mlp),
        vocabulary=len(head),
        context=len(cos),
        heads=int(_number(attention, "num_heads")),
        kv_heads=int(_number(attention, "kv_num_heads")),
        head_size=2 * cos.shape[1],
        epsilon=_number(norm, "epsilon"),
    )


def _number(node: NodeProto, name: str) -> float:
    value = attribute(node, name)
    return float(value) if isinstance(value, int | float) else 0.0


def _unpacked(found: dict[str, Tensor], spec: DecoderSpec) -> dict[str, Tensor]:
    """Separate queries, keys and values; the embedding is the head if there is no other."""
    sizes = [size * spec.head_size for size in (spec.heads, spec.kv_heads, spec.kv_heads)]
    apart = {"model.embed_tokens.weight": found["lm_head.weight"]}
    for name, values in found.items():
        if ".qkv_proj." in name:
            for one, part in zip("qkv", values.split(sizes), strict=True):
                apart[name.replace("qkv_proj", f"{one}_proj")] = part.contiguous()
        else:
            apart[name] = values
    return apart


def _tables(cos: Tensor, sin: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Tables of `context` rows; only padding is beyond the model's own, so any value will do."""
    missing = max(0, context - len(cos))
    cos, sin = (torch.cat([table, table[-1:].expand(missing, -1)]) for table in (cos, sin))
    return cos[:context].contiguous(), sin[:context].contiguous()
