"""Hashing a bundle once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mirror_edge import bundle as bundles
from mirror_edge.errors import BundleError
from mirror_edge.vouched import open_bundle

WEIGHTS = "target/weights.bin"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo pair, of which nothing is kept yet."""
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(bundles.demo(), tmp_path / "bundle"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed."""
    found: list[str] = []
    digest = bundles.digest
    monkeypatch.setattr(
        "mirror_edge.bundle.digest", lambda path: found.append(path.name) or digest(path)
    )
    return found


def changed(path: Path) -> None:
    """One bit of it, and its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_files_are_hashed_at_the_first_use_alone(folder: Path, hashed: list[str]) -> None:
    first = open_bundle(folder)
    assert set(hashed) == {Path(name).name for name in first.manifest.files}
    hashed.clear()
    assert open_bundle(folder) == first
    assert hashed == []


def test_a_file_that_was_changed_later_is_found(folder: Path) -> None:
    open_bundle(folder)
    changed(folder / WEIGHTS)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"weights\.bin: its SHA-256 is not the manifest's"):
            open_bundle(folder)
    assert open_bundle(folder, verify=False).folder == folder


def test_a_bundle_that_was_wrong_from_the_start_is_found_every_time(folder: Path) -> None:
    changed(folder / WEIGHTS)
    for _ in range(2):
        with pytest.raises(BundleError, match="SHA-256"):
            open_bundle(folder)


def test_where_nothing_can_be_kept_files_are_hashed_every_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", os.devnull)
    for _ in range(2):
        hashed.clear()
        open_bundle(folder)
        assert "weights.bin" in hashed
