"""Small tools for ONNX graphs whose weights stay on disk: walk, reach, cut out a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from mirror_edge.bundle import ModelSpec

__all__ = [
    "ONLY_SHAPE",
    "attribute",
    "copy",
    "element_type",
    "infer_shapes",
    "open_skip_norm",
    "part",
    "reach",
    "reads",
    "rename",
    "value",
]

ONLY_SHAPE = {"Shape", "Size"}
"""Operators that read a tensor's shape only."""
_GRAPHS = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
_SKIP_NORMS = {
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
    "SkipLayerNormalization": "LayerNormalization",
}


def attribute(node: NodeProto, name: str) -> object:
    """The value of one attribute; None if it is not set."""
    return next(
        (helper.get_attribute_value(item) for item in node.attribute if item.name == name), None
    )


def copy(model: ModelProto) -> ModelProto:
    """A copy to change; external weights stay where they are."""
    made = ModelProto()
    made.CopyFrom(model)
    return made


def element_type(spec: ModelSpec) -> int:
    """ONNX's enum value for the type of hidden rows and caches."""
    return int(TensorProto.FLOAT if spec.dtype == "float32" else TensorProto.FLOAT16)


def value(name: str, dtype: int, dims: Sequence[int | str]) -> ValueInfoProto:
    """A graph input or output."""
    return helper.make_tensor_value_info(name, dtype, list(dims))


def reads(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, including those that its subgraphs take from outside."""
    yield from filter(None, node.input)
    for item in node.attribute:
        for graph in [item.g, *item.graphs] if item.type in _GRAPHS else []:
            made = {name for inner in graph.node for name in inner.output}
            made |= {entry.name for entry in [*graph.input, *graph.initializer]}
            inner_reads = {name for inner in graph.node for name in reads(inner)}
            yield from (inner_reads | {entry.name for entry in graph.output}) - made


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors, in subgraphs too."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        for entry in graph.output:
            entry.name = names.get(entry.name, entry.name)
        for node in graph.node:
            for at, name in enumerate(node.input):
                node.input[at] = names.get(name, name)
            for at, name in enumerate(node.output):
                node.output[at] = names.get(name, name)
            for item in node.attribute:
                graphs += [item.g, *item.graphs] if item.type in _GRAPHS else []


def reach(
    nodes: Iterable[NodeProto], seeds: Iterable[str], blocked: Collection[str] = ()
) -> set[str]:
    """What depends on the contents of `seeds` (not just their shapes) except through `blocked`."""
    reached = set(seeds)
    for node in nodes:
        if node.op_type not in ONLY_SHAPE and not reached.isdisjoint(reads(node)):
            reached.update(name for name in node.output if name and name not in blocked)
    return reached


def part(
    model: ModelProto, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
) -> ModelProto:
    """The part of `model` that computes `outputs` from `inputs`; weights stay on disk.

    Raises:
        ValueError: naming what else it would need.
    """
    given = {entry.name for entry in inputs}
    wanted = {entry.name for entry in outputs}
    nodes: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if any(name in wanted and name not in given for name in node.output):
            nodes.append(node)
            wanted.update(reads(node))
    weights = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    made = {name for node in nodes for name in node.output} | {tensor.name for tensor in weights}
    if missing := sorted(wanted - made - given):
        raise ValueError(f"{outputs[0].name} needs {', '.join(missing[:4])}")
    graph = GraphProto(name=model.graph.name)
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    return helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name="mirror-edge",
        functions=model.functions,
    )


def open_skip_norm(node: NodeProto) -> list[NodeProto]:
    """A fused residual sum and norm as separate nodes, so that the graph can be cut in between."""
    norm = _SKIP_NORMS.get(node.op_type)
    if norm is None:
        return [node]
    total = node.output[3] if len(node.output) > 3 and node.output[3] else f"{node.output[0]}/sum"
    left, right, *parameters = node.input
    scales = 1 if norm == "SimplifiedLayerNormalization" else 2
    gamma, bias = parameters[:scales], [name for name in parameters[scales:] if name]
    nodes = []
    for at, term in enumerate([right, *bias], start=1):
        last = at == 1 + len(bias)
        made = total if last else f"{total}/{at}"
        nodes.append(helper.make_node("Add", [left, term], [made], name=f"{node.name}/Add_{at}"))
        left = made
    parameters = [total, *filter(None, gamma)]
    opened = helper.make_node(norm, parameters, node.output[:1], f"{node.name}/Norm", axis=-1)
    opened.attribute.extend(item for item in node.attribute if item.name == "epsilon")
    return [*nodes, opened]


def infer_shapes(model: ModelProto) -> dict[str, list[int | str]]:
    """The dimensions that ONNX can infer, by tensor; symbolic ones are names."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        for entry in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
