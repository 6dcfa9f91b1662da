"""The content of ``mirror_edge.json``, and every check on it.

It describes the graphs and holds the SHA-256 of every file; `parse` refuses inconsistencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mirror_edge.errors import BundleError
from mirror_edge.fields import checked
from mirror_edge.packages import Package, read_package

__all__ = [
    "SCHEMA",
    "CacheStyle",
    "DraftSpec",
    "FileSpec",
    "FixedSpec",
    "Format",
    "Manifest",
    "ModelSpec",
    "Precision",
    "TargetSpec",
    "parse",
]

SCHEMA = 1

Precision = Literal["int4", "int4-mixed", "int8", "fp16", "fp32"]
"""Of a model's weights; `int4-mixed` has some of them in int8."""
Format = Literal["onnx", "coreml"]
"""ONNX files, or the programs of Core ML packages."""
CacheStyle = Literal["in_place", "concat", "state", "explicit"]
"""How a graph keeps its KV cache. `in_place`: it writes into the buffer it was given, of fixed
length, for past and present. `concat`: it returns a longer tensor, past and new rows. `state`: the
program has it as its state. `explicit`: it is given the past and returns only the new rows."""


@dataclass(frozen=True)
class ModelSpec:
    """What the specifications of target and draft have in common."""

    architecture: str
    layers: int
    hidden: int
    vocabulary: int
    context: int
    kv_heads: int
    head_size: int
    precision: Precision
    cache: CacheStyle
    dtype: Literal["float32", "float16"]
    """The type of the hidden rows and the KV cache."""

    def cache_bytes(self, layers: int, tokens: int) -> int:
        """Bytes of the keys and values of `tokens` positions in `layers` layers."""
        width = 4 if self.dtype == "float32" else 2
        return 2 * layers * self.kv_heads * tokens * self.head_size * width


@dataclass(frozen=True)
class TargetSpec:
    """The target, cut at `exit_layer`: layers 1..E in `prefix`, E+1..N in `suffix`."""

    model: ModelSpec
    exit_layer: int
    exit_vocabulary: int
    """How many tokens the exit head can name; at most the vocabulary."""
    prefix: str = "target/prefix.onnx"
    exit: str = "target/exit.onnx"
    suffix: str = "target/suffix.onnx"


@dataclass(frozen=True)
class FixedSpec:
    """The draft's graphs with fixed shapes, for NPUs: one for prompts, one for rollouts."""

    context: int
    slots: int
    """Rows of the cache, including branches."""
    chunk: int
    """Rows of the graph for prompts."""
    rows: int
    """Rows of the graph for rollouts."""
    streamed: int
    """How many of those have streams."""
    prefill: str = "draft/fixed_prefill.onnx"
    rollout: str = "draft/fixed_rollout.onnx"


@dataclass(frozen=True)
class DraftSpec:
    """The draft: one graph, with `streams` stream rows per main row (0: a plain draft)."""

    model: ModelSpec
    streams: int = 0
    stream_layers: int = 0
    """How many of the top layers streams go through; 0 without streams."""
    branch_rows: int = 0
    """Cache rows in addition to the context, for branches and their streams."""
    shared_bytes: int = 0
    """Bytes of the target's weights that a draft made from the target's own layers uses too."""
    head_vocabulary: int = 0
    """How many tokens its head covers, those with the lowest ids; 0 for all."""
    graph: str = "draft/draft.onnx"
    fixed: FixedSpec | None = None

    @property
    def named(self) -> int:
        """How many tokens its logits cover."""
        return self.head_vocabulary or self.model.vocabulary


@dataclass(frozen=True)
class FileSpec:
    """Size and hash of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of ``mirror_edge.json``."""

    name: str
    target: TargetSpec
    draft: DraftSpec | None
    tokenizer: str
    """SHA-256 of ``tokenizer.json``, which target and draft share."""
    files: Mapping[str, FileSpec]
    """Every file except the manifest, by its path inside the bundle, with forward slashes."""
    schema: int = SCHEMA
    format: Format = "onnx"
    packages: Mapping[str, Package] = field(default_factory=dict)
    """The Core ML packages among the files, by their path inside the bundle."""

    def holds(self, name: str) -> bool:
        """Whether `name` is one of the files, or a package with at least one of them."""
        if name in self.packages:
            return any(file.startswith(f"{name}/") for file in self.files)
        return name in self.files


