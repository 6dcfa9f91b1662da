"""How far the attention of a full graph looks back, and how far its rotary tables reach."""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto, helper

from mirror_edge.export.graph import attribute
from mirror_edge.export.source import Source

__all__ = [
    "LayerKind",
    "keep_short_tables",
    "layer_kinds",
    "looks_back",
    "settle",
    "sliding_window",
    "steady_context",
]

_ATTENTION, _PAST, _COS, _SIN = "GroupQueryAttention", 3, 7, 8
"""The operator, and three of its inputs."""
_RING, _WINDOW, _ROTARY = "sliding_window_cache", "local_window_size", "do_rotary"


class LayerKind(NamedTuple):
    """What attention does in one layer of a checkpoint."""

    windowed: bool
    """Whether it only looks back through the model's sliding window, if the model has one."""
    rotary: bool
    """Whether queries and keys get rotary embeddings."""


def settle(model: ModelProto, source: Source) -> None:
    """Make caches hold all rows, and windows and rotary embeddings what the checkpoint has.

    In place. A ring buffer would lose rows that are needed again after a rejected guess.
    """
    left_out = sliding_window(source) if looks_back(model) is None else None
    kinds = layer_kinds(source)
    for node in _attention(model):
        kind = kinds[int(node.input[_PAST].split(".")[1])] if kinds else LayerKind(True, True)
        changed = {} if kind.rotary else {_ROTARY: 0}
        if left_out and kind.windowed:
            changed[_WINDOW] = left_out
        if not kind.rotary:
            node.input[_COS] = node.input[_SIN] = ""
        kept = [item for item in node.attribute if item.name not in {_RING, *changed}]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(*item) for item in changed.items())


def looks_back(model: ModelProto) -> int | None:
    """The shortest sliding window in the graph, in tokens; None without one."""
    found = [attribute(node, _WINDOW) for node in _attention(model)]
    windows = [window for window in found if isinstance(window, int) and window > 0]
    return min(windows, default=None)


def keep_short_tables(model: ModelProto) -> int | None:
    """Keep only the short one of two sets of rotary tables (LongRoPE), in place.

    Returns how many positions it covers; None where there is no such choice.
    """
    graph = model.graph
    names = {node.input[_COS] for node in _attention(model) if len(node.input) > _COS}
    choice = next(
        (node for node in graph.node if node.op_type == "If" and names & set(node.output)), None
    )
    if choice is None:
        return None
    short = min(_tables(choice), key=lambda tables: int(tables[0].dims[0]), default=[])
    if not short:
        return None
    for name, table in zip(choice.output, short, strict=True):
        kept = graph.initializer.add()
        kept.CopyFrom(table)
        kept.name = name
    graph.node.remove(choice)
    return int(short[0].dims[0])


def sliding_window(source: Source) -> int | None:
    """The sliding window of a checkpoint, in tokens; None without one."""
    config = source.text_config
    if source.kind != "checkpoint" or not config.get("use_sliding_window", True):
        return None
    window = config.get("sliding_window")
    return window if isinstance(window, int) and window > 0 else None


def layer_kinds(source: Source) -> list[LayerKind]:
    """The kind of each layer of a checkpoint by transformers; empty if they are all alike.

    Published configurations often leave this to transformers.
    """
    if source.kind != "checkpoint":
        return []
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.folder, local_files_only=True).get_text_config()
    types = getattr(config, "layer_types", None) or []
    rotary = getattr(config, "no_rope_layers", None) or [1] * len(types)
    types = types or ["sliding_attention"] * len(rotary)
    return [
        LayerKind(kind == "sliding_attention", bool(rotates))
        for kind, rotates in zip(types, rotary, strict=True)
    ]


def steady_context(source: Source) -> int | None:
    """The length beyond which LongRoPE changes the rotary embedding of every position, in tokens.

    None without LongRoPE. Cached keys would be wrong beyond it, so no text may cross it.
    """
    config = source.text_config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or (rope.get("rope_type") or rope.get("type")) != "longrope":
        return None
    known = (part.get("original_max_position_embeddings") for part in (rope, config))
    return next((length for length in known if isinstance(length, int) and length > 0), None)


def _attention(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == _ATTENTION]


def _tables(choice: NodeProto) -> list[list[TensorProto]]:
    """The constants that each branch of an `If` returns, in the order of its outputs."""
    found = []
    for branch in (item.g for item in choice.attribute):
        made = {node.output[0]: node for node in branch.node if node.op_type == "Constant"}
        if not made.keys() >= {entry.name for entry in branch.output}:
            return []
        found.append([made[entry.name].attribute[0].t for entry in branch.output])
    return found
