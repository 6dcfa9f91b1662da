"""A bundle: one folder with the graphs of a target and its draft, the tokenizer, and a manifest.

The manifest, ``mirror_edge.json``, says what the graphs are and holds the SHA-256 of every file.
`read` refuses what it cannot vouch for; `write_manifest` makes the manifest of a finished folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from mirror_edge.errors import BundleError
from mirror_edge.fields import checked
from mirror_edge.packages import Package, read_package

__all__ = [
    "COVERAGE",
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "CacheStyle",
    "DraftSpec",
    "FileSpec",
    "FixedSpec",
    "Format",
    "Manifest",
    "ModelSpec",
    "Precision",
    "TargetSpec",
    "demo",
    "digest",
    "read",
    "write_manifest",
]

MANIFEST = "mirror_edge.json"
COVERAGE = "coverage.json"
"""How well exit heads foresee the target's tokens, where export measured it."""
SCHEMA = 1

Precision = Literal["int4", "int8", "fp16", "fp32"]
Format = Literal["onnx", "coreml"]
"""What the graphs are: ONNX files, or the programs of Core ML packages."""
CacheStyle = Literal["in_place", "concat", "state", "explicit"]
"""How a graph keeps its KV cache: written in place into the buffer it was given (past and present
are one buffer of fixed length); returned as a new, longer tensor (past joined with new rows); a
state of the program; or handed in, the new rows alone handed back."""


@dataclass(frozen=True)
class ModelSpec:
    """What target and draft have in common."""

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
    """Of the hidden rows and the KV cache."""

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
    """The draft's graphs of fixed shapes, for NPUs: one for prompts, one for rollouts."""

    context: int
    slots: int
    """Rows of the cache, branches included."""
    chunk: int
    """Rows of the graph for prompts."""
    rows: int
    """Rows of the graph for rollouts."""
    streamed: int
    """How many of these have streams."""
    prefill: str = "draft/fixed_prefill.onnx"
    rollout: str = "draft/fixed_rollout.onnx"


@dataclass(frozen=True)
class DraftSpec:
    """The draft: one graph, with `streams` stream rows a main row (0: a plain draft)."""

    model: ModelSpec
    streams: int = 0
    stream_layers: int = 0
    """The top layers that streams go through; 0 without streams."""
    branch_rows: int = 0
    """Rows its cache may hold beyond the context, for branches and their streams."""
    shared_bytes: int = 0
    """Of the target's weights, which a draft out of the target's own layers uses too."""
    graph: str = "draft/draft.onnx"
    fixed: FixedSpec | None = None


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
    """Every file but the manifest, by its path inside the bundle, with forward slashes."""
    schema: int = SCHEMA
    format: Format = "onnx"
    packages: Mapping[str, Package] = field(default_factory=dict)
    """The Core ML packages among the files, by their path inside the bundle."""

    def holds(self, name: str) -> bool:
        """Whether `name` is one of the files, or a folder (as a package is) with some of them."""
        return name in self.files or any(file.startswith(f"{name}/") for file in self.files)


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest was read and whose files were checked."""

    folder: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return self.folder / name


def demo() -> Path:
    """The folder of the pair that comes with the package."""
    return Path(__file__).parent / "demo"


def digest(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, read in blocks; `on_bytes` hears the size of each."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
            if on_bytes is not None:
                on_bytes(len(block))
    return sha.hexdigest()


def write_manifest(
    folder: Path,
    name: str,
    target: TargetSpec,
    draft: DraftSpec | None,
    packages: Mapping[str, Package] | None = None,
) -> Manifest:
    """Hash every file under `folder` and write its manifest, last and atomically.

    With `packages` it is a bundle for Core ML.
    """
    partial = folder / (MANIFEST + ".partial")
    partial.unlink(missing_ok=True)
    files = {
        path.relative_to(folder).as_posix(): FileSpec(path.stat().st_size, digest(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = Manifest(
        name,
        target,
        draft,
        files["tokenizer.json"].sha256,
        files,
        format="coreml" if packages else "onnx",
        packages=packages or {},
    )
    partial.write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)
    return manifest


def read(folder: Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Sizes are always checked; with `verify` so are the hashes.

    Raises:
        BundleError: naming the file at fault, what is wrong with it, and what to do.
    """
    if not folder.is_dir():
        raise BundleError(
            f"{folder}: there is no such folder. Give the folder that `mirror-edge export` wrote."
        )
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{folder}: has no {MANIFEST}, so it is not a bundle. "
            "Make one with `mirror-edge export TARGET --draft DRAFT -o BUNDLE`."
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({error}). Export again.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{path}: has no schema version. Export again.")
    if schema > SCHEMA:
        raise BundleError(
            f"{path}: schema version {schema} is newer than this program knows ({SCHEMA}). "
            "Upgrade mirror-edge."
        )
    manifest = _manifest(raw, path)
    for name, spec in manifest.files.items():
        _check_file(folder, name, spec, verify=verify)
    return Bundle(folder, manifest)


def _check_file(folder: Path, name: str, spec: FileSpec, *, verify: bool) -> None:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
        raise BundleError(f"{folder / MANIFEST}: names a file outside the bundle: {name!r}.")
    path = folder / inside
    if not path.is_file():
        raise BundleError(f"{path}: is missing. Copy the bundle again or export again.")
    try:
        size, found = path.stat().st_size, digest(path) if verify else spec.sha256
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}).") from error
    if size != spec.bytes:
        raise BundleError(
            f"{path}: has {size:,} bytes where the manifest says {spec.bytes:,}. "
            "It is truncated or was changed; copy the bundle again or export again."
        )
    if found != spec.sha256:
        raise BundleError(
            f"{path}: its SHA-256 is not the manifest's, so its content was changed. "
            "Copy the bundle again or export again."
        )


def _manifest(raw: dict[str, Any], path: Path) -> Manifest:
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
    if manifest.format not in get_args(Format):
        raise BundleError(
            f"{path}: format is {manifest.format!r}; known are {', '.join(get_args(Format))}. "
            "Upgrade mirror-edge or export again."
        )
    layers, exit_layer = manifest.target.model.layers, manifest.target.exit_layer
    if not 1 <= exit_layer < layers:
        raise BundleError(
            f"{path}: exit layer {exit_layer} is not between 1 and {layers - 1}. Export again."
        )
    guide = manifest.draft
    if guide is not None:
        least, most = (1, guide.model.layers) if guide.streams else (0, 0)
        if guide.streams < 0 or not least <= guide.stream_layers <= most:
            raise BundleError(
                f"{path}: the draft cannot have {guide.streams} streams through "
                f"{guide.stream_layers} of its {guide.model.layers} layers. Export again."
            )
    graphs = [manifest.target.prefix, manifest.target.exit, manifest.target.suffix]
    if manifest.draft is not None:
        graphs.append(manifest.draft.graph)
        if (fixed := manifest.draft.fixed) is not None:
            graphs += [fixed.prefill, fixed.rollout]
    for name in (*graphs, *manifest.packages, "tokenizer.json"):
        if not manifest.holds(name):
            raise BundleError(f"{path}: does not list {name}. Export again.")
    if manifest.format == "coreml" and (unknown := sorted(set(graphs) - set(manifest.packages))):
        raise BundleError(f"{path}: packages does not describe {unknown[0]}. Export again.")
    return manifest


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
                f"known are {', '.join(allowed)}. Upgrade mirror-edge or export again."
            )
    return model
