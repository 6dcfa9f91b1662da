"""One model as its full graph: built or copied, described, and compared with its checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import ModelProto

from mirror_edge.bundle import ModelSpec, Precision
from mirror_edge.errors import ExportError
from mirror_edge.export import check, reference, weights
from mirror_edge.export.attention import (
    keep_short_tables,
    layer_kinds,
    settle,
    sliding_window,
    steady_context,
)
from mirror_edge.export.builder import build
from mirror_edge.export.embedding import read_in_place, round_embedding
from mirror_edge.export.facts import model_spec, probe_layers
from mirror_edge.export.source import OnProgress, Source, read_json
from mirror_edge.export.tokenizer import sample_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["FullGraph", "against_checkpoint", "disk_needed", "full_graph", "load"]

_SAMPLE_TOKENS, _LONGEST_WINDOW = 48, 1000
"""Tokens of the text that is checked, and the widest sliding window that it is made to exceed."""
_QUANTISED = {"int4", "int4-mixed", "int8"}
_BYTES = {"int4": 0.7, "int4-mixed": 0.9, "int8": 1.2, "fp16": 2.0, "fp32": 4.0}
"""Bytes of a parameter, including scales and unquantised tensors."""


@dataclass(frozen=True)
class FullGraph:
    """A model as ``full.onnx``, next to its weights in `folder`."""

    role: Literal["target", "draft"]
    source: Source
    folder: Path
    model: ModelProto
    spec: ModelSpec
    ids: NDArray[np.int64]
    """The text that it is checked on."""
    notes: tuple[str, ...]
    named: int
    """How many tokens its logits name, those with the lowest ids."""


def full_graph(
    role: Literal["target", "draft"],
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    precision: Precision,
    on_progress: OnProgress,
) -> FullGraph:
    """Build the graph of a checkpoint, in this `precision`, or copy that of an ONNX folder.

    Raises:
        ExportError: for a model that cannot be built, or whose context is too short.
    """
    folder.mkdir()
    graph, built = source.graph, folder / "built"
    stage = f"Building the {role}"
    if graph is None:
        graph = build(source, precision, built, lambda share: on_progress(stage, share))
    model = load(graph)
    settle(model, source)
    steady = keep_short_tables(model) or steady_context(source)
    weights.gather(model, graph.parent, folder / "weights.bin", move=source.graph is None)
    if source.graph is None and precision in _QUANTISED:
        round_embedding(model, folder / "weights.bin")
    read_in_place(model)
    spec = model_spec(source, model, read_json(built / "genai_config.json"))
    shutil.rmtree(built, ignore_errors=True)
    onnx.save(model, folder / "full.onnx")
    on_progress(stage, 1.0)

    spec, notes = _within_reach(spec, source, role, steady)
    window = sliding_window(source) or 0
    length = _SAMPLE_TOKENS
    if window < _LONGEST_WINDOW:
        length = max(length, window + _SAMPLE_TOKENS // 2)
    length = min(length, spec.context - check.TREE_NODES)
    if length < check.SHORTEST:
        raise ExportError(
            f"{source.folder}: its context of {spec.context} tokens is too short. "
            "Choose a model with a longer one."
        )
    ids = sample_ids(tokenizer, length, spec.vocabulary)
    return FullGraph(role, source, folder, model, spec, ids, notes, spec.vocabulary)


def _within_reach(
    spec: ModelSpec, source: Source, role: str, steady: int | None
) -> tuple[ModelSpec, tuple[str, ...]]:
    """`spec` with the context in which the graph is right, and notes for the user."""
    notes = []
    if "vision_config" in source.config:
        notes.append(f"only the text part of the {role} is exported; it cannot read images.")
    if steady and steady < spec.context:
        spec = replace(spec, context=steady)
        notes.append(
            f"the {role}'s context is limited to {steady:,} tokens: beyond that, LongRoPE would "
            "change the rotary embedding of every position."
        )
    return spec, tuple(notes)


def against_checkpoint(model: FullGraph) -> dict[str, float]:
    """Compare the full graph with transformers; returns the deviations by name.

    Quantisation moves logits as far as a wrong graph would. The first layers of a quantised graph
    are therefore also built in float32, which shows whether the architecture is right. For an ONNX
    folder there is nothing to compare with: its graph is the source.

    Raises:
        ExportError: for a graph that deviates too far.
    """
    source, spec, ids, role = model.source, model.spec, model.ids, model.role
    if source.kind != "checkpoint":
        return {}
    deviations = {}
    if spec.precision != "fp32":
        layers = probe_layers(layer_kinds(source), spec.layers)
        folder = model.folder / "probe"
        graph = build(source, "fp32", folder, lambda _: None, layers=layers)
        first = load(graph)
        settle(first, source)
        onnx.save(first, graph)
        probe = model_spec(source, first, read_json(folder / "genai_config.json"))
        name = f"the first {layers} layers of the {role} in fp32"
        deviations[name] = check.compare(
            name,
            reference.graph_logits(graph, probe, [ids])[0],
            reference.checkpoint_logits(source, [ids], exact=True, layers=layers)[0],
            check.source_limit(probe),
        )
        shutil.rmtree(folder)
    name = f"the full graph of the {role} in {spec.precision}"
    found = reference.graph_logits(model.folder / "full.onnx", spec, [ids])
    exact = spec.precision in {"fp16", "fp32"}
    expected = reference.checkpoint_logits(source, [ids], exact=exact)
    deviations[name] = check.compare(name, found[0], expected[0], check.source_limit(spec))
    return deviations


def load(graph: Path) -> ModelProto:
    """Read a graph without its external weights."""
    try:
        return onnx.load(graph, load_external_data=False)
    except Exception as error:
        raise ExportError(
            f"{graph}: cannot be read as an ONNX graph ({error}). Copy the model folder again."
        ) from error


def disk_needed(source: Source, precision: Precision) -> int:
    """About how many bytes of disk the export of one model takes at its peak."""
    files = [path for path in source.folder.iterdir() if path.is_file()]
    if source.graph is not None:
        return sum(path.stat().st_size for path in files if ".onnx" in path.name)
    config = source.text_config
    stored = sum(path.stat().st_size for path in files if path.suffix in {".safetensors", ".bin"})
    parameters = stored / source.weight_bytes
    if precision == "fp32":
        return int(parameters * _BYTES[precision])
    layers = max(config.get("num_hidden_layers", 1), 1)
    probe = 4 * parameters * probe_layers(config.get("layer_types") or [], layers) / layers
    whole = parameters * _BYTES[precision]
    embedding = config.get("vocab_size", 0) * config.get("hidden_size", 0)
    if precision not in _QUANTISED:
        return int(whole + 8 * embedding + probe)
    # The file has the embedding in both forms when it is copied without the first.
    left, built = whole + 1.125 * embedding, whole + 5.125 * embedding
    return int(left + max(built, probe))
