"""A draft's head for common tokens only: a large vocabulary's head is half of a small model.

Frequency-ranked speculative sampling (arXiv 2502.14856) does this to a draft's head. A byte-pair
vocabulary lists its merges by frequency, so the lowest ids are the common tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from mirror_edge.errors import OptionError
from mirror_edge.export import check, reference, weights
from mirror_edge.export.exit_head import head_of, keep_rows
from mirror_edge.export.full_graph import FullGraph
from mirror_edge.export.graph import copy

__all__ = ["narrowed", "refuse_size"]

_SAME = 1e-3
"""How far the remaining logits may deviate: they are computed from the same numbers."""


def narrowed(draft: FullGraph, size: int | None) -> tuple[FullGraph, dict[str, float]]:
    """`draft` with a head for the tokens 0..size-1 only, and the deviation; unchanged for None.

    ``full.onnx`` and the weights are rewritten, and compared with what they were.

    Raises:
        OptionError: for a size above its vocabulary.
        ExportError: if the logits deviate.
    """
    spec, folder = draft.spec, draft.folder
    if size is None or size == spec.vocabulary:
        return draft, {}
    refuse_size(size, spec.vocabulary)
    before = reference.graph_logits(folder / "full.onnx", spec, [draft.ids])[0]
    graph = copy(draft.model)
    _set_apart(graph)
    keep_rows(graph, spec, np.arange(size), folder, folder / "weights.bin")
    _declare(graph, size)
    weights.compact(graph, folder / "weights.bin")
    onnx.save(graph, folder / "full.onnx")
    after = reference.graph_logits(folder / "full.onnx", spec, [draft.ids])[0]
    name = f"the draft's head of {size:,} tokens"
    off = check.compare(name, after, before[:, :size], _SAME)
    return replace(draft, model=graph, named=size), {name: off}


def refuse_size(size: int | None, vocabulary: int) -> None:
    """Refuse a head for more tokens than the draft's `vocabulary` has."""
    if size is not None and not 1 <= size <= vocabulary:
        raise OptionError(
            f"--draft-vocabulary {size}: must be from 1 to {vocabulary}, the draft's own."
        )


def _declare(graph: ModelProto, size: int) -> None:
    (logits,) = (entry for entry in graph.graph.output if entry.name == "logits")
    logits.type.tensor_type.shape.dim[-1].dim_value = size


def _set_apart(graph: ModelProto) -> None:
    """Give the head its own copies of tensors that it shares, as with tied embeddings."""
    own = _head_nodes(graph)
    others = {name for node in graph.graph.node if node not in own for name in node.input}
    for tensor in list(graph.graph.initializer):
        mine = [node for node in own if tensor.name in node.input]
        if not mine or tensor.name not in others:
            continue
        twin = TensorProto()
        twin.CopyFrom(tensor)
        twin.name = f"{tensor.name}/head"
        graph.graph.initializer.append(twin)
        for node in mine:
            names = [twin.name if name == tensor.name else name for name in node.input]
            del node.input[:]
            node.input.extend(names)


def _head_nodes(graph: ModelProto) -> list[NodeProto]:
    """The head, what follows it, and what derives its weight from a stored one."""
    nodes = list(graph.graph.node)
    head = head_of(graph)
    own = nodes[next(i for i, node in enumerate(nodes) if node == head) :]
    made = {name: node for node in nodes for name in node.output}
    for name in head.input[1:]:
        while (node := made.get(name)) is not None:
            own.append(node)
            name = node.input[0]
    return own
