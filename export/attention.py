"""How far the attention of a whole graph looks back, and how far its rotary tables reach."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto

from mirror_edge.export.graph import attribute
from mirror_edge.export.source import Source

__all__ = [
    "keep_short_tables",
    "keep_whole_caches",
    "looks_back",
    "sliding_window",
    "steady_context",
]

_ATTENTION, _COS = "GroupQueryAttention", 7
_RING = "sliding_window_cache"


def keep_whole_caches(model: ModelProto) -> None:
    """Give layers that look back through a window caches as long as the others', in place.

    A ring of the window's size forgets what stood before a row, which cannot be taken back then.
    """
    for node in _attention(model):
        kept = [item for item in node.attribute if item.name != _RING]
        del node.attribute[:]
        node.attribute.extend(kept)


def looks_back(model: ModelProto) -> int | None:
    """The shortest window that a layer of the graph looks back through, if any does."""
    found = [attribute(node, "local_window_size") for node in _attention(model)]
    windows = [window for window in found if isinstance(window, int) and window > 0]
    return min(windows, default=None)


def keep_short_tables(model: ModelProto) -> int | None:
    """Where the rotary tables depend on the length of the text (LongRoPE), keep the short ones.

    In place. How many positions these have; None where there is no such choice.
    """
    graph = model.graph
    names = {node.input[_COS] for node in _attention(model)}
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
    """How far back attention of a checkpoint looks, where that is limited."""
    config = source.text_config
    if source.kind != "checkpoint" or not config.get("use_sliding_window", True):
        return None
    window = config.get("sliding_window")
    return window if isinstance(window, int) and window > 0 else None


def steady_context(source: Source) -> int | None:
    """Tokens from which on a checkpoint turns all positions otherwise, if it ever does (LongRoPE).

    What is cached by then would be another text's, so no step may cross it.
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
    """The constants that each branch of an `If` gives, in the order of its outputs."""
    found = []
    for branch in (item.g for item in choice.attribute):
        made = {node.output[0]: node for node in branch.node if node.op_type == "Constant"}
        if not made.keys() >= {entry.name for entry in branch.output}:
            return []
        found.append([made[entry.name].attribute[0].t for entry in branch.output])
    return found
