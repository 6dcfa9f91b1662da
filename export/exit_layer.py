"""The exit layer: the expected duration of a step, for every layer that was measured.

A later exit predicts better, so that fewer steps need a fresh draft; an earlier one leaves a longer
suffix, which hides more of the rollout. The step law weighs the two:

    prefix + exit head + max(suffix, rollout) + misses · fresh draft

Times are counted in bytes of weights read, which is what bounds decoding a single answer; both
devices are assumed to read equally fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import weights

__all__ = [
    "KAPPA",
    "Costs",
    "best",
    "candidates",
    "chosen_layer",
    "costs",
    "expected_step",
    "rollout_bytes",
]

KAPPA = 8
"""κ of the coverage from which missed steps are counted."""
_WINDOW = 7
_SEVERAL = 5
_PRODUCTS = {"MatMul", "MatMulNBits", "Gemm"}
_SAME_WEIGHT = {"Transpose", "Cast", "Identity"}


@dataclass(frozen=True)
class Costs:
    """Bytes of weights that are read."""

    layers: int
    """How many the target has."""
    layer: float
    """By one layer, in a forward."""
    head: float
    exit_head: float
    rollout: float | None
    """By a rollout or a fresh draft; None when the draft is the target's own prefix."""


def chosen_layer(asked: int | None, layers: int) -> int:
    """The layer after which a target of `layers` layers is cut: the middle one, unless `asked`.

    Raises:
        OptionError: for a layer that it does not have, or its last one.
        ExportError: for a target that cannot be cut.
    """
    if layers < 2:
        raise ExportError(
            "TARGET: has only one layer, and a target needs at least two. Choose a larger model."
        )
    if asked is None:
        return layers // 2
    if not 1 <= asked < layers:
        raise OptionError(
            f"--exit-layer {asked}: must be from 1 to {layers - 1} for a target of {layers} layers."
        )
    return asked


def candidates(layers: int, asked: int | None) -> list[int]:
    """The layers worth measuring: a few from a quarter to three quarters, and `asked`."""
    low, high = max(1, round(layers / 4)), max(1, min(layers - 1, round(3 * layers / 4)))
    steps = min(_SEVERAL, high - low + 1)
    found = {low + round(i * (high - low) / max(steps - 1, 1)) for i in range(steps)}
    return sorted(found | ({asked} if asked is not None else set()))


def expected_step(layer: int, spent: Costs, covered: float) -> float:
    """The expected duration of a step with the exit after `layer`, in target passes.

    `covered` is Ω_8 there.
    """
    whole = spent.layers * spent.layer + spent.head
    prefix, suffix = layer * spent.layer + spent.exit_head, whole - layer * spent.layer
    rollout = _WINDOW * prefix if spent.rollout is None else spent.rollout
    return (prefix + max(suffix, rollout) + (1 - covered) * rollout) / whole


def best(steps: Mapping[int, float], layers: int) -> int:
    """The layer with the shortest step; of those equal to a thousandth, the most central one."""
    return min(steps, key=lambda layer: (round(steps[layer], 3), abs(2 * layer - layers), layer))


def costs(
    model: ModelProto, spec: ModelSpec, exit_vocabulary: int, rank: int, rollout: float | None
) -> Costs:
    """The costs of a target, from its full graph; `rollout` as in `Costs`."""
    read = _reads(model)
    width = 4 if spec.dtype == "float32" else 2
    exit_head = read[-1] * exit_vocabulary / spec.vocabulary + 2 * spec.hidden * rank * width
    return Costs(spec.layers, sum(read[:-1]) / spec.layers, read[-1], exit_head, rollout)


def rollout_bytes(draft: ModelProto, streams: int) -> float:
    """Bytes that a draft reads for a branch of 7 tokens, if half of its streams' guesses hold."""
    return sum(_reads(draft)) * _WINDOW / (1 + streams / 2)


def _reads(model: ModelProto) -> list[int]:
    """Bytes of weights that each matrix product of a graph reads; the LM head is last."""
    stored = {tensor.name: weights.size(tensor) for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    return [
        sum(stored.get(name, 0) for name in _sources(node, made))
        for node in model.graph.node
        if node.op_type in _PRODUCTS
    ]


def _sources(node: NodeProto, made: Mapping[str, NodeProto]) -> Iterator[str]:
    """The names of the stored weights that `node` reads."""
    for name in node.input[1:]:
        while (maker := made.get(name)) is not None and maker.op_type in _SAME_WEIGHT:
            name = maker.input[0]
        yield name
