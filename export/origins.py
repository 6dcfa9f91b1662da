"""Where a decoder comes from: a checkpoint, a GenAI folder, or a model of an ONNX bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from mirror_edge import bundle as bundles
from mirror_edge.devices import Device
from mirror_edge.errors import ExportError
from mirror_edge.export import reference
from mirror_edge.export.attention import sliding_window
from mirror_edge.export.checkpoint import decoder_spec, read_checkpoint
from mirror_edge.export.decoder import Decoder
from mirror_edge.export.exit_head import Exit
from mirror_edge.export.facts import model_spec
from mirror_edge.export.from_graphs import graph_exit, graph_files, graph_streams, read_graphs
from mirror_edge.export.full_graph import load
from mirror_edge.export.source import Source
from mirror_edge.export.streams import Streams
from mirror_edge.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Role",
    "layers_of",
    "longest_context",
    "read_decoder",
    "read_exit",
    "read_streams",
    "source_logits",
]

Role = Literal["target", "draft"]


def layers_of(source: Source, role: Role) -> int:
    """How many layers a model has."""
    return _spec(source, role).layers if source.kind == "bundle" else _config(source, role)[0]


def longest_context(source: Source, role: Role) -> int:
    """A model's context in tokens, no longer than its sliding window."""
    return _spec(source, role).context if source.kind == "bundle" else _config(source, role)[1]


def _config(source: Source, role: Role) -> tuple[int, int]:
    """Layers and context of a model that is not in a bundle."""
    if source.kind == "checkpoint":
        spec = decoder_spec(source)
        return spec.layers, min(spec.context, sliding_window(source) or spec.context)
    if source.kind != "genai" or source.graph is None:
        raise ExportError(
            f"{source.folder}: Core ML programs are made from a checkpoint, from a folder in ONNX "
            f"Runtime GenAI's format, or from a bundle; this {role} was written by {source.kind}."
        )
    found = model_spec(source, load(source.graph), {})
    return found.layers, found.context


def _spec(source: Source, role: Role) -> bundles.ModelSpec:
    manifest = bundles.read(source.folder, verify=False).manifest
    if role == "target":
        return manifest.target.model
    if manifest.draft is None:
        raise ExportError(f"--draft {source.folder}: this bundle has no draft. Give another one.")
    return manifest.draft.model


def read_decoder(source: Source, role: Role, context: int) -> Decoder:
    """A model in float32, with rotary tables for `context` positions."""
    if source.kind == "checkpoint":
        return read_checkpoint(source, context)
    if source.kind == "bundle":
        return read_graphs(graph_files(source, role), _spec(source, role).architecture, context)
    assert source.graph is not None
    architecture = model_spec(source, load(source.graph), {}).architecture
    return read_graphs([source.graph], architecture, context)


def read_exit(source: Source) -> Exit | None:
    """The exit of a bundled target; None for other sources."""
    if source.kind != "bundle":
        return None
    spec = bundles.read(source.folder, verify=False).manifest.target
    return graph_exit(source.folder / spec.exit, spec.exit_layer)


def read_streams(source: Source) -> Streams | None:
    """The streams of a draft, from its checkpoint's folder or its bundled graph."""
    if source.kind != "bundle":
        return Streams.read(source.folder)
    draft = bundles.read(source.folder, verify=False).manifest.draft
    if draft is None or not draft.streams:
        return None
    return graph_streams(source.folder / draft.graph, draft.streams, draft.stream_layers)


def source_logits(source: Source, role: Role, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logits of every row of `ids`, computed by the source model itself."""
    if source.kind == "checkpoint":
        return reference.checkpoint_logits(source, [ids], exact=True)[0]
    if source.graph is not None:
        spec = model_spec(source, load(source.graph), {})
        return reference.graph_logits(source.graph, spec, [ids])[0]
    from mirror_edge.runtimes.onnx.runtime import cpu

    bundle = bundles.read(source.folder)
    if role == "target":
        target = cpu().open_target(bundle, Device("cpu"), 1, Trace())
        target.prefix(ids.tolist(), 0, 0)
        return target.suffix()
    draft, rows = cpu().open_draft(bundle, Device("cpu"), 1, Trace()), np.arange(len(ids))
    return draft.forward(ids, rows, 0, None, rows)