def parse(raw: dict[str, Any], path: Path) -> Manifest:
    """The manifest in the JSON object read from `path`.

    Raises:
        BundleError: naming the field at fault.
    """
    fields = checked(Manifest, raw, path, "manifest")
    target = checked(TargetSpec, fields["target"], path, "target")
    target["model"] = _model(target["model"], path, "target.model")
    draft = fields["draft"]
    if draft is not None:
        draft = checked(DraftSpec, draft, path, "draft")
        draft["model"] = _model(draft["model"], path, "draft.model")
        if draft.get("fixed") is not None:
            draft["fixed"] = FixedSpec(**checked(FixedSpec, draft["fixed"], path, "draft.fixed"))
    files = fields["files"]
    if not isinstance(files, dict):
        raise BundleError(f"{path}: files must be an object. Export again.")
    fields["files"] = {
        name: FileSpec(**checked(FileSpec, spec, path, f"files.{name}"))
        for name, spec in files.items()
    }
    fields["target"] = TargetSpec(**target)
    fields["draft"] = None if draft is None else DraftSpec(**draft)
    packages = fields.get("packages", {})
    if not isinstance(packages, dict):
        raise BundleError(f"{path}: packages must be an object. Export again.")
    fields["packages"] = {
        name: read_package(package, path, f"packages.{name}") for name, package in packages.items()
    }
    manifest = Manifest(**fields)
    _check_format(manifest, path)
    _check_target(manifest.target, path)
    if manifest.draft is not None:
        _check_draft(manifest.draft, path)
    _check_files(manifest, path)
    return manifest


def _check_format(manifest: Manifest, path: Path) -> None:
    if manifest.format not in get_args(Format):
        raise BundleError(
            f"{path}: format is {manifest.format!r}; "
            f"it must be one of {', '.join(get_args(Format))}. Upgrade mirror-edge or export again."
        )


def _check_target(target: TargetSpec, path: Path) -> None:
    layers, exit_layer = target.model.layers, target.exit_layer
    if not 1 <= exit_layer < layers:
        raise BundleError(
            f"{path}: exit layer {exit_layer} is not between 1 and {layers - 1}. Export again."
        )
    _check_size(path, "target.exit_vocabulary", target.exit_vocabulary, 1, target.model.vocabulary)


def _check_draft(draft: DraftSpec, path: Path) -> None:
    least, most = (1, draft.model.layers) if draft.streams else (0, 0)
    if draft.streams < 0 or not least <= draft.stream_layers <= most:
        raise BundleError(
            f"{path}: the draft cannot have {draft.streams} streams through "
            f"{draft.stream_layers} of its {draft.model.layers} layers. Export again."
        )
    _check_size(path, "draft.branch_rows", draft.branch_rows, 0)
    _check_size(path, "draft.head_vocabulary", draft.head_vocabulary, 0, draft.model.vocabulary)
    _check_size(path, "draft.shared_bytes", draft.shared_bytes, 0)
    if (fixed := draft.fixed) is not None:
        _check_size(path, "draft.fixed.context", fixed.context, 1, draft.model.context)
        _check_size(path, "draft.fixed.slots", fixed.slots, fixed.context)
        _check_size(path, "draft.fixed.chunk", fixed.chunk, 1)
        _check_size(path, "draft.fixed.rows", fixed.rows, 1)
        _check_size(path, "draft.fixed.streamed", fixed.streamed, 0, fixed.rows)


def _check_files(manifest: Manifest, path: Path) -> None:
    graphs = [manifest.target.prefix, manifest.target.exit, manifest.target.suffix]
    if manifest.draft is not None:
        graphs.append(manifest.draft.graph)
        if (fixed := manifest.draft.fixed) is not None:
            graphs += [fixed.prefill, fixed.rollout]
    if manifest.format == "coreml" and (unknown := sorted(set(graphs) - set(manifest.packages))):
        raise BundleError(f"{path}: packages does not describe {unknown[0]}. Export again.")
    for name in (*graphs, *manifest.packages, "tokenizer.json"):
        if not manifest.holds(name):
            raise BundleError(f"{path}: does not list {name}. Export again.")
    if manifest.tokenizer != manifest.files["tokenizer.json"].sha256:
        raise BundleError(
            f"{path}: tokenizer is not the SHA-256 of the tokenizer.json among its files. "
            "Export again."
        )


def _check_size(path: Path, where: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise BundleError(f"{path}: {where} is {value}; it must be {allowed}. Export again.")


def _model(raw: object, path: Path, where: str) -> ModelSpec:
    model = ModelSpec(**checked(ModelSpec, raw, path, where))
    for name, allowed in (
        ("precision", get_args(Precision)),
        ("cache", get_args(CacheStyle)),
        ("dtype", ("float32", "float16")),
    ):
        if getattr(model, name) not in allowed:
            raise BundleError(
                f"{path}: {where}.{name} is {getattr(model, name)!r}; "
                f"it must be one of {', '.join(allowed)}. Upgrade mirror-edge or export again."
            )
    for name in ("layers", "hidden", "vocabulary", "context", "kv_heads", "head_size"):
        _check_size(path, f"{where}.{name}", getattr(model, name), 1)
    return model
