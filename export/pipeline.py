"""From two models to one bundle: build, cut, check, and only then write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from onnx import ModelProto
from tokenizers import Tokenizer

from mirror_edge.bundle import DraftSpec, Manifest, ModelSpec, Precision, TargetSpec, write_manifest
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import check, reference, weights
from mirror_edge.export.builder import build
from mirror_edge.export.exit_head import FULL_VOCABULARY, Correction, exit_graph
from mirror_edge.export.facts import graph_precision, model_spec, probe_layers, sliding_window
from mirror_edge.export.output import refuse_without_space, whole_folder
from mirror_edge.export.source import Source, locate, read_json
from mirror_edge.export.split import draft_graph, split_target
from mirror_edge.export.tokenizer import (
    common_tokens,
    read_tokenizer,
    refuse_different,
    sample_ids,
    write_files,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Exported", "run"]

OnProgress = Callable[[str, float], None]
"""Hears the name of a stage and how much of it is done, 0 to 1."""
Role = Literal["target", "draft"]

_SAMPLE_TOKENS, _LONGEST_WINDOW = 48, 1000
"""The check's text; it is made longer than a sliding window of up to so many tokens."""
_DEFAULT: Precision = "int4"
_BYTES = {"int4": 0.7, "int8": 1.2, "fp16": 2.0, "fp32": 4.0}
"""Of a weight, scales and unquantised matrices included."""


@dataclass(frozen=True)
class Exported:
    """A finished bundle, and how far its graphs are from the models they come from.

    Deviations are the worst row's root mean square error, in standard deviations of the logits.
    """

    folder: Path
    manifest: Manifest
    deviations: dict[str, float]


@dataclass(frozen=True)
class _Whole:
    """One model as an uncut graph, ``full.onnx``, beside its weights in `folder`."""

    source: Source
    folder: Path
    model: ModelProto
    spec: ModelSpec
    ids: NDArray[np.int64]
    """The text it is checked on."""


def run(
    target: str | Path,
    draft: str | Path,
    output: str | Path,
    *,
    exit_layer: int | None,
    precision: Precision | None,
    draft_precision: Precision | None,
    exit_tokens: Sequence[int] | None,
    correction: Correction | None,
    force: bool,
    on_progress: OnProgress,
) -> Exported:
    """See `mirror_edge.export.export`."""
    output = Path(output).expanduser()
    sources = locate(target, "TARGET", on_progress), locate(draft, "--draft", on_progress)
    if sources[1].kind == "optimum":
        raise OptionError(
            f"--draft {draft}: was written by optimum, whose graphs cannot take trees of guesses. "
            "Give the draft as a checkpoint or as a folder in ONNX Runtime GenAI's format."
        )
    tokenizers = [read_tokenizer(source) for source in sources]
    refuse_different(*tokenizers)
    wanted = precision, draft_precision or precision
    for source, width, option in zip(
        sources, wanted, ("--precision", "--draft-precision"), strict=True
    ):
        _refuse_requantising(source, width, option)
    if known := sources[0].config.get("num_hidden_layers"):
        _chosen_layer(exit_layer, known)
    with whole_folder(output, force=force) as folder:
        needed = sum(_space(s, p or _DEFAULT) for s, p in zip(sources, wanted, strict=True))
        refuse_without_space(output, needed)
        whole, off = _whole("target", sources[0], tokenizers[0], folder, wanted[0], on_progress)
        target_spec = _target(whole, tokenizers[0], exit_layer, exit_tokens, correction, off)
        whole, off_draft = _whole(
            "draft", sources[1], tokenizers[1], folder, wanted[1], on_progress
        )
        draft_spec = _draft(whole, off_draft)
        on_progress("Writing the bundle", 0.0)
        write_files(sources[0], tokenizers[0], folder, target_spec.model.context)
        manifest = write_manifest(folder, output.name, target_spec, draft_spec)
    on_progress("Writing the bundle", 1.0)
    return Exported(output, manifest, {**off, **off_draft})


