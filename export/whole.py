"""One model as an uncut graph: built or taken over, described, and held against its checkpoint."""

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
from mirror_edge.export.facts import model_spec, probe_layers
from mirror_edge.export.source import OnProgress, Source, read_json
from mirror_edge.export.tokenizer import sample_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["Whole", "against_checkpoint", "disk_needed", "load", "whole"]

_SAMPLE_TOKENS, _LONGEST_WINDOW = 48, 1000
"""The check's text; it is made longer than a sliding window of up to so many tokens."""
_BYTES = {"int4": 0.7, "int8": 1.2, "fp16": 2.0, "fp32": 4.0}
"""Of a parameter, with scales and what stays unquantised."""


@dataclass(frozen=True)
class Whole:
    """A model as the uncut graph ``full.onnx``, beside its weights in `folder`."""

    role: Literal["target", "draft"]
    source: Source
    folder: Path
    model: ModelProto
    spec: ModelSpec
    ids: NDArray[np.int64]
    """The text it is checked on."""
    notes: tuple[str, ...]
    named: int
    """How many tokens its logits name, those with the lowest ids."""


def whole(
    role: Literal["target", "draft"],
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    precision: Precision,
    on_progress: OnProgress,
) -> Whole:
    """Bring a model's graph and weights into `folder`; `precision` is of those that are built."""
    folder.mkdir()
    graph, built = source.graph, folder / "built"
    stage = f"Building the {role}"
    if graph is None:
        graph = build(source, precision, built, lambda share: on_progress(stage, share))
    model = load(graph)
    settle(model, source)
    steady = keep_short_tables(model) or steady_context(source)
    weights.gather(model, graph.parent, folder / "weights.bin", move=source.graph is None)
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
    return Whole(role, source, folder, model, spec, ids, notes, spec.vocabulary)


def _within_reach(
    spec: ModelSpec, source: Source, role: str, steady: int | None
) -> tuple[ModelSpec, tuple[str, ...]]:
    """`spec` with a context in which the graph is right, and what the user should know of it."""
    notes = []
    if "vision_config" in source.config:
        notes.append(f"of the {role} there is the text part only: it will not read pictures.")
    if steady and steady < spec.context:
        spec = replace(spec, context=steady)
        ends = f"the {role}'s context ends at {steady:,} tokens"
        notes.append(f"{ends}, before it would turn all positions otherwise (LongRoPE).")
    return spec, tuple(notes)


def against_checkpoint(model: Whole) -> dict[str, float]:
    """Hold the uncut graph against transformers; a quantised one's first layers also unquantised.

    Quantisation moves logits as far as a wrong graph does, so only the second shows that the
    architecture was understood. An ONNX folder has nothing behind it: its graph is the source.
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
    name = f"the whole graph of the {role} in {spec.precision}"
    found = reference.graph_logits(model.folder / "full.onnx", spec, [ids])
    exact = spec.precision in {"fp16", "fp32"}
    expected = reference.checkpoint_logits(source, [ids], exact=exact)
    deviations[name] = check.compare(name, found[0], expected[0], check.source_limit(spec))
    return deviations


def load(graph: Path) -> ModelProto:
    """A graph without its external weights."""
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
    embedding = 4 * config.get("vocab_size", 0) * config.get("hidden_size", 0)
    layers = max(config.get("num_hidden_layers", 1), 1)
    probe = 4 * parameters * probe_layers(config.get("layer_types") or [], layers) / layers
    return int(parameters * _BYTES[precision] + 2 * embedding + probe)
