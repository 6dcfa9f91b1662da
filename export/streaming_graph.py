"""Streams in a draft's graph: rows added before its top layers, with logits of their own.

Speculative Streaming (arXiv 2402.11131), section 3; see docs/streaming.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export import weights
from mirror_edge.export.graph import attribute, element_type, reach, value

if TYPE_CHECKING:
    from mirror_edge.export.streams import Streams

__all__ = ["add_streams", "stream_inputs"]

_PREFIX = "mirror/stream/"
_OWN = {
    "position_ids": _PREFIX + "positions",
    "attention_bias": "stream_attention_bias",
    "seqlens_k": "stream_seqlens_k",
    "total_sequence_length": "stream_total_sequence_length",
}
"""What the layers above read in place of the inputs of those below."""


def stream_inputs(spec: ModelSpec) -> list[ValueInfoProto]:
    """The additional inputs of a graph with streams."""
    rows, slots = "S + m*a", "T + m*a"
    return [
        value("streamed", TensorProto.INT64, ["m"]),
        value("streams", TensorProto.INT64, ["a"]),
        value("stream_attention_bias", element_type(spec), [1, 1, rows, slots]),
        value("stream_seqlens_k", TensorProto.INT32, [1]),
        value("stream_total_sequence_length", TensorProto.INT32, []),
    ]


def add_streams(
    model: ModelProto, spec: ModelSpec, residual: str, streams: Streams, folder: Path
) -> None:
    """Add the `streams` of the rows `streamed` to `model` after `residual`, in place.

    Their weights are added to the others in `folder`, in the type of hidden rows.

    Raises:
        ExportError: for a draft whose top layers have a sliding window.
    """
    above = reach(model.graph.node, [residual])
    for node in model.graph.node:
        if above.isdisjoint(node.output) or residual in node.output:
            continue
        window = attribute(node, "local_window_size")
        if isinstance(window, int) and window > 0:
            raise ExportError(
                "The draft's top layers have a sliding window, which streams do not support. "
                "Remove streams.safetensors to export it without them."
            )
        for at, name in enumerate(node.input):
            node.input[at] = _PREFIX + "rows" if name == residual else _OWN.get(name, name)
    nodes = list(model.graph.node)
    after = 1 + next(i for i, node in enumerate(nodes) if residual in node.output)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:after], *_joining(residual), *nodes[after:]])
    for name, numbers in (
        ("one", np.array(1)),
        ("by_row", np.array([1, -1, streams.count, streams.hidden])),
        ("in_line", np.array([1, -1, streams.hidden])),
        ("line", np.array([1, -1])),
        ("axis", np.array([2])),
    ):
        model.graph.initializer.append(numpy_helper.from_array(numbers, _PREFIX + name))
    dtype = helper.tensor_dtype_to_np_dtype(element_type(spec))
    # The streams' halves of the low-rank step are side by side: one product for all.
    up = streams.up.transpose(1, 0, 2).reshape(streams.up.shape[1], -1)
    for name, values in (("offset", streams.offset), ("down", streams.down), ("up", up)):
        tensor = weights.store(_PREFIX + name, values.astype(dtype), folder / "weights.bin")
        model.graph.initializer.append(tensor)


def _joining(residual: str) -> list[NodeProto]:
    """The nodes that compute the rows and positions of the layers above, [1, S + m·a] each."""
    outside = {residual, "streamed", "streams", "position_ids"}

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        names = [name if name in outside else _PREFIX + name for name in inputs]
        return helper.make_node(kind, names, [_PREFIX + output], _PREFIX + output, **attributes)

    return [
        # start = residual + offset + (residual @ down) @ up, row-major [m, a].
        node("Gather", [residual, "streamed"], "residual", axis=1),
        node("MatMul", ["residual", "down"], "low"),
        node("MatMul", ["low", "up"], "steps"),
        node("Reshape", ["steps", "by_row"], "step"),
        node("Unsqueeze", ["residual", "axis"], "from"),
        node("Add", ["step", "offset"], "moves"),
        node("Gather", ["moves", "streams"], "moved", axis=2),
        node("Add", ["moved", "from"], "started"),
        node("Reshape", ["started", "in_line"], "starts"),
        node("Concat", [residual, "starts"], "rows", axis=1),
        # The first stream of a row is one position after it.
        node("Gather", ["position_ids", "streamed"], "places", axis=1),
        node("Unsqueeze", ["places", "axis"], "place"),
        node("Add", ["place", "streams"], "before"),
        node("Add", ["before", "one"], "ahead"),
        node("Reshape", ["ahead", "line"], "aheads"),
        node("Concat", ["position_ids", "aheads"], "positions", axis=1),
    ]
