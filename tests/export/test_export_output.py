"""A bundle appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import Checkpoint

from mirror_edge import bundle
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import export


def test_an_existing_bundle_is_replaced_only_by_force(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    export(target, draft, output, precision="fp32", exit_layer=1)
    with pytest.raises(OptionError, match=r"bundle: already exists. .* --force"):
        export(target, draft, output, precision="fp32", exit_layer=2)
    assert bundle.read(output).manifest.target.exit_layer == 1
    export(target, draft, output, precision="fp32", exit_layer=2, force=True)
    assert bundle.read(output).manifest.target.exit_layer == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    expected = {"target/exit.onnx", "target/prefix.onnx", "target/suffix.onnx"}
    expected |= {"target/weights.bin", "draft/draft.onnx", "draft/weights.bin"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert bundle.read(output).manifest.files.keys() == expected | {"chat_template.jinja"}


def test_what_remains_of_a_replaced_bundle_is_named(
    target: Path,
    draft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "bundle"
    export(target, draft, output, precision="fp32", exit_layer=1)
    delete = shutil.rmtree

    def refused(folder: Path, **how: Any) -> None:
        if not str(folder).endswith(".old"):
            delete(folder, **how)

    monkeypatch.setattr(shutil, "rmtree", refused)
    export(target, draft, output, precision="fp32", exit_layer=2, force=True)
    (old,) = (path for path in tmp_path.iterdir() if path != output)
    assert f"could not all be deleted; it is in {old}" in caplog.text
    assert bundle.read(output).manifest.target.exit_layer == 2


def test_force_never_removes_what_is_no_bundle(target: Path, draft: Path, tmp_path: Path) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    (output / "cat.jpg").touch()
    with pytest.raises(OptionError, match="photos: is not a bundle, so --force will not"):
        export(target, draft, output, force=True)
    with pytest.raises(OptionError, match=r"cat.jpg: is a file"):
        export(target, draft, output / "cat.jpg", force=True)
    assert (output / "cat.jpg").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_is_created_meanwhile_is_not_replaced(
    force: bool, target: Path, tmp_path: Path
) -> None:
    output = tmp_path / "photos"

    def create(stage: str, _: float) -> None:
        if stage == "Writing the bundle" and not output.exists():
            output.mkdir()
            (output / "cat.jpg").touch()

    with pytest.raises(OptionError, match="photos: is not a bundle" if force else "already exists"):
        export(target, None, output, precision="fp32", force=force, on_progress=create)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "cat.jpg"]


def test_a_failing_replacement_keeps_the_old_bundle(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    made = export(target, draft, output, precision="fp32")
    with pytest.raises(OptionError):
        export(target, draft, output, exit_layer=9, force=True)
    assert bundle.read(output).manifest == made.manifest


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"-o .*: cannot be written, .* Choose another"):
        export(tmp_path / "no target is looked at", None, tmp_path / "file" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_leaves_nothing_behind(target: Path, draft: Path, tmp_path: Path) -> None:
    program = "import sys; from mirror_edge.export import export; export(*sys.argv[1:])"
    command = [sys.executable, "-P", "-c", program, target, draft, tmp_path / "bundle"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [path.name.startswith(".bundle.partial-") for path in tmp_path.iterdir()] == [True]
    child.send_signal(signal.SIGINT)
    assert child.wait(60) != 0
    assert list(tmp_path.iterdir()) == []


def held(*paths: Path) -> set[str]:
    """The files under `paths` that this process has open or mapped, all of which Windows locks."""
    files = {
        line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()
    }
    for opened in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files.add(str(opened.readlink()))
    return {file for file in files if any(Path(file).is_relative_to(path) for path in paths)}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    "asked",
    [
        {"precision": "int4"},
        {"precision": "int4-mixed", "draft_vocabulary": 64},
        {"precision": "fp32", "draft_for": "qnn"},
        {"precision": "int8", "format": "coreml"},
    ],
    ids=str,
)
def test_nothing_is_renamed_while_it_is_open_as_windows_demands(
    asked: dict[str, Any],
    checkpoint: Checkpoint,
    draft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, set[str]]] = []

    def watched(name: str) -> Callable[[Path, Path], Path]:
        move = getattr(Path, name)

        def moved(old: Path, new: Path) -> Path:
            seen.append((f"{old} to {new}", held(old, new)))
            found: Path = move(old, new)
            return found

        return moved

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, watched(name))
    target = checkpoint("Llama", tie_word_embeddings=False)
    export(target, draft, tmp_path / "bundle", **asked)
    assert seen
    assert [(move, files) for move, files in seen if files] == []


def test_too_little_space_is_refused_before_starting(
    target: Path, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror_edge.export.models.disk_needed", lambda *_: 10**15)
    with pytest.raises(ExportError, match=r"about 2,000,000,000 MB are needed .* MB are free"):
        export(target, draft, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system does not let root mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("small_disk", [100], indirect=True)
def test_a_small_disk_is_refused_before_starting(
    target: Path, draft: Path, small_disk: Path
) -> None:
    with pytest.raises(ExportError, match=r"MB are needed there .*, and 0 MB are free"):
        export(target, draft, small_disk / "bundle", precision="fp32")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("small_disk", [100, 460, 560, 700, 800], indirect=True)
def test_a_disk_that_fills_up_midway_leaves_nothing_behind(
    target: Path, draft: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror_edge.export.models.disk_needed", lambda *_: 0)
    with pytest.raises(ExportError, match=r"the disk is full. Nothing was kept."):
        export(target, draft, small_disk / "bundle", precision="fp32")
    assert list(small_disk.iterdir()) == []
