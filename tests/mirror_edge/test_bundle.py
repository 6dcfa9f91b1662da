"""Bundles: written, read back, and refused with the file at fault."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror_edge.bundle import (
    MANIFEST,
    SCHEMA,
    DraftSpec,
    FileSpec,
    Manifest,
    ModelSpec,
    TargetSpec,
    digest,
    read,
    write_manifest,
)
from mirror_edge.errors import BundleError
from mirror_edge.memory import plan_memory

MODEL = ModelSpec("llama", 6, 64, 512, 128, 2, 16, "fp32", "in_place", "float32")
TARGET = TargetSpec(MODEL, exit_layer=3, exit_vocabulary=256)
DRAFT = DraftSpec(
    ModelSpec("llama", 2, 32, 512, 128, 1, 16, "int4", "concat", "float16"), 2, 1, branch_rows=32
)
CONTENTS = {
    "target/prefix.onnx": b"prefix" * 100,
    "target/exit.onnx": b"exit",
    "target/suffix.onnx": b"suffix" * 7,
    "target/suffix.onnx.data": bytes(range(256)) * 9,
    "draft/draft.onnx": b"draft",
    "tokenizer.json": b"{}",
    "empty.txt": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole bundle, as an export leaves it."""
    for name, content in CONTENTS.items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_manifest(tmp_path / "bundle", "tiny", TARGET, DRAFT)
    return tmp_path / "bundle"


def test_a_bundle_is_read_back_as_it_was_written(folder: Path) -> None:
    bundle = read(folder)
    assert bundle.folder == folder
    assert bundle.manifest == Manifest(
        name="tiny",
        target=TARGET,
        draft=DRAFT,
        tokenizer=hashlib.sha256(CONTENTS["tokenizer.json"]).hexdigest(),
        files={
            name: FileSpec(len(content), hashlib.sha256(content).hexdigest())
            for name, content in CONTENTS.items()
        },
        schema=SCHEMA,
    )
    assert bundle.file("draft/draft.onnx").read_bytes() == CONTENTS["draft/draft.onnx"]


def test_a_bundle_needs_no_draft(folder: Path) -> None:
    (folder / "draft/draft.onnx").unlink()
    written = write_manifest(folder, "alone", TARGET, None)
    assert read(folder).manifest == written
    assert written.draft is None


def test_writing_again_after_an_interruption_leaves_a_whole_bundle(folder: Path) -> None:
    (folder / f"{MANIFEST}.partial").write_text("{", encoding="utf-8")
    before = read(folder).manifest
    assert write_manifest(folder, "tiny", TARGET, DRAFT) == before
    assert read(folder).manifest == before
    assert not (folder / f"{MANIFEST}.partial").exists()


def refused(folder: Path, message: str, *, verify: bool = True) -> None:
    with pytest.raises(BundleError, match=message):
        read(folder, verify=verify)


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with its manifest changed."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return path


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "absent", f"^{re.escape(str(tmp_path / 'absent'))}: there is no such folder")


def test_a_file_is_no_folder(folder: Path) -> None:
    refused(folder / "tokenizer.json", "tokenizer.json: there is no such folder")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    refused(tmp_path, f"^{re.escape(str(tmp_path))}: has no {MANIFEST}, so it is not a bundle")


@pytest.mark.parametrize("content", [b"", b'{"schema": 1', b"\xff\xfe{}"])
def test_a_manifest_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    refused(folder, f"{MANIFEST}: cannot be read as JSON")


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"schema": "1"}', '{"schema": 1.0}'])
def test_a_manifest_without_a_schema_version(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content, encoding="utf-8")
    refused(folder, f"{MANIFEST}: has no schema version")


def test_a_newer_schema_is_refused_before_anything_else(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"schema": 99, "future": true}', encoding="utf-8")
    refused(folder, rf"{MANIFEST}: schema version 99 is newer .* Upgrade mirror-edge")


FIELDS = [
    ("manifest", (), "name"),
    ("manifest", (), "draft"),
    ("manifest", (), "files"),
    ("target", ("target",), "exit_layer"),
    ("target", ("target",), "model"),
    ("target.model", ("target", "model"), "layers"),
    ("draft", ("draft",), "model"),
    ("draft.model", ("draft", "model"), "cache"),
    ("files.tokenizer.json", ("files", "tokenizer.json"), "sha256"),
]


