"""The graphs of a bundle: cut out of full ones, written, and checked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import ModelProto

from mirror_edge.bundle import DraftSpec, TargetSpec
from mirror_edge.errors import ExportError
from mirror_edge.export import check, reference
from mirror_edge.export.attention import looks_back
from mirror_edge.export.early_exit import early_exit, shared_bytes
from mirror_edge.export.exit_head import Exit, exit_graph, exit_logits, norm_and_head
from mirror_edge.export.fixed_draft import write_fixed
from mirror_edge.export.full_graph import FullGraph, load
from mirror_edge.export.rotary import room_for_branches
from mirror_edge.export.split import draft_graph, split_target
from mirror_edge.export.stream_logits import stream_logits
from mirror_edge.export.streams import Streams

__all__ = ["cut_draft", "cut_own_draft", "cut_target", "fix_draft"]


def cut_target(model: FullGraph, leave: Exit) -> tuple[TargetSpec, ModelProto, dict[str, float]]:
    """Write and check the three graphs of the target.

    Returns its entry in the manifest, the graph of the exit head's logits, and the deviations.
    """
    spec, folder = model.spec, model.folder
    graphs = split_target(model.model, spec, leave.layer)
    logits = exit_logits(graphs.tail, spec, folder, leave)
    norm, head = norm_and_head(graphs.tail, spec)
    pieces = {"prefix": graphs.prefix, "suffix": graphs.suffix, "norm": norm, "head": head}
    pieces["exit"] = exit_graph(logits, folder, leave.tokens)
    for name, graph in pieces.items():
        onnx.save(graph, folder / f"{name}.onnx")
    expected = reference.graph_logits(folder / "full.onnx", spec, [model.ids])
    size = spec.vocabulary if leave.tokens is None else len(leave.tokens)
    deviations = {
        "target, cut": check.check_target(folder, spec, model.ids, expected[0]),
        "exit head": check.check_exit(folder, spec, size, leave.correction),
    }
    for scaffold in ("full", "norm", "head"):
        (folder / f"{scaffold}.onnx").unlink()
    return TargetSpec(spec, leave.layer, size), logits, deviations


def cut_draft(model: FullGraph, streams: Streams | None) -> tuple[DraftSpec, dict[str, float]]:
    """Write and check the draft's graph; its entry in the manifest, and the deviations."""
    spec, folder = model.spec, model.folder
    ids = model.ids[: _unbounded(model)]
    tree = check.tree_after(ids)
    if streams is not None:
        streams.refuse_unless_for(model.source.folder, spec.layers, spec.hidden)
    count, layers = (0, 0) if streams is None else (streams.count, streams.layers)
    rows = room_for_branches(model.model, folder, count)
    graph = draft_graph(model.model, spec, folder, streams, model.named)
    onnx.save(graph, folder / "draft.onnx")
    texts = [ids, *tree.texts(ids)]
    expected = reference.graph_logits(folder / "full.onnx", spec, texts)
    ahead = None
    if streams is not None:
        ahead = stream_logits(model.model, spec, folder, streams, check.streamed(ids, tree))
    deviation = check.check_draft(folder, spec, ids, tree, expected, ahead)
    (folder / "full.onnx").unlink()
    name = "draft, with trees" + (" and streams" if count else "")
    named = 0 if model.named == spec.vocabulary else model.named
    return DraftSpec(spec, count, layers, rows, head_vocabulary=named), {name: deviation}


def _unbounded(model: FullGraph) -> int:
    """How many tokens every layer of a draft sees, with a tree of guesses after them.

    A sliding window counts rows of the cache, so rows of branches shorten it. Beyond this length
    that changes some guesses, but never the text.
    """
    window = looks_back(model.model)
    if window is None:
        return len(model.ids)
    if window < check.SHORTEST + check.TREE_NODES:
        raise ExportError(
            f"{model.source.folder}: looks back through a window of {window} tokens, which is too "
            "short for a draft's branches. Choose another draft."
        )
    return window - check.TREE_NODES


def cut_own_draft(
    target: FullGraph, leave: Exit, logits: ModelProto
) -> tuple[DraftSpec, dict[str, float]]:
    """Write and check a draft made of the target's own layers, sharing its weights."""
    spec, off = cut_draft(early_exit(target, leave, logits), None)
    shared = shared_bytes(load(target.folder / "draft.onnx"))
    return replace(spec, graph="target/draft.onnx", shared_bytes=shared), off


def fix_draft(
    folder: Path, target: TargetSpec, draft: DraftSpec, exact: FullGraph
) -> tuple[DraftSpec, dict[str, float]]:
    """Write and check the draft's graphs for NPUs, made from `exact`, its graph in float32."""
    free = draft
    if exact.folder.name == "exact":
        free, _ = cut_draft(exact, Streams.read(exact.source.folder))
        free = replace(free, graph="exact/draft.onnx")
    fixed, off = write_fixed(folder, target, draft, exact, free)
    shutil.rmtree(folder / "exact", ignore_errors=True)
    return replace(draft, fixed=fixed), {"draft, at fixed shapes": off}
