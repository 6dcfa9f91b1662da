"""The embedding of a quantised model, of which each token reads one row.

Left in float32 it is often larger than all other weights in 4 bits. Where it is the LM head's
matrix too, it reads the head's rows; otherwise it is rounded to 8 bits.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from mirror_edge.export import weights
from mirror_edge.export.exit_head import head_of
from mirror_edge.export.graph import attribute

__all__ = ["BLOCK", "MIDDLE", "read_in_place", "round_embedding"]

BLOCK = 32
"""Neighbouring entries of a row that share a scale."""
MIDDLE, _MOST = 128, 127
"""What stands for zero in unsigned 8 bits, and the farthest from it."""
_ROWS = 4096
"""Rows that are rounded at once, to bound memory."""
_SAMPLE = 64
"""Rows that show whether two matrices are the same."""
_LOOKUP = "GatherBlockQuantized"


def round_embedding(model: ModelProto, file: Path) -> None:
    """Give `model`, whose weights are in `file`, an embedding in 8 bits, in place.

    An embedding that other nodes read too, such as an LM head in float32, stays.
    """
    graph = model.graph
    lookup = _reader(model, "Gather")
    if lookup is None or sum(lookup.input[0] in node.input for node in graph.node) > 1:
        return
    table = _stored(model, lookup.input[0])
    if table is None or table.data_type not in {TensorProto.FLOAT, TensorProto.FLOAT16}:
        return
    data, scales = _head_rows(model, table, file.parent) or _rounded(model, table, file)
    node = helper.make_node(
        _LOOKUP,
        [data, lookup.input[1], scales],
        lookup.output,
        lookup.name,
        domain="com.microsoft",
        bits=8,
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )
    lookup.CopyFrom(node)
    graph.initializer.remove(table)
    weights.compact(model, file)


def read_in_place(model: ModelProto) -> None:
    """Let an embedding that the builder has made read the LM head's rows do so in place.

    It reshapes the head's weight for that, of which ONNX Runtime would keep a copy in memory.
    """
    graph = model.graph
    lookup = _reader(model, _LOOKUP)
    made = {name: node for node in graph.node for name in node.output}
    shaping = lookup and made.get(lookup.input[0])
    if not lookup or not shaping or shaping.op_type != "Reshape":
        return
    weight = _stored(model, shaping.input[0])
    if weight is None or weight.data_location != TensorProto.EXTERNAL:
        return
    lookup.input[0] = _rows_of(model, weight)
    graph.node.remove(shaping)


def _reader(model: ModelProto, operator: str) -> NodeProto | None:
    """The node that looks up the embedding of each token, if it is this `operator`."""
    return next(
        (
            node
            for node in model.graph.node
            if node.op_type == operator and node.input[1] == "input_ids"
        ),
        None,
    )


def _stored(model: ModelProto, name: str) -> TensorProto | None:
    return next((tensor for tensor in model.graph.initializer if tensor.name == name), None)


def _head_rows(model: ModelProto, table: TensorProto, folder: Path) -> tuple[str, str] | None:
    """The LM head's rows and their scales, if it is `table` in 8 bits."""
    head = head_of(model)
    if attribute(head, "bits") != 8 or any(head.input[3:]):
        return None
    weight, scales = (_stored(model, name) for name in head.input[1:3])
    size, width = table.dims
    if weight is None or scales is None or list(weight.dims) != [size, width // BLOCK, BLOCK]:
        return None
    whole = weights.load(weight, folder)[:_SAMPLE].astype(np.float32) - MIDDLE
    steps = weights.load(scales, folder).reshape(size, -1, 1)[:_SAMPLE]
    exact = weights.load(table, folder)[:_SAMPLE].reshape(whole.shape)
    # The largest entry may be clipped by a step.
    same = (np.abs(whole * steps - exact) <= 1.01 * np.abs(steps)).all()
    return (_rows_of(model, weight), scales.name) if same else None


def _rows_of(model: ModelProto, weight: TensorProto) -> str:
    """The name under which `model` has the same values in the same place, a row per token."""
    rows = model.graph.initializer.add()
    rows.CopyFrom(weight)
    rows.name = name = f"{weight.name}/rows"
    del rows.dims[:]
    rows.dims.extend([weight.dims[0], math.prod(weight.dims[1:])])
    return name


def _rounded(model: ModelProto, table: TensorProto, file: Path) -> tuple[str, str]:
    """The names of `table` [V, H] in 8 bits and of its scales, which are in its own type."""
    exact, name = weights.load(table, file.parent), table.name
    rows, width = exact.shape
    blocks = -(-width // BLOCK)
    whole = np.empty((rows, width), np.uint8)
    scales = np.empty((rows, blocks), exact.dtype)
    for start in range(0, rows, _ROWS):
        part = np.asarray(exact[start : start + _ROWS])
        padded = np.pad(part, ((0, 0), (0, blocks * BLOCK - width)))
        padded = padded.reshape(len(part), blocks, BLOCK)
        scale = np.abs(padded).max(2) / _MOST
        steps = np.rint(padded / np.where(scale > 0, scale, 1)[..., None]) + MIDDLE
        whole[start : start + _ROWS] = steps.reshape(len(part), -1)[:, :width]
        scales[start : start + _ROWS] = scale
    made = weights.store(f"{name}_Q8", whole, file), weights.store(f"{name}_scales", scales, file)
    model.graph.initializer.extend(made)
    return f"{name}_Q8", f"{name}_scales"
