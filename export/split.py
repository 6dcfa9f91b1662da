"""Cutting a full decoder graph: into a target's prefix, suffix and tail, or a draft for trees.

The resulting graphs are those of docs/graphs.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export.graph import (
    ONLY_SHAPE,
    copy,
    element_type,
    infer_shapes,
    part,
    reach,
    rename,
    value,
)
from mirror_edge.export.residuals import opened, residuals, tail_residual
from mirror_edge.export.streaming_graph import add_streams, stream_inputs

if TYPE_CHECKING:
    from mirror_edge.export.streams import Streams

__all__ = ["TargetGraphs", "draft_graph", "split_target"]

_ATTENTION = "GroupQueryAttention"
_SEQLENS, _TOTAL, _POSITIONS, _BIAS = 5, 6, 9, 10
"""Inputs of GroupQueryAttention that become inputs of the graph."""
_CONTRACT = {
    *("hidden", "rows", "position_ids", "attention_bias", "attention_mask", "seqlens_k"),
    *("total_sequence_length", "top", "exit_ids", "exit_logprobs", "streamed", "streams"),
    *("stream_attention_bias", "stream_seqlens_k", "stream_total_sequence_length"),
}
"""Names of inputs and outputs, which no tensor inside a graph may have."""


@dataclass(frozen=True)
class TargetGraphs:
    """The graphs of a target; `tail` is final norm and LM head, from `hidden` to `logits`."""

    prefix: ModelProto
    suffix: ModelProto
    tail: ModelProto


def split_target(model: ModelProto, spec: ModelSpec, exit_layer: int) -> TargetGraphs:
    """Cut `model` after layer `exit_layer`; the suffix's LM head only reads the rows asked for.

    Raises:
        ExportError: for an architecture that cannot be cut there.
    """
    whole = _prepared(model, spec)
    cut, end = residuals(whole, spec, exit_layer)[-1], tail_residual(whole, spec)
    whole = opened(whole, {cut, end})
    hidden = value("hidden", element_type(spec), [1, "S", spec.hidden])
    logits = value("logits", TensorProto.FLOAT, [1, "n", spec.vocabulary])
    lengths = _lengths(spec)
    first, last = range(exit_layer), range(exit_layer, spec.layers)

    prefix = copy(whole)
    rename(prefix, {cut: "hidden"})
    suffix = copy(whole)
    _shapes_without_prefix(suffix, exit_layer, cut)
    _gather_rows(suffix, end)
    rename(suffix, {cut: "hidden"})
    tail = copy(whole)
    rename(tail, {end: "hidden"})
    ids = value("input_ids", TensorProto.INT64, [1, "S"])
    rows = value("rows", TensorProto.INT64, ["n"])
    every_row = value("logits", TensorProto.FLOAT, [1, "S", spec.vocabulary])
    try:
        return TargetGraphs(
            part(prefix, [ids, *lengths, *_pasts(spec, first)], [hidden, *_presents(spec, first)]),
            part(
                suffix,
                [hidden, rows, *lengths, *_pasts(spec, last)],
                [logits, *_presents(spec, last)],
            ),
            part(tail, [hidden], [every_row]),
        )
    except ValueError as error:
        raise ExportError(
            f"The graph cannot be cut after layer {exit_layer}: {error}. "
            "This architecture is not supported as a target."
        ) from error


def draft_graph(
    model: ModelProto, spec: ModelSpec, folder: Path, streams: Streams | None, named: int
) -> ModelProto:
    """`model`, whose logits are those of `named` tokens, with positions and mask as inputs.

    With `streams`, whose weights are added to the others in `folder`, its rows can have streams.

    Raises:
        ExportError: for an architecture that cannot be a draft.
    """
    if spec.cache != "in_place":
        raise ExportError(
            "The draft's graph has no GroupQueryAttention, which trees of guesses need. "
            "Give the draft as a checkpoint or as a folder in ONNX Runtime GenAI's format."
        )
    whole = _prepared(model, spec, positions=False)
    for node in whole.graph.node:
        if node.op_type == _ATTENTION:
            node.input.extend([""] * (_BIAS + 1 - len(node.input)))
            node.input[_POSITIONS] = "position_ids"
            node.input[_BIAS] = "attention_bias"
    end = tail_residual(whole, spec)
    if streams is None:
        whole = opened(whole, {end})
    else:
        start = residuals(whole, spec, spec.layers - streams.layers)[-1]
        whole = opened(whole, {start, end})
        add_streams(whole, spec, start, streams, folder)
    _gather_rows(whole, end)
    layers = range(spec.layers)
    try:
        return part(
            whole,
            [
                value("input_ids", TensorProto.INT64, [1, "S"]),
                value("position_ids", TensorProto.INT64, [1, "S"]),
                value("attention_bias", element_type(spec), [1, 1, "S", "T"]),
                value("rows", TensorProto.INT64, ["n"]),
                *([] if streams is None else stream_inputs(spec)),
                *_lengths(spec),
                *_pasts(spec, layers),
            ],
            [
                value("logits", TensorProto.FLOAT, [1, "n", named]),
                *_presents(spec, layers),
            ],
        )
    except ValueError as error:
        raise ExportError(
            f"The draft's graph cannot be prepared: {error}. "
            "This architecture is not supported as a draft."
        ) from error


def _lengths(spec: ModelSpec) -> list[ValueInfoProto]:
    if spec.cache == "concat":
        return [value("attention_mask", TensorProto.INT64, [1, "T"])]
    return [
        value("seqlens_k", TensorProto.INT32, [1]),
        value("total_sequence_length", TensorProto.INT32, []),
    ]


def _caches(
    spec: ModelSpec, layers: Iterable[int], names: str, length: str
) -> list[ValueInfoProto]:
    dims: list[int | str] = [1, spec.kv_heads, length, spec.head_size]
    return [
        value(f"{names}.{layer}.{kind}", element_type(spec), dims)
        for layer in layers
        for kind in ("key", "value")
    ]


def _pasts(spec: ModelSpec, layers: Iterable[int]) -> list[ValueInfoProto]:
    length = "C" if spec.cache == "in_place" else "P"
    return _caches(spec, layers, "past_key_values", length)


def _presents(spec: ModelSpec, layers: Iterable[int]) -> list[ValueInfoProto]:
    return _caches(spec, layers, "present", "C" if spec.cache == "in_place" else "T")


def _prepared(model: ModelProto, spec: ModelSpec, *, positions: bool = True) -> ModelProto:
    """A copy with lengths as inputs and logits in float32."""
    model = copy(model)
    taken = {name for node in model.graph.node for name in node.output}
    taken |= {tensor.name for tensor in model.graph.initializer}
    rename(model, {name: f"source/{name}" for name in _CONTRACT & taken})
    before: list[NodeProto] = []
    inputs = {entry.name for entry in model.graph.input}
    if spec.cache == "in_place":
        for node in model.graph.node:
            if node.op_type == _ATTENTION:
                node.input[_SEQLENS] = "seqlens_k"
                node.input[_TOTAL] = "total_sequence_length"
        before += _mask_from_length()
    if positions and "position_ids" in inputs:
        before += _positions_from_lengths()
    after = []
    logits = next(entry for entry in model.graph.output if entry.name == "logits")
    if logits.type.tensor_type.elem_type != TensorProto.FLOAT:
        rename(model, {"logits": "logits/raw"})
        after = [helper.make_node("Cast", ["logits/raw"], ["logits"], to=TensorProto.FLOAT)]
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _constant(name: str, number: int | list[int]) -> NodeProto:
    dims = [len(number)] if isinstance(number, list) else []
    numbers = number if isinstance(number, list) else [number]
    tensor = helper.make_tensor(name, TensorProto.INT64, dims, numbers)
    return helper.make_node("Constant", [], [name], value=tensor)


def _mask_from_length() -> list[NodeProto]:
    """Compute `attention_mask`, all ones, for graphs that read it outside of attention."""
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    return [
        _constant("mirror/two_ones", [1, 1]),
        _constant("mirror/last", [1]),
        helper.make_node("Cast", ["total_sequence_length"], ["mirror/total"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["mirror/total", "mirror/last"], ["mirror/total_1"]),
        helper.make_node(
            "Concat", ["mirror/last", "mirror/total_1"], ["mirror/mask_shape"], axis=0
        ),
        helper.make_node("ConstantOfShape", ["mirror/mask_shape"], ["attention_mask"], value=one),
    ]


def _positions_from_lengths() -> list[NodeProto]:
    """Compute `position_ids` = T-S .. T-1, from the shapes of mask and ids."""
    return [
        _constant("mirror/1", 1),
        _constant("mirror/axis_0", [0]),
        helper.make_node("Shape", ["attention_mask"], ["mirror/mask_dims"]),
        helper.make_node("Gather", ["mirror/mask_dims", "mirror/1"], ["mirror/T"], axis=0),
        helper.make_node("Shape", ["input_ids"], ["mirror/ids_dims"]),
        helper.make_node("Gather", ["mirror/ids_dims", "mirror/1"], ["mirror/S"], axis=0),
        helper.make_node("Sub", ["mirror/T", "mirror/S"], ["mirror/P"]),
        helper.make_node("Range", ["mirror/P", "mirror/T", "mirror/1"], ["mirror/range"]),
        helper.make_node("Unsqueeze", ["mirror/range", "mirror/axis_0"], ["position_ids"]),
    ]


def _shapes_without_prefix(model: ModelProto, layer: int, cut: str) -> None:
    """Take shapes that the suffix needs from the prefix from `cut` and its own caches instead."""
    seeds = ["input_ids"]
    seeds += [f"past_key_values.{i}.{kind}" for i in range(layer) for kind in ("key", "value")]
    foreign = reach(model.graph.node, seeds, blocked={cut})
    readers = [n for n in model.graph.node if n.op_type in ONLY_SHAPE and n.input[0] in foreign]
    if not readers:
        return
    shapes = infer_shapes(model)
    before = [
        _constant("mirror/0_1", [0, 1]),
        helper.make_node("Shape", [cut], ["mirror/cut_shape"]),
        helper.make_node("Gather", ["mirror/cut_shape", "mirror/0_1"], ["mirror/1_S"], axis=0),
    ]
    for node in readers:
        name, output = node.input[0], list(node.output)
        dims = shapes.get(name, [])
        if name.startswith("past_key_values."):
            node.input[0] = f"past_key_values.{layer}.{name.rsplit('.', 1)[1]}"
        elif node.op_type != "Shape" or node.attribute:
            continue
        elif name == "input_ids":
            node.CopyFrom(helper.make_node("Identity", ["mirror/1_S"], output))
        elif len(dims) == 3 and isinstance(dims[2], int) and dims[2]:  # rows of any width
            width = f"mirror/{output[0]}"
            before.append(_constant(width, [dims[2]]))
            node.CopyFrom(helper.make_node("Concat", ["mirror/1_S", width], output, axis=0))
    nodes = [*before, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _gather_rows(model: ModelProto, residual: str) -> None:
    """Let everything after `residual` read only the rows `rows`."""
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == residual:
                node.input[at] = "mirror/rows"
    made = next(i for i, node in enumerate(model.graph.node) if residual in node.output)
    gather = helper.make_node("Gather", [residual, "rows"], ["mirror/rows"], axis=1)
    model.graph.node.insert(made + 1, gather)
