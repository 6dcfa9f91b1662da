"""Where a decoder can be cut: its residuals, found by dependencies, not by names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnx import ModelProto, NodeProto

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export.graph import ONLY_SHAPE, copy, open_skip_norm, reach, reads

__all__ = ["opened", "residuals", "tail_residual"]


def opened(model: ModelProto, residuals: set[str] | None = None) -> ModelProto:
    """A copy in which fused sums and norms that compute `residuals` (None: all) are separate."""
    opened = copy(model)
    del opened.graph.node[:]
    for node in model.graph.node:
        pieces = open_skip_norm(node)
        cut_here = residuals is None or any(piece.output[0] in residuals for piece in pieces)
        opened.graph.node.extend(pieces if cut_here else [node])
    return opened


def residuals(model: ModelProto, spec: ModelSpec, layer: int) -> list[str]:
    """The tensors after `layer` layers through which alone everything later depends on them.

    Raises:
        ExportError: when there is none.
    """
    past = [f"past_key_values.{i}.{kind}" for i in range(layer) for kind in ("key", "value")]
    present = [f"present.{i}.{k}" for i in range(layer, spec.layers) for k in ("key", "value")]
    nodes = opened(model).graph.node
    found = _narrows(nodes, ["input_ids", *past], ["logits", *present])
    if not found:
        raise ExportError(
            f"No single residual was found between layers {layer} and {layer + 1}. "
            "This architecture is not supported."
        )
    return found


def _narrows(nodes: Sequence[NodeProto], seeds: list[str], sinks: list[str]) -> list[str]:
    """The tensors that every path from the contents of `seeds` to `sinks` passes, in order."""
    reached = reach(nodes, seeds)
    leading = set(sinks)
    crossed: list[NodeProto] = []
    for node in reversed(nodes):
        if node.op_type not in ONLY_SHAPE and not leading.isdisjoint(node.output):
            leading.update(reads(node))
            crossed.append(node)
    between = reached & leading
    crossed = [node for node in reversed(crossed) if not between.isdisjoint(node.output)]
    readers = Counter(name for node in crossed for name in set(reads(node)) & between)
    readers.update(sinks)  # a sink is never used up
    live = between.intersection(seeds)
    found: list[str] = []
    for node in crossed:
        for name in set(reads(node)) & between:
            readers[name] -= 1
            if not readers[name]:
                live.discard(name)
        live.update(between.intersection(node.output))
        if len(live) == 1 and not live.isdisjoint(node.output):
            found += live
    return found


def tail_residual(model: ModelProto, spec: ModelSpec) -> str:
    """The residual after the last layer.

    More tensors after it (norm, logits) would do as cuts: it is the one that comes as long after
    the last layer's attention as the residual between the last two layers after its own.
    """
    ends = residuals(model, spec, spec.layers)
    if spec.layers == 1:
        return ends[0]
    return ends[len(residuals(model, spec, spec.layers - 1)) - 1]
