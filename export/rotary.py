"""Rotary embeddings: how the builder is told of them, and the tables of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto

from mirror_edge.export import weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BRANCH_ROWS", "Table", "room_for_branches", "settle_positions", "write_tables"]

BRANCH_ROWS = 512
"""The most rows that κ=8 and γ=7 need, 64 roots of 7 tokens, and a few to spare. Each stream needs
as many again: its guesses may be wrong, and it has rows of its own."""
_SCALED = {"linear", "yarn"}
"""Kinds of RoPE scaling that the builder gets wrong, except for gpt-oss."""
_COS, _SIN = 7, 8
"""Inputs of GroupQueryAttention."""


def room_for_branches(model: ModelProto, folder: Path, streams: int = 0) -> int:
    """Lengthen the rotary tables of `model` in place, and return by how many rows.

    GroupQueryAttention requires a table row for every row of the cache. Branches come after the
    context in the cache, but have positions within it, so the new rows are never read. Tables that
    are computed in the graph stay as they are; then it returns 0.
    """
    names = {
        node.input[place]
        for node in model.graph.node
        if node.op_type == "GroupQueryAttention" and len(node.input) > _SIN
        for place in (_COS, _SIN)
        if node.input[place]
    }
    tables = [tensor for tensor in model.graph.initializer if tensor.name in names]
    if len(tables) != len(names):
        return 0
    rows = BRANCH_ROWS * (1 + streams)
    for table in tables:
        values = weights.load(table, folder)
        spare = np.zeros((rows, values.shape[1]), values.dtype)
        weights.append(table, np.concatenate([values, spare]), folder / "weights.bin")
    return rows


class Table(NamedTuple):
    """A rotary table: cosines and sines by position, in initializers of these names."""

    cos: str
    sin: str
    frequencies: NDArray[np.float32]
    """[half]: radians per position."""
    scale: float
    """Factor of all cosines and sines."""

    @classmethod
    def of(cls, cos: str, sin: str, config: Any, rope: dict[str, Any], kind: str | None) -> Table:
        """The table that transformers uses for `rope`, in layers of this `kind`."""
        if rope["rope_type"] == "default":
            half = config.head_dim // 2
            frequencies = rope["rope_theta"] ** -(
                np.arange(half, dtype=np.float32) / np.float32(half)
            )
            return cls(cos, sin, frequencies, 1.0)
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        more = {} if kind is None else {"layer_type": kind}
        found, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", **more)
        return cls(cos, sin, found.numpy(), scale)


def settle_positions(config: Any) -> list[Table]:
    """Rewrite the rotary settings in `config` as the builder reads them.

    Tables that it would get wrong are returned; it makes unscaled ones of their size instead.
    """
    text = getattr(config, "text_config", config)
    if rotary := getattr(config, "no_rope_layers", None):
        config.no_rope_layers = [1] * len(rotary)  # it would omit the attention of those with 0
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    kinds: list[tuple[str, dict[str, Any], str | None]] = [("", rope, None)]
    if "full_attention" in rope:  # Gemma 3
        local, rope = rope["sliding_attention"], rope["full_attention"]
        config.rope_local_base_freq, config.rope_theta = local["rope_theta"], rope["rope_theta"]
        kinds = [("_global", rope, "full_attention"), ("_local", local, "sliding_attention")]
    tables, told = [], dict(rope)
    if rope.get("rope_type") == "longrope":
        told.setdefault("type", "longrope")
    elif rope.get("rope_type") in _SCALED and config.model_type != "gpt_oss":
        tables = [
            Table.of(f"cos_cache{name}", f"sin_cache{name}", text, own, kind)
            for name, own, kind in kinds
        ]
        told = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    config.rope_parameters = told
    return tables


def write_tables(graph: Path, tables: Sequence[Table]) -> None:
    """Overwrite rotary tables of a graph on disk, for as many positions as they have."""
    if not tables:
        return
    model = onnx.load(graph, load_external_data=False)
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for table in tables:
        rows = known[table.cos].dims[0]
        angles = np.outer(np.arange(rows, dtype=np.float32), table.frequencies)
        weights.overwrite(known[table.cos], np.cos(angles) * table.scale, graph.parent)
        weights.overwrite(known[table.sin], np.sin(angles) * table.scale, graph.parent)
    onnx.save(model, graph)