def inside(manifest: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        manifest = manifest[name]
    return manifest


@pytest.mark.parametrize(("where", "path", "field"), FIELDS)
def test_a_missing_field(folder: Path, where: str, path: tuple[str, ...], field: str) -> None:
    edited(folder, lambda manifest: inside(manifest, path).pop(field))
    refused(folder, rf"{MANIFEST}: {re.escape(where)}\.{field} is missing")


@pytest.mark.parametrize(("where", "path"), sorted({(where, path) for where, path, _ in FIELDS}))
def test_an_unknown_field(folder: Path, where: str, path: tuple[str, ...]) -> None:
    edited(folder, lambda manifest: inside(manifest, path).update(zeal=1, ardour=2))
    refused(folder, f"{MANIFEST}: {re.escape(where)} has unknown fields ardour, zeal")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), True, "manifest.schema must be int, not True"),
        (("name",), 5, "manifest.name must be str, not 5"),
        (("tokenizer",), None, "manifest.tokenizer must be str, not None"),
        (("target",), [], "target must be an object"),
        (("target", "exit_layer"), "3", "target.exit_layer must be int, not '3'"),
        (("target", "exit_layer"), 3.0, "target.exit_layer must be int, not 3.0"),
        (("target", "prefix"), 1, "target.prefix must be str, not 1"),
        (("target", "model"), "llama", "target.model must be an object"),
        (("target", "model", "layers"), True, "target.model.layers must be int, not True"),
        (
            ("target", "model", "precision"),
            "int2",
            "target.model.precision is 'int2'; it must be one of",
        ),
        (
            ("target", "model", "cache"),
            1,
            "target.model.cache is 1; it must be one of in_place, concat",
        ),
        (("draft",), "draft.onnx", "draft must be an object"),
        (
            ("draft", "model", "dtype"),
            "bfloat16",
            "draft.model.dtype is 'bfloat16'; it must be one of",
        ),
        (("draft", "streams"), None, "draft.streams must be int, not None"),
        (("files",), [], "files must be an object"),
        (("files", "tokenizer.json"), "abc", "files.tokenizer.json must be an object"),
        (("files", "tokenizer.json", "bytes"), "2", "files.tokenizer.json.bytes must be int"),
    ],
)
def test_a_value_of_the_wrong_kind(
    folder: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    edited(folder, lambda manifest: inside(manifest, path[:-1]).update({path[-1]: value}))
    refused(folder, f"{MANIFEST}: {re.escape(message)}")


@pytest.mark.parametrize("layer", [-1, 0, 6, 7])
def test_an_exit_layer_out_of_range(folder: Path, layer: int) -> None:
    edited(folder, lambda manifest: manifest["target"].update(exit_layer=layer))
    refused(folder, f"{MANIFEST}: exit layer {layer} is not between 1 and 5")


@pytest.mark.parametrize("layer", [1, 5])
def test_an_exit_layer_at_the_end_of_its_range(folder: Path, layer: int) -> None:
    edited(folder, lambda manifest: manifest["target"].update(exit_layer=layer))
    assert read(folder).manifest.target.exit_layer == layer


@pytest.mark.parametrize("name", [n for n in CONTENTS if n.endswith((".onnx", ".json"))])
def test_a_graph_or_tokenizer_that_the_manifest_does_not_list(folder: Path, name: str) -> None:
    edited(folder, lambda manifest: manifest["files"].pop(name))
    refused(folder, f"{MANIFEST}: does not list {re.escape(name)}")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_is_missing(folder: Path, name: str, verify: bool) -> None:
    (folder / name).unlink()
    refused(folder, f"^{re.escape(str(folder / name))}: is missing", verify=verify)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["target/suffix.onnx.data", "draft/draft.onnx"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size(folder: Path, name: str, verify: bool, change: int) -> None:
    content = CONTENTS[name]
    (folder / name).write_bytes((content + b"x")[: len(content) + change])
    sizes = f"has {len(content) + change:,} bytes where the manifest says {len(content):,}"
    refused(folder, f"^{re.escape(str(folder / name))}: {sizes}", verify=verify)


@pytest.mark.parametrize("name", [name for name, content in CONTENTS.items() if content])
def test_one_changed_byte_is_found_where_hashes_are_checked(folder: Path, name: str) -> None:
    content = bytearray(CONTENTS[name])
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, f"^{re.escape(str(folder / name))}: its SHA-256 is not the manifest's")
    assert read(folder, verify=False).manifest.name == "tiny"


@pytest.mark.parametrize(
    "name",
    ["../x", "target/../../x", "/etc/hostname", "..\\x", "target\\prefix.onnx", "C:x", "file:x"],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_outside_the_bundle(folder: Path, name: str, verify: bool) -> None:
    """Even if it is there, with the right size and hash."""
    outside = folder.parent / "x"
    outside.write_bytes(b"outside")
    spec = {"bytes": 7, "sha256": digest(outside)}
    edited(folder, lambda manifest: manifest["files"].update({name: spec}))
    message = f"{MANIFEST}: names a file outside the bundle: {name!r}"
    refused(folder, re.escape(message), verify=verify)


def test_a_graph_outside_the_bundle(folder: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["target"]["prefix"] = "../prefix.onnx"
        manifest["files"]["../prefix.onnx"] = manifest["files"]["target/prefix.onnx"]

    (folder.parent / "prefix.onnx").write_bytes(CONTENTS["target/prefix.onnx"])
    edited(folder, edit)
    refused(folder, "names a file outside the bundle: '../prefix.onnx'")


def test_a_digest_tells_its_progress(tmp_path: Path) -> None:
    path, heard = tmp_path / "large", list[int]()
    path.write_bytes(bytes((1 << 20) + 5))
    assert digest(path, heard.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert heard == [1 << 20, 5]


def test_the_memory_plan_counts_weights_and_caches(folder: Path) -> None:
    plan = plan_memory(read(folder).manifest)
    target = sum(len(c) for name, c in CONTENTS.items() if name.startswith("target/"))
    assert plan.target_weights == target
    assert plan.target_cache == 2 * 6 * 2 * 128 * 16 * 4
    assert plan.draft_weights == len(CONTENTS["draft/draft.onnx"])
    assert plan.draft_cache == 2 * 2 * 1 * (128 + 32) * 16 * 2
    assert plan.total == target + 5 + plan.target_cache + plan.draft_cache


@pytest.mark.parametrize(("streams", "layers"), [(-1, 0), (2, 0), (2, 3), (0, 1), (1, -1)])
def test_streams_that_do_not_fit_the_draft(folder: Path, streams: int, layers: int) -> None:
    edited(folder, lambda m: m["draft"].update(streams=streams, stream_layers=layers))
    refused(
        folder, f"{MANIFEST}: the draft cannot have {streams} streams through {layers} of its 2"
    )


FIXED = {"context": 64, "slots": 96, "chunk": 32, "rows": 8, "streamed": 4}


@pytest.mark.parametrize(
    ("where", "value", "allowed"),
    [
        ("target.exit_vocabulary", 0, "from 1 to 512"),
        ("target.exit_vocabulary", 513, "from 1 to 512"),
        ("target.model.hidden", 0, "1 or more"),
        ("target.model.context", -1, "1 or more"),
        ("draft.model.kv_heads", 0, "1 or more"),
        ("draft.branch_rows", -1, "0 or more"),
        ("draft.shared_bytes", -1, "0 or more"),
        ("draft.fixed.context", 129, "from 1 to 128"),
        ("draft.fixed.slots", 63, "64 or more"),
        ("draft.fixed.chunk", 0, "1 or more"),
        ("draft.fixed.rows", 0, "1 or more"),
        ("draft.fixed.streamed", 9, "from 0 to 8"),
    ],
)
def test_a_size_that_cannot_be(folder: Path, where: str, value: int, allowed: str) -> None:
    *path, field = where.split(".")

    def edit(manifest: dict[str, Any]) -> None:
        manifest["draft"]["fixed"] = dict(FIXED)
        inside(manifest, tuple(path))[field] = value

    edited(folder, edit)
    refused(folder, f"{MANIFEST}: {where} is {value}; it must be {allowed}. Export again.")


def test_a_folder_of_files_is_no_graph(folder: Path) -> None:
    edited(folder, lambda manifest: manifest["target"].update(prefix="target"))
    refused(folder, f"{MANIFEST}: does not list target")


def test_the_tokenizer_is_the_one_among_the_files(folder: Path) -> None:
    edited(folder, lambda manifest: manifest.update(tokenizer="0" * 64))
    refused(folder, f"{MANIFEST}: tokenizer is not the SHA-256 of the tokenizer.json")


def test_a_manifest_from_before_there_were_streams(folder: Path) -> None:
    def plain(manifest: dict[str, Any]) -> None:
        manifest["draft"]["streams"] = 0
        del manifest["draft"]["stream_layers"]

    edited(folder, plain)
    draft = read(folder).manifest.draft
    assert draft is not None
    assert (draft.streams, draft.stream_layers) == (0, 0)
