"""The target's own early exit as a draft: its layers up to the exit, and the exit head.

It is a decoder like any other draft, and shares the target's weights on disk.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from mirror_edge.export import weights
from mirror_edge.export.exit_head import Exit
from mirror_edge.export.full_graph import FullGraph
from mirror_edge.export.graph import copy, part, reads, rename, value
from mirror_edge.export.residuals import opened, residuals

__all__ = ["EARLY_EXIT", "early_exit", "is_early_exit", "shared_bytes"]

EARLY_EXIT = "early-exit"
"""Its name as --draft."""
_OWN = "exit/own/"
_NEVER = -1e9
"""The logit of a token that the exit head cannot name."""


def is_early_exit(draft: str | Path | None) -> bool:
    """Whether `draft` means the target's own early exit; a folder of that name takes precedence."""
    return str(draft) == EARLY_EXIT and not Path(EARLY_EXIT).exists()


def early_exit(target: FullGraph, leave: Exit, logits: ModelProto) -> FullGraph:
    """The full graph of the draft: `target` up to the exit, then `logits`, from `hidden`.

    It is written to ``full.onnx``, in place of the target's.
    """
    spec, folder, layer = target.spec, target.folder, leave.layer
    cut = residuals(target.model, spec, layer)[-1]
    graph, head = opened(target.model, {cut}), _apart(logits, cut)
    made = _OWN + "logits"
    if leave.tokens is not None:
        place = np.full(spec.vocabulary, len(leave.tokens), np.int64)
        place[leave.tokens] = np.arange(len(leave.tokens))
        head.graph.initializer.append(weights.store("exit/place", place, folder / "exit.bin"))
        head.graph.node.extend(_widened(made, "exit/wide"))
        made = "exit/wide"
    rename(graph, {"logits": "source/logits"})
    graph.graph.node.extend(head.graph.node)
    graph.graph.node.append(helper.make_node("Identity", [made], ["logits"]))
    graph.graph.initializer.extend(head.graph.initializer)
    wide = value("logits", TensorProto.FLOAT, [1, "S", spec.vocabulary])
    inputs, outputs = graph.graph.input, graph.graph.output
    caches = [entry for entry in outputs if entry.name in _names("present", layer)]
    pasts = {entry.name for entry in inputs if entry.name.startswith("past_key_values.")}
    unused = pasts - _names("past_key_values", layer)
    whole = part(graph, [entry for entry in inputs if entry.name not in unused], [wide, *caches])
    onnx.save(whole, folder / "full.onnx")
    return replace(target, role="draft", model=whole, spec=replace(spec, layers=layer), notes=())


def _apart(logits: ModelProto, cut: str) -> ModelProto:
    """The exit head, reading `cut`, with names that differ from those of the target's LM head."""
    head = copy(logits)
    names = {name for node in head.graph.node for name in [*reads(node), *node.output]}
    rename(head, {name: _OWN + name for name in names} | {"hidden": cut})
    return head


def _names(caches: str, layers: int) -> set[str]:
    return {f"{caches}.{i}.{kind}" for i in range(layers) for kind in ("key", "value")}


def _widened(narrow: str, wide: str) -> list[onnx.NodeProto]:
    """Append one logit to a row, for all tokens that the exit head cannot name."""
    never = helper.make_tensor("never", TensorProto.FLOAT, [], [_NEVER])
    pads = helper.make_tensor("pads", TensorProto.INT64, [6], [0, 0, 0, 0, 0, 1])
    return [
        helper.make_node("Constant", [], ["exit/never"], value=never),
        helper.make_node("Constant", [], ["exit/pads"], value=pads),
        helper.make_node("Pad", [narrow, "exit/pads", "exit/never"], ["exit/padded"]),
        helper.make_node("Gather", ["exit/padded", "exit/place"], [wide], axis=2),
    ]


def shared_bytes(graph: ModelProto) -> int:
    """Bytes of external weights that a graph refers to."""
    return sum(
        weights.size(tensor)
        for tensor in graph.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    )
