"""The embedding of a quantised model, of which each token reads one row.

Left in float32 it is often larger than all other weights in 4 bits. Where it is the LM head's
matrix too, it reads the head's rows; otherwise it is rounded to 8 bits, which changes the logits
less than anything else that is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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


class _Rounded(NamedTuple):
    """A matrix [V, H] in few bits, with a scale [V, ⌈H/block⌉] per block, around half its range."""

    data: TensorProto
    scales: TensorProto
    bits: int
    block: int


def round_embedding(model: ModelProto, file: Path) -> None:
    """Give `model`, whose weights are in `file`, an embedding in few bits, in place.

    An embedding that other nodes read too, such as an LM head in float32, stays.
    """
    graph = model.graph
    lookup = _reader(model, "Gather")
    if lookup is None or sum(lookup.input[0] in node.input for node in graph.node) > 1:
        return
    stored = {tensor.name: tensor for tensor in graph.initializer}
    table = stored.get(lookup.input[0])
    if table is None or table.data_type not in {TensorProto.FLOAT, TensorProto.FLOAT16}:
        return
    rows = _head_rows(model, stored, table, file.parent) or _rounded(table, file)
    node = helper.make_node(
        _LOOKUP,
        [rows.data.name, lookup.input[1], rows.scales.name],
        lookup.output,
        lookup.name,
        domain="com.microsoft",
        bits=rows.bits,
        block_size=rows.block,
        gather_axis=0,
        quantize_axis=1,
    )
    lookup.CopyFrom(node)
    graph.initializer.remove(table)
    graph.initializer.extend([rows.data, rows.scales])
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
    weight = next((t for t in graph.initializer if t.name == shaping.input[0]), None)
    if weight is None or weight.data_location != TensorProto.EXTERNAL:
        return
    rows = _as_rows(weight)
    graph.initializer.append(rows)
    lookup.input[0] = rows.name
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


def _head_rows(
    model: ModelProto, stored: Mapping[str, TensorProto], table: TensorProto, folder: Path
) -> _Rounded | None:
    """The LM head's weight, if that is `table` in few bits around half their range."""
    head = head_of(model)
    if head.op_type != "MatMulNBits" or any(head.input[3:]):
        return None
    weight, scales = (stored[name] for name in head.input[1:3])
    bits, block = (attribute(head, name) for name in ("bits", "block_size"))
    assert isinstance(bits, int)
    assert isinstance(block, int)
    size, width = table.dims
    if weight.dims[0] != size or width % block:
        return None
    whole = weights.load(weight, folder)[:_SAMPLE]
    if bits == 4:
        whole = np.stack([whole & 15, whole >> 4], axis=-1)
    count = len(whole)
    steps = weights.load(scales, folder).reshape(size, -1)[:count, :, None]
    read = (whole.reshape(count, -1, block).astype(np.float32) - 2 ** (bits - 1)) * steps
    apart = np.abs(read - weights.load(table, folder)[:count].reshape(read.shape))
    same = (apart <= 1.01 * np.abs(steps)).all()  # The largest entry may be clipped by a step.
    return _Rounded(_as_rows(weight), _as_rows(scales, size), bits, block) if same else None


def _as_rows(tensor: TensorProto, count: int = 0) -> TensorProto:
    """The same values in the same place, as `count` rows (0: as many as it has)."""
    rows = TensorProto()
    rows.CopyFrom(tensor)
    rows.name = f"{tensor.name}/rows"
    count = count or tensor.dims[0]
    del rows.dims[:]
    rows.dims.extend([count, math.prod(tensor.dims) // count])
    return rows


def _rounded(table: TensorProto, file: Path) -> _Rounded:
    """`table` [V, H] in 8 bits, appended to `file`; its scales have its own type."""
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
    data = weights.store(f"{name}_Q8", whole, file)
    return _Rounded(data, weights.store(f"{name}_scales", scales, file), 8, BLOCK)
