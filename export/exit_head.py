"""The exit head: a target's own norm and LM head over the most common tokens, and a top-k."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import weights
from mirror_edge.export.graph import copy, element_type, part, value
from mirror_edge.export.reference import numpy_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Correction",
    "Exit",
    "exit_graph",
    "exit_logits",
    "head_of",
    "keep_rows",
    "norm_and_head",
]

_HEADS = {"MatMul", "MatMulNBits", "Gemm"}


@dataclass(frozen=True)
class Correction:
    """A trained low-rank step on the rows that the LM head reads: ``rows + silu(rows @ a) @ b``."""

    a: NDArray[np.float32]
    """[hidden, rank]"""
    b: NDArray[np.float32]
    """[rank, hidden]"""

    def apply(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The corrected `rows` [..., hidden]."""
        low = rows @ self.a
        corrected: NDArray[np.float32] = rows + (low / (1.0 + np.exp(-low))) @ self.b
        return corrected


@dataclass(frozen=True)
class Exit:
    """Where the exit head sits in a target, and what it consists of."""

    layer: int
    tokens: NDArray[np.int64] | None
    """Those that the exit head can name, ascending; None: all."""
    correction: Correction | None


def exit_logits(tail: ModelProto, spec: ModelSpec, folder: Path, leave: Exit) -> ModelProto:
    """The exit head's graph from `hidden` to the `logits` of its tokens.

    Weights that it does not share with the other graphs go to ``exit.bin`` in `folder`.
    """
    graph, tokens, correction = copy(tail), leave.tokens, leave.correction
    head, file = head_of(graph), folder / "exit.bin"
    if tokens is not None:
        keep_rows(graph, spec, tokens, folder, file)
        del graph.graph.output[:]
        narrow = value("logits", TensorProto.FLOAT, [1, "S", len(tokens)])
        graph.graph.output.append(narrow)
    if correction is not None:
        _correct(graph, spec, head, correction, file)
    return graph


def exit_graph(logits: ModelProto, folder: Path, tokens: NDArray[np.int64] | None) -> ModelProto:
    """The exit head's whole graph, from `hidden` to candidates; `logits` is from `exit_logits`."""
    graph = copy(logits)
    nodes = graph.graph.node
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0]), "exit/first"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "exit/axis"))
    nodes.extend(_candidates())
    if tokens is None:
        nodes.append(helper.make_node("Cast", ["exit/at"], ["exit_ids"], to=TensorProto.INT32))
    else:
        stored = weights.store("exit/tokens", tokens.astype(np.int32), folder / "exit.bin")
        graph.graph.initializer.append(stored)
        nodes.append(helper.make_node("Gather", ["exit/tokens", "exit/at"], ["exit_ids"]))
    graph.graph.input.append(value("top", TensorProto.INT64, [1]))
    del graph.graph.output[:]
    graph.graph.output.append(value("exit_ids", TensorProto.INT32, [1, "S", "k"]))
    graph.graph.output.append(value("exit_logprobs", TensorProto.FLOAT, [1, "S", "k"]))
    return graph


def norm_and_head(tail: ModelProto, spec: ModelSpec) -> tuple[ModelProto, ModelProto]:
    """`tail` as two graphs: `hidden` to `normed`, which the LM head reads, and that to `logits`."""
    graph = copy(tail)
    head = head_of(graph)
    read = head.input[0]
    # Some models narrow the rows after their norm.
    normed = value("normed", element_type(spec), [1, "S", "W"])
    graph.graph.node.append(helper.make_node("Identity", [read], ["normed"]))
    norm = part(graph, list(tail.graph.input), [normed])
    graph = copy(tail)
    head_of(graph).input[0] = "normed"
    return norm, part(graph, [normed], list(tail.graph.output))


def head_of(graph: ModelProto) -> NodeProto:
    """The node that computes the logits.

    Raises:
        ExportError: if there is no known one.
    """
    found: NodeProto | None = next(
        (node for node in reversed(graph.graph.node) if node.op_type in _HEADS), None
    )
    if found is None:
        raise ExportError("The graph's LM head was not found. This architecture is not supported.")
    return found


