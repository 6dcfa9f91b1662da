"""The embedding of a quantised model, of which each token reads one row.

The model builder leaves it in float32, unless it is the LM head too, which is often more than all
other weights in 4 bits. Rounding it to 8 bits saves disk and download, not time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from mirror_edge.export import weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "MIDDLE", "read_in_place", "round_embedding"]

BLOCK = 32
"""Neighbouring entries of a row that share a scale."""
MIDDLE, _MOST = 128, 127
"""What stands for zero in unsigned 8 bits, and the farthest from it."""
_ROWS = 4096
"""Rows that are rounded at once, to bound memory."""


def round_embedding(model: ModelProto, file: Path) -> None:
    """Round the embedding of `model`, whose weights are in `file`, in place.

    An embedding that other nodes read too, such as an LM head in float32, stays as it is.
    """
    graph = model.graph
    lookup = _lookup(model, "Gather")
    if lookup is None or sum(lookup.input[0] in node.input for node in graph.node) > 1:
        return
    table = next((t for t in graph.initializer if t.name == lookup.input[0]), None)
    if table is None or table.data_type not in {TensorProto.FLOAT, TensorProto.FLOAT16}:
        return
    whole, scales = _rounded(weights.load(table, file.parent))
    graph.initializer.remove(table)
    data, scale = f"{lookup.input[0]}_Q8", f"{lookup.input[0]}_scales"
    graph.initializer.append(weights.store(data, whole, file))
    graph.initializer.append(weights.store(scale, scales, file))
    lookup.CopyFrom(
        helper.make_node(
            "GatherBlockQuantized",
            [data, lookup.input[1], scale],
            lookup.output,
            lookup.name,
            domain="com.microsoft",
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
    )
    weights.compact(model, file)


def read_in_place(model: ModelProto) -> None:
    """Let an embedding in 4 bits that is the LM head too read the head's weight, in place.

    The builder reshapes that weight for it, of which ONNX Runtime would keep a copy in memory.
    """
    graph = model.graph
    lookup = _lookup(model, "GatherBlockQuantized")
    made = {name: node for node in graph.node for name in node.output}
    shaping = lookup and made.get(lookup.input[0])
    if not lookup or not shaping or shaping.op_type != "Reshape":
        return
    weight = next((t for t in graph.initializer if t.name == shaping.input[0]), None)
    if weight is None or weight.data_location != TensorProto.EXTERNAL:
        return
    rows = graph.initializer.add()
    rows.CopyFrom(weight)
    rows.name = f"{weight.name}/rows"
    del rows.dims[:]
    rows.dims.extend([weight.dims[0], math.prod(weight.dims[1:])])
    lookup.input[0] = rows.name
    graph.node.remove(shaping)


def _lookup(model: ModelProto, operator: str) -> NodeProto | None:
    """The node that looks up the embedding of each token, if it is this `operator`."""
    return next(
        (
            node
            for node in model.graph.node
            if node.op_type == operator and node.input[1] == "input_ids"
        ),
        None,
    )


def _rounded(table: NDArray[np.floating]) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Whole numbers [V, H] around `MIDDLE`, and scales [V, ⌈H/BLOCK⌉] in the type of `table`."""
    rows, width = table.shape
    blocks = -(-width // BLOCK)
    whole = np.empty((rows, width), np.uint8)
    scales = np.empty((rows, blocks), table.dtype)
    for start in range(0, rows, _ROWS):
        part = np.asarray(table[start : start + _ROWS])
        padded = np.pad(part, ((0, 0), (0, blocks * BLOCK - width)))
        padded = padded.reshape(len(part), blocks, BLOCK)
        scale = np.abs(padded).max(2) / _MOST
        steps = np.rint(padded / np.where(scale > 0, scale, 1)[..., None]) + MIDDLE
        whole[start : start + _ROWS] = steps.reshape(len(part), -1)[:, :width]
        scales[start : start + _ROWS] = scale
    return whole, scales
