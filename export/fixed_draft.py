"""A draft's graphs of fixed shapes: written next to it, and compared with its own graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from mirror_edge.bundle import Bundle, DraftSpec, FixedSpec, Manifest, TargetSpec
from mirror_edge.devices import Device
from mirror_edge.export import check, weights
from mirror_edge.export.fixed import fixed_graph, fixed_spec
from mirror_edge.export.full_graph import FullGraph, load
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.fixed_draft import FixedDraft
from mirror_edge.runtimes.onnx.providers import CPU
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mirror_edge.protocols import DraftGraph

__all__ = ["write_fixed"]

_SAME = {"fp32": 1e-4, "fp16": 5e-2}
"""How far the fixed graphs may deviate from the other one, by how weights are stored."""


def write_fixed(
    folder: Path, target: TargetSpec, draft: DraftSpec, exact: FullGraph, exact_draft: DraftSpec
) -> tuple[FixedSpec, float]:
    """Write them into the bundle `folder`; returns their sizes and how far they deviate.

    `exact` is the draft in float32, whose checked graph is in its folder. If that is the bundle's
    own draft, weights are shared; otherwise they are stored as 16-bit floats.

    Raises:
        ExportError: if the architecture cannot have fixed shapes, or they deviate too far.
    """
    place = PurePosixPath(draft.graph).parent
    graph = load(exact.folder / PurePosixPath(exact_draft.graph).name)
    sizes = fixed_spec(exact.spec, draft.streams)
    fixed = replace(
        sizes,
        prefill=f"{place}/{Path(sizes.prefill).name}",
        rollout=f"{place}/{Path(sizes.rollout).name}",
    )
    shared = exact.folder == folder / place
    halves: dict[str, TensorProto] = {}
    for name, rollout in ((fixed.prefill, False), (fixed.rollout, True)):
        made = fixed_graph(
            graph, exact.spec, fixed, draft.streams, rollout=rollout, named=draft.named
        )
        if not shared:
            _halve(made, exact.folder, folder / place / "fixed.bin", halves)
        onnx.save(made, folder / name)
    here = _opened(folder, target, replace(draft, fixed=fixed))
    there = _opened(folder, target, exact_draft)
    limit = _SAME["fp32" if shared else "fp16"]
    return fixed, _compare(FixedDraft(*here), OnnxDraft(*there), exact.ids, limit)


def _opened(folder: Path, target: TargetSpec, draft: DraftSpec) -> tuple[Bundle, Setup]:
    setup = Setup(CPU.place(Device("cpu")), 1, (), Trace())
    return Bundle(folder, Manifest("", target, draft, "", {})), setup


def _halve(model: ModelProto, folder: Path, file: Path, stored: dict[str, TensorProto]) -> None:
    """Store large weights as 16-bit floats in `file`, in place; `stored` ones are there already."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL or tensor.data_type != TensorProto.FLOAT:
            continue
        half = f"{tensor.name}/half"
        casts.append(helper.make_node("Cast", [half], [tensor.name], half, to=TensorProto.FLOAT))
        if half not in stored:
            values = np.asarray(weights.load(tensor, folder), dtype=np.float16)
            stored[half] = weights.store(half, values, file)
        tensor.CopyFrom(stored[half])
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _compare(fixed: DraftGraph, free: DraftGraph, ids: NDArray[np.int64], limit: float) -> float:
    """Check a text in chunks, a tree with streams, and a branch that came true; the deviation."""
    found: list[NDArray[np.float32]] = []
    expected: list[NDArray[np.float32]] = []
    tree = check.tree_after(ids)
    size, end = len(tree.parents), len(ids) - 1

    def forward(
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        streamed: Sequence[int],
    ) -> None:
        ahead = fixed.streams if len(streamed) else 0
        rows = np.array(streamed) if ahead else None
        for graph, logits in ((fixed, found), (free, expected)):
            every = np.arange(len(tokens))
            logits.append(
                graph.forward(tokens, positions, start, hidden, every, rows, ahead).copy()
            )

    half = end // 2
    forward(ids[:half], np.arange(half), 0, None, [])
    forward(ids[half:end], np.arange(half, end), half, None, [0, end - half - 1])
    hidden = np.ones((size, size), dtype=np.bool_)
    for node in range(size):
        hidden[node, tree.path(node)] = False
    depths = np.array([len(tree.path(node)) - 1 for node in range(size)])
    forward(tree.tokens, end + depths, end, hidden, range(size))
    branch = tree.path(size - 1)
    for graph in (fixed, free):
        graph.move([end + node for node in branch], end)
    last = end + len(branch)
    forward(ids[-1:], np.array([last]), last, None, [0])
    rows, others = np.concatenate(found), np.concatenate(expected)
    return check.compare("the draft's graphs of fixed shapes", rows, others, limit)
