"""The draft for devices with fixed shapes only: two graphs of plain operators, same weights.

One takes chunks of a prompt and returns their keys and values, the other takes the rows of a
rollout and also returns their logits. docs/graphs.md lists their inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from mirror_edge.bundle import FixedSpec, ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export.graph import part, value
from mirror_edge.export.plain_attention import Rows, Spelling, unspelled
from mirror_edge.export.residuals import opened

__all__ = ["fixed_graph", "fixed_spec", "unfit"]

_ATTENTION, _POSITIONS, _COS = "GroupQueryAttention", 9, 7
_PLAIN = {"SimplifiedLayerNormalization", "LayerNormalization"}
"""Operators specific to ONNX Runtime that NPU providers support."""
_CONTEXT, _BRANCH_ROWS = 2048, 256
_CHUNK, _ROWS, _STREAMED = 128, 32, 16


def fixed_spec(spec: ModelSpec, streams: int) -> FixedSpec:
    """The fixed sizes for a draft of this shape."""
    context = min(spec.context, _CONTEXT)
    return FixedSpec(
        context=context,
        slots=context + _BRANCH_ROWS,
        chunk=min(_CHUNK, context),
        rows=_ROWS,
        streamed=_STREAMED if streams else 0,
    )


def fixed_graph(
    draft: ModelProto, spec: ModelSpec, fixed: FixedSpec, streams: int, *, rollout: bool, named: int
) -> ModelProto:
    """The graph `draft` at fixed shapes, for the rows of a rollout or for a prompt's chunks.

    Its logits are those of `named` tokens.

    Raises:
        ExportError: for an architecture that cannot be written in plain operators.
    """
    fed = fixed.rows if rollout else fixed.chunk
    extra = fixed.streamed * streams if rollout else 0
    main = Rows(fed, fed, "position_ids", "mask")
    top = Rows(fed + extra, fed, "stream_position_ids", "stream_mask") if extra else main
    model = opened(draft)
    _without_choice(model, joined=extra > 0)
    _spell(model, spec, main, top)
    _refuse_own_operators(model)
    inputs = [_ints("input_ids", [1, fed]), *_rows(main, fixed.slots)]
    if extra:
        inputs += [_ints("streamed", [fixed.streamed]), *_rows(top, fixed.slots)]
    outputs = _caches(spec, "present", fed)
    if rollout:
        outputs.insert(0, value("logits", TensorProto.FLOAT, [1, top.fed, named]))
    return part(model, [*inputs, *_caches(spec, "past_key_values", fixed.slots)], outputs)


def _without_choice(model: ModelProto, *, joined: bool) -> None:
    """Give every row its logits and all its streams, or no stream unless they are `joined`."""
    made = {name: node for node in model.graph.node for name in node.output}
    names = {"mirror/rows": made["mirror/rows"].input[0]}
    if "mirror/stream/rows" in made:
        names["mirror/stream/moved"] = "mirror/stream/moves"
        if not joined:
            names["mirror/stream/rows"] = made["mirror/stream/rows"].input[0]
    _read_instead(model, names)


def _read_instead(model: ModelProto, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            while name in names:
                name = names[name]
            node.input[at] = name


def _spell(model: ModelProto, spec: ModelSpec, main: Rows, top: Rows) -> None:
    """Write attention in plain operators, in place."""
    tables = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if tensor.dims[1:]}
    attention = [node for node in model.graph.node if node.op_type == _ATTENTION]
    rotary = [tables.get(node.input[_COS], 0) for node in attention if len(node.input) > _COS]
    spelling = Spelling(spec.kv_heads, spec.head_size, max(rotary, default=0))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != _ATTENTION:
            nodes.append(node)
            continue
        if reason := unspelled(node):
            raise unfit(reason)
        written = len(spelling.nodes)
        spelling.attention(node, main if node.input[_POSITIONS] == "position_ids" else top)
        nodes += spelling.nodes[written:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(spelling.constants.values())


def _refuse_own_operators(model: ModelProto) -> None:
    """Refuse remaining operators that are specific to ONNX Runtime."""
    own = {node.op_type for node in model.graph.node if node.domain} - _PLAIN
    if own:
        raise unfit(f"{', '.join(sorted(own))}, which NPU providers do not support")


def unfit(reason: str) -> ExportError:
    """The error for a draft whose graph cannot have fixed shapes, for this `reason`."""
    return ExportError(
        f"--draft-for: the draft's graph has {reason}, so it cannot have the fixed shapes of an "
        "NPU. Omit the option, or choose another draft."
    )


def _ints(name: str, dims: list[int]) -> ValueInfoProto:
    return value(name, TensorProto.INT32, dims)


def _rows(rows: Rows, slots: int) -> list[ValueInfoProto]:
    mask = value(rows.mask, TensorProto.FLOAT, [1, 1, rows.fed, slots + rows.fed])
    return [_ints(rows.positions, [1, rows.fed]), mask]


def _caches(spec: ModelSpec, name: str, rows: int) -> list[ValueInfoProto]:
    """Cache inputs or outputs; keys are transposed."""
    heads, size = spec.kv_heads, spec.head_size
    shapes = {"key": [1, heads, size, rows], "value": [1, heads, rows, size]}
    return [
        value(f"{name}.{layer}.{kind}", TensorProto.FLOAT, shape)
        for layer in range(spec.layers)
        for kind, shape in shapes.items()
    ]