def _whole(
    role: Role,
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    precision: Precision | None,
    on_progress: OnProgress,
) -> tuple[_Whole, dict[str, float]]:
    """The uncut graph of a model, held against its checkpoint where there is one."""
    home = folder / role
    home.mkdir()
    graph, built = source.graph, home / "built"
    if graph is None:
        stage = f"Building the {role}"
        graph = build(source, precision or _DEFAULT, built, lambda share: on_progress(stage, share))
    model = _load(graph)
    weights.gather(model, graph.parent, home / "weights.bin", move=source.graph is None)
    spec = model_spec(source, model, read_json(built / "genai_config.json"))
    shutil.rmtree(built, ignore_errors=True)
    onnx.save(model, home / "full.onnx")

    length, window = _SAMPLE_TOKENS, sliding_window(source)
    if window and window < _LONGEST_WINDOW:
        length = max(length, window + _SAMPLE_TOKENS // 2)
    elif window:  # what lies behind the window is not checked, so it is not offered
        spec = replace(spec, context=min(spec.context, window))
    length = min(length, spec.context - check.TREE_NODES)
    if length < check.SHORTEST:
        raise ExportError(f"{source.folder}: its context of {spec.context} tokens is too short.")
    whole = _Whole(source, home, model, spec, sample_ids(tokenizer, length, spec.vocabulary))
    on_progress(f"Checking the {role}", 0.0)
    off = _against_checkpoint(role, whole) if source.kind == "checkpoint" else {}
    on_progress(f"Checking the {role}", 0.5)
    return whole, off


def _against_checkpoint(role: Role, whole: _Whole) -> dict[str, float]:
    """Hold the uncut graph against transformers; a quantised one's first layers also unquantised.

    Quantisation moves logits as far as a wrong graph does, so only the second shows that the
    architecture was understood.
    """
    source, spec, ids = whole.source, whole.spec, whole.ids
    off = {}
    if spec.precision != "fp32":
        layers = probe_layers(source)
        folder = whole.folder / "probe"
        graph = build(source, "fp32", folder, lambda _: None, layers=layers)
        probe = model_spec(source, _load(graph), read_json(folder / "genai_config.json"))
        name = f"the first {layers} layers of the {role} in fp32"
        off[name] = check.compare(
            name,
            reference.graph_logits(graph, probe, [ids])[0],
            reference.checkpoint_logits(source, [ids], exact=True, layers=layers)[0],
            check.source_limit(probe),
        )
        shutil.rmtree(folder)
    name = f"the whole graph of the {role} in {spec.precision}"
    found = reference.graph_logits(whole.folder / "full.onnx", spec, [ids])
    expected = reference.checkpoint_logits(source, [ids], exact=spec.precision == "fp32")
    off[name] = check.compare(name, found[0], expected[0], check.source_limit(spec))
    return off


def _target(
    whole: _Whole,
    tokenizer: Tokenizer,
    exit_layer: int | None,
    exit_tokens: Sequence[int] | None,
    correction: Correction | None,
    off: dict[str, float],
) -> TargetSpec:
    """Write and check the three graphs of the target."""
    spec, folder = whole.spec, whole.folder
    layer = _chosen_layer(exit_layer, spec.layers)
    if exit_tokens is None:
        eos = whole.source.eos_token_ids
        tokens = common_tokens(tokenizer, eos, spec.vocabulary, FULL_VOCABULARY)
    else:
        tokens = _named(exit_tokens, spec.vocabulary)
    graphs = split_target(whole.model, spec, layer)
    exits = exit_graph(graphs.tail, spec, folder, tokens, correction)
    pieces = {"prefix": graphs.prefix, "suffix": graphs.suffix, "exit": exits, "tail": graphs.tail}
    for name, graph in pieces.items():
        onnx.save(graph, folder / f"{name}.onnx")
    expected = reference.graph_logits(folder / "full.onnx", spec, [whole.ids])
    off["target"] = check.check_target(folder, spec, whole.ids, expected[0])
    size = spec.vocabulary if tokens is None else len(tokens)
    if correction is None:
        off["exit head"] = check.check_exit(folder, spec, size)
    for scaffold in ("full", "tail"):
        (folder / f"{scaffold}.onnx").unlink()
    return TargetSpec(spec, layer, size)


def _draft(whole: _Whole, off: dict[str, float]) -> DraftSpec:
    """Write and check the draft's graph."""
    spec, folder, tree = whole.spec, whole.folder, check.tree_after(whole.ids)
    onnx.save(draft_graph(whole.model, spec), folder / "draft.onnx")
    texts = [whole.ids, *tree.texts(whole.ids)]
    expected = reference.graph_logits(folder / "full.onnx", spec, texts)
    off["draft"] = check.check_draft(folder, spec, whole.ids, tree, expected)
    (folder / "full.onnx").unlink()
    return DraftSpec(spec)


def _load(graph: Path) -> ModelProto:
    try:
        return onnx.load(graph, load_external_data=False)
    except Exception as error:
        raise ExportError(
            f"{graph}: cannot be read as an ONNX graph ({error}). Copy the model folder again."
        ) from error


def _chosen_layer(exit_layer: int | None, layers: int) -> int:
    if layers < 2:
        raise ExportError("TARGET: has a single layer, and a target is cut between two.")
    if exit_layer is None:
        return layers // 2
    if not 1 <= exit_layer < layers:
        raise OptionError(
            f"--exit-layer {exit_layer}: must be from 1 to {layers - 1} "
            f"for a target of {layers} layers."
        )
    return exit_layer


def _refuse_requantising(source: Source, precision: Precision | None, option: str) -> None:
    if precision is None or source.graph is None:
        return
    there = graph_precision(_load(source.graph))
    if there != precision:
        raise OptionError(
            f"{option} {precision}: {source.folder} is an ONNX graph in {there} already, which "
            "cannot be changed. Leave the option out or give the checkpoint."
        )


def _named(tokens: Sequence[int], vocabulary: int) -> NDArray[np.int64] | None:
    named = np.unique(np.asarray(tokens, np.int64))
    if not named.size or named[0] < 0 or named[-1] >= vocabulary:
        raise OptionError(f"exit_tokens: must be ids from 0 to {vocabulary - 1}, at least one.")
    return None if named.size == vocabulary else named


def _space(source: Source, precision: Precision) -> int:
    """About how many bytes of disk the export of one model takes at its peak."""
    files = [path for path in source.folder.iterdir() if path.is_file()]
    if source.graph is not None:
        return sum(path.stat().st_size for path in files if ".onnx" in path.name)
    stored = sum(p.stat().st_size for p in files if p.suffix in {".safetensors", ".bin"})
    width = 4 if "32" in str(source.config.get("dtype", source.config.get("torch_dtype"))) else 2
    return int(stored / width * _BYTES[precision])
