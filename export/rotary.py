"""The rotary tables of a graph: room for branches behind the context, and those made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from mirror_edge.export import weights

__all__ = ["BRANCH_ROWS", "room_for_branches", "write_tables"]

BRANCH_ROWS = 512
"""What κ=8 and γ=7 take at most, 64 roots of 7 tokens, and a few; as much again for each stream,
whose guesses may be wrong and which has rows of its own."""
_COS, _SIN = 7, 8
"""GroupQueryAttention's inputs."""


def room_for_branches(model: ModelProto, folder: Path, streams: int = 0) -> int:
    """Lengthen the rotary tables of `model` in place, and return by how many rows.

    GroupQueryAttention wants a table row for every row of the cache. Branches stand behind the
    context in the cache, though their positions lie within it, so the new rows are never read.
    Tables that are computed in the graph stay as they are: 0.
    """
    names = {
        node.input[place]
        for node in model.graph.node
        if node.op_type == "GroupQueryAttention"
        for place in (_COS, _SIN)
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


def write_tables(graph: Path, cos: str, sin: str, base: float) -> None:
    """Write the tables `cos` and `sin` of a graph on disk anew, as plain ones of this base."""
    model = onnx.load(graph, load_external_data=False)
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    rows, half = tables[cos].dims
    turns = base ** -(np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.outer(np.arange(rows, dtype=np.float32), turns)
    weights.overwrite(tables[cos], np.cos(angles), graph.parent)
    weights.overwrite(tables[sin], np.sin(angles), graph.parent)
    onnx.save(model, graph)