def _candidates() -> list[NodeProto]:
    """Top-k of `logits` and its log-softmax, in operators that GPU providers have."""
    return [
        helper.make_node("TopK", ["logits", "top"], ["exit/best", "exit/at"], axis=-1),
        helper.make_node("Gather", ["exit/best", "exit/first"], ["exit/most"], axis=-1),
        helper.make_node("Sub", ["logits", "exit/most"], ["exit/below"]),
        helper.make_node("Exp", ["exit/below"], ["exit/weights"]),
        helper.make_node("ReduceSum", ["exit/weights", "exit/axis"], ["exit/total"]),
        helper.make_node("Log", ["exit/total"], ["exit/log_total"]),
        helper.make_node("Sub", ["exit/best", "exit/most"], ["exit/margin"]),
        helper.make_node("Sub", ["exit/margin", "exit/log_total"], ["exit_logprobs"]),
    ]


def _correct(
    graph: ModelProto, spec: ModelSpec, head: NodeProto, correction: Correction, file: Path
) -> None:
    rank = correction.a.shape[-1]
    if correction.a.shape != (spec.hidden, rank) or correction.b.shape != (rank, spec.hidden):
        raise OptionError(
            f"correction: a must be [{spec.hidden}, rank] and b [rank, {spec.hidden}], "
            f"not {list(correction.a.shape)} and {list(correction.b.shape)}."
        )
    for key, matrix in (("exit/a", correction.a), ("exit/b", correction.b)):
        stored = weights.store(key, matrix.astype(numpy_type(spec)), file)
        graph.graph.initializer.append(stored)
    at, read = list(graph.graph.node).index(head), head.input[0]
    step = [
        helper.make_node("MatMul", [read, "exit/a"], ["exit/low"]),
        helper.make_node("Sigmoid", ["exit/low"], ["exit/gate"]),
        helper.make_node("Mul", ["exit/low", "exit/gate"], ["exit/silu"]),
        helper.make_node("MatMul", ["exit/silu", "exit/b"], ["exit/step"]),
        helper.make_node("Add", [read, "exit/step"], ["exit/corrected"]),
    ]
    head.input[0] = "exit/corrected"
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:at], *step, *nodes[at:]])


def keep_rows(
    graph: ModelProto, spec: ModelSpec, tokens: NDArray[np.int64], folder: Path, file: Path
) -> None:
    """Keep only the head's rows of `tokens`: of its weight, and of every bias and scale after it.

    In place; what is kept is appended to `file`.
    """
    head = head_of(graph)
    for item in head.attribute:
        if item.name == "N":
            item.i = len(tokens)
    start = next(i for i, node in enumerate(graph.graph.node) if node == head)
    reading = {name for node in graph.graph.node[start:] for name in node.input}
    made = {name: node for node in graph.graph.node for name in node.output}
    for name in list(reading):  # a transposed weight is the same weight
        node = made.get(name)
        if node is not None and node.op_type in {"Transpose", "Cast", "Identity"}:
            reading.update(node.input)
    for tensor in graph.graph.initializer:
        if tensor.name not in reading:
            continue
        values = _rows(weights.load(tensor, folder), tokens, spec.vocabulary)
        if values is not None:
            weights.append(tensor, values, file)


def _rows(values: NDArray[Any], tokens: NDArray[np.int64], vocabulary: int) -> NDArray[Any] | None:
    """The entries of `values` for `tokens`; None when there is not one for each token."""
    if vocabulary in values.shape:
        return np.take(values, tokens, axis=values.shape.index(vocabulary))
    if values.ndim == 1 and values.size > vocabulary and values.size % vocabulary == 0:
        flat: NDArray[Any] = values.reshape(vocabulary, -1)[tokens].ravel()
        return flat
    return None
