"""A bundle: one folder with the graphs of a target and its draft, the tokenizer, and a manifest.

The manifest, ``mirror_edge.json``, describes the graphs and holds the SHA-256 of every file. `read`
refuses a bundle that does not match it; `write_manifest` writes it for a finished folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mirror_edge.errors import BundleError
from mirror_edge.manifest import (
    SCHEMA,
    CacheStyle,
    DraftSpec,
    FileSpec,
    FixedSpec,
    Format,
    Manifest,
    ModelSpec,
    Precision,
    TargetSpec,
    parse,
)
from mirror_edge.packages import Package

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
"""How well exit heads predict the target's tokens; written if export measured it."""


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest has been read and whose files have been checked."""

    folder: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return self.folder / name


def demo() -> Path:
    """The folder of the demo pair that comes with the package."""
    return Path(__file__).parent / "demo"


def digest(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, read in blocks; `on_bytes` is called with the size of each."""
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
    """Hash every file under `folder` and write the manifest, last and atomically.

    With `packages` it is a Core ML bundle.
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

    Sizes are always checked, and with `verify` the hashes too.

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
            f"{path}: schema version {schema} is newer than this program supports ({SCHEMA}). "
            "Upgrade mirror-edge."
        )
    manifest = parse(raw, path)
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
            "It is truncated or was modified; copy the bundle again or export again."
        )
    if found != spec.sha256:
        raise BundleError(
            f"{path}: its SHA-256 is not the manifest's, so its content was modified. "
            "Copy the bundle again or export again."
        )
